"""A metric that the validation rows cannot define is refused before the start, with the rows there are."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tailsweep.orchestrator.config.schema import METRICS
from tailsweep.orchestrator.planning.preparation import _check_metric
from tailsweep.trainables.errors import DataError
from tailsweep.trainables.training.metrics import score

TRAIN_ROWS = np.array([200, 50, 3])  # many, medium, few


def data(*labels: int) -> Any:
    validation = SimpleNamespace(labels=np.array(labels))
    return SimpleNamespace(validation=validation, class_counts=TRAIN_ROWS, label_names=("a", "b", "c"))


@pytest.mark.parametrize(
    ("metric", "labels"),
    [
        ("validation/micro_f1_minority", (0, 0, 0)),  # of a constant prediction; it crashed the sweep after an epoch
        ("validation/recall_few", (0, 0, 1)),
        ("validation/recall_medium", (0, 2)),
        ("validation/recall_many", (1, 2)),
    ],
)
def test_an_undefined_metric_is_refused(metric: str, labels: tuple[int, ...]) -> None:
    with pytest.raises(
        DataError, match=rf"metric is {metric}, but the validation rows cannot define it: .* a \d, b \d"
    ):
        _check_metric(metric, data(*labels))


@pytest.mark.parametrize("metric", METRICS)
def test_a_row_of_every_class_defines_every_metric(metric: str) -> None:
    _check_metric(metric, data(0, 1, 2))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("labels", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)])
def test_a_metric_that_passes_is_defined_for_every_prediction(metric: str, labels: tuple[int, ...]) -> None:
    try:
        _check_metric(metric, data(*labels))
    except DataError:
        return
    for number in range(3 ** len(labels)):
        predicted = [number // 3**place % 3 for place in range(len(labels))]
        counts = np.zeros((3, 3), dtype=np.int64)
        np.add.at(counts, (list(labels), predicted), 1)
        assert score(metric.removeprefix("validation/"), counts, TRAIN_ROWS) is not None, predicted
