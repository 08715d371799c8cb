"""Keys and passwords come from the environment alone: what looks like one elsewhere is refused, and never repeated.

A sweep's settings go to its run directory, to W&B and to a process's arguments, where others can read them.
"""

import re
from collections.abc import Iterator
from typing import Any

from tailsweep.orchestrator.config.errors import Mistake, Path

NAME = re.compile(
    r"(?:^|.*[_-])(?:(?:api|access|account|private|secret)[_-]?key|secret|token|passw(?:or)?d|credentials?)s?", re.I
)
IN_URI = re.compile(
    r"\w[\w+.-]*://(?:(?!anonymous@)[^/?#]*@|.*[?&;](?:\w*[_-])?(?:key|secret|token|password|sig(?:nature)?)=)", re.I
)

REMEDY = (
    "keys and passwords are never settings, since others can read these: export WANDB_API_KEY for W&B, HF_TOKEN for "
    "the hub, and for storage what its own client reads (the value is not shown)"
)


def secret_mistakes(tree: Any, path: Path = ()) -> Iterator[Mistake]:
    """Where in a tree of settings a value stands under the name of a key."""
    for step, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        if isinstance(step, str) and NAME.fullmatch(step) and isinstance(value, str | int | float):
            yield Mistake((*path, step), REMEDY)
        else:
            yield from secret_mistakes(value, (*path, step))


def secret_set_by(override: str) -> str | None:
    """The field of ``field=value`` where that sets what :func:`secret_mistakes` would find; ``--set`` alone where it is
    written so badly that nobody can tell field and value apart. None: it sets no key."""
    field = override.partition("=")[0]
    names = re.split(r"[.:\s]", field) + re.findall(r"([\w-]+)['\"]?\s*:", override)
    if not any(map(NAME.fullmatch, names)):
        return None
    return f"--set {field}" if "=" in override and re.fullmatch(r"[\w.-]+", field) else "--set"


def has_a_secret(location: str) -> bool:
    """Whether a URI holds a key or a password."""
    return IN_URI.match(location) is not None


def has_a_secret_within(text: str) -> bool:
    """Whether a word of a text is a URI that holds a key or a password: ``--index-url https://NAME:KEY@HOST/simple``,
    ``field=s3://KEY:SECRET@BUCKET``."""
    return any(has_a_secret(part) for word in text.split() for part in (word, word.partition("=")[2]))
