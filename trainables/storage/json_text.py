"""JSON that somebody else may have written."""

import json
from typing import Any


def parse_json(text: str) -> Any:
    """Return what a JSON text holds.

    Raises:
        ValueError: It is not JSON, or nested more deeply than can be read.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
