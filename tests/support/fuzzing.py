"""Hypothesis run from inside a test: a hundred examples in `make test`, thousands in the soak, by one execution path.

@examples
def test_...(examples: int) -> None:
    fuzz(examples, strategy, check)
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SECONDS_PER_EXAMPLE = 30  # on a machine that does other things, too; what hangs for good meets pytest's timeout

examples = pytest.mark.parametrize(
    "examples",
    [
        pytest.param(100, marks=pytest.mark.thorough),
        pytest.param(2000, marks=[pytest.mark.soak, pytest.mark.timeout(3600)]),
    ],
)


def fuzz(examples: int, strategy: st.SearchStrategy[Any], check: Callable[[Any], None]) -> None:
    """Call ``check`` with so many examples; it fails at the first that raises, reduced to a small one."""
    configured = settings(
        max_examples=examples,
        deadline=timedelta(seconds=SECONDS_PER_EXAMPLE),
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
        database=None,
        print_blob=True,
    )

    @configured
    @given(strategy)
    def checked(example: Any) -> None:
        check(example)

    checked()


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6).map(str.encode)


def mangled(
    valid: list[bytes], pieces: list[bytes], noise: st.SearchStrategy[bytes] = TEXT
) -> st.SearchStrategy[bytes]:
    """One of ``valid``, changed in one to six places: bytes dropped, doubled, turned round, or replaced by a piece or
    by ``noise``."""

    @st.composite
    def draw_one(draw: st.DrawFn) -> bytes:
        content = draw(st.sampled_from(valid))
        for _ in range(draw(st.integers(1, 6))):
            start = draw(st.integers(0, len(content)))
            stop = min(len(content), start + draw(st.sampled_from([0, 1, 2, 5, 20, 300])))
            piece = content[start:stop]
            replacement = draw(st.sampled_from([b"", piece + piece, piece[::-1], *pieces]) | noise)
            content = content[:start] + replacement + content[stop:]
        return content

    return draw_one()
