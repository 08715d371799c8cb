"""Errors and sizes in words."""

import pytest
from tailsweep.clusters.errors import MAX_CHARACTERS, describe_error
from tailsweep.clusters.sizes import describe_bytes


def test_an_error_is_described_in_one_line() -> None:
    error = ValueError("  no route\n  to\thost \n")
    assert describe_error(error) == "no route to host"
    assert (describe_error(error, "first"), describe_error(error, "last")) == ("no route", "to host")
    assert len(describe_error(ValueError("x" * 1000))) == MAX_CHARACTERS
    assert describe_error(ValueError(" \n")) == describe_error(ValueError()) == "ValueError"


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0.0 kB"), (512, "0.5 kB"), (1.9e6, "1.9 MB"), (9.99e7, "99.9 MB"), (1e8, "0.1 GB"), (1.5e12, "1,500.0 GB")],
)
def test_a_size_has_a_decimal_unit(num_bytes: float, text: str) -> None:
    assert describe_bytes(num_bytes) == text
