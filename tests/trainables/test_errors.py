"""An exception in one line."""

import doctest

import pytest
from tailsweep.trainables import errors
from tailsweep.trainables.errors import describe_error


@pytest.mark.parametrize(
    ("error", "first", "last"),
    [
        (ValueError("no such file"), "no such file", "no such file"),
        (ValueError("\n  the point\nmore\nthe cause \n\n"), "the point", "the cause"),
        (ValueError(), "ValueError", "ValueError"),
        (OSError(" \n "), "OSError", "OSError"),
        (KeyError("name"), "'name'", "'name'"),
    ],
)
def test_an_error_is_described_in_one_line(error: Exception, first: str, last: str) -> None:
    assert describe_error(error) == first
    assert describe_error(error, line="last") == last


def test_the_examples_of_the_docstrings_hold() -> None:
    assert doctest.testmod(errors).failed == 0
