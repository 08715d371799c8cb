"""Into how many folds examples can be divided, and what is said where that is not as many as were asked for."""

import logging

import numpy as np
import pytest
from tailsweep.orchestrator.runner.cross_validation import possible_folds
from tailsweep.trainables.errors import InputError

NAMES = ("common", "rare", "rarest")


@pytest.mark.parametrize(
    ("counts", "asked", "expected", "said"),
    [
        ((50, 20, 5), 5, 5, ""),
        ((50, 20, 3), 5, 3, "selection.folds is 5, but rarest has 3 examples: there are 3 folds"),
        ((50, 4, 20), 5, 4, "selection.folds is 5, but rare has 4 examples: there are 4 folds"),
        ((50, 20, 1), 5, 5, "rarest: one example each, which every model is trained on; no fold has it"),
        ((50, 4, 1), 5, 4, "rarest: one example each"),
        ((50, 2, 0), 2, 2, ""),
    ],
)
def test_there_are_as_many_folds_as_the_rarest_class_has_examples(
    counts: tuple[int, ...], asked: int, expected: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="tailsweep"):
        assert possible_folds(np.repeat(np.arange(3), counts), asked, NAMES) == expected
    assert said in caplog.text
    assert bool(said) == bool(caplog.text)


def test_classes_of_one_example_each_have_no_folds() -> None:
    with pytest.raises(InputError, match="no class has two examples"):
        possible_folds(np.arange(3), 2, NAMES)
