"""The counts are those the papers print: Shi et al. 2022 (IMDB, 20 Newsgroups), ValizadehAslani et al. 2022 (SST-2)."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tailsweep.trainables.config.data import Downsample, ImbalanceConfig, LongTailed, Step
from tailsweep.trainables.data.imbalance import ImbalanceError, imbalance_rows, kept_sizes

# 20 Newsgroups, training rows, in the paper's order (the half that stays whole first).
NEWSGROUPS = {
    "rec.sport.hockey": 600, "soc.religion.christian": 599, "rec.motorcycles": 598, "rec.sport.baseball": 597,
    "sci.crypt": 595, "rec.autos": 594, "sci.med": 594, "comp.windows.x": 593, "sci.space": 593,
    "sci.electronics": 591, "alt.atheism": 480, "comp.graphics": 584, "comp.os.ms-windows.misc": 591,
    "comp.sys.ibm.pc.hardware": 590, "comp.sys.mac.hardware": 578, "misc.forsale": 585, "talk.politics.guns": 546,
    "talk.politics.mideast": 564, "talk.politics.misc": 465, "talk.religion.misc": 377,
}  # fmt: skip
ORDER = list(NEWSGROUPS)


def labels_of(counts: dict[str, int]) -> list[str]:
    """That many labels of each class, well mixed."""
    labels = [name for name, count in counts.items() for _ in range(count)]
    return [str(name) for name in np.random.default_rng(0).permutation(labels)]


def kept_counts(counts: dict[str, int], config: ImbalanceConfig) -> list[int]:
    labels = labels_of(counts)
    kept = Counter(labels[row] for row in imbalance_rows(labels, config))
    return [kept[name] for name in counts]


def test_step_on_newsgroups_gives_the_papers_counts() -> None:
    assert kept_counts(NEWSGROUPS, Step(kind="step", ratio=0.1, order=ORDER)) == [
        600, 599, 598, 597, 595, 594, 594, 593, 593, 591, *[60] * 10,
    ]  # fmt: skip


def test_long_tail_on_newsgroups_gives_the_papers_counts() -> None:
    assert kept_counts(NEWSGROUPS, LongTailed(kind="long_tailed", ratio=0.1, order=ORDER)) == [
        600, 531, 470, 417, 369, 327, 289, 256, 227, 201, 178, 158, 140, 124, 109, 97, 86, 76, 67, 60,
    ]  # fmt: skip


def test_downsampling_of_sst2_gives_the_official_counts() -> None:
    config = Downsample(kind="downsample", ratio=0.1)
    assert kept_counts({"positive": 37569, "negative": 29780}, config) == [37569, 3756]


def test_removing_90_percent_of_imdb_negatives_gives_the_papers_counts() -> None:
    config = Downsample(kind="downsample", ratio=0.1, order=["positive", "negative"])
    assert kept_counts({"positive": 12500, "negative": 12500}, config) == [12500, 1250]


def test_downsampling_keeps_the_very_rows_of_the_official_recipe() -> None:
    """A pandas sample with ``random_state=42`` is a draw of NumPy's legacy generator without replacement."""
    labels = np.array(labels_of({"positive": 400, "negative": 300}))
    negative = np.flatnonzero(labels == "negative")
    drawn = np.random.RandomState(42).choice(len(negative), size=120, replace=False)  # 0.3 * 400
    expected = {*np.flatnonzero(labels == "positive").tolist(), *negative[drawn].tolist()}
    assert imbalance_rows(labels.tolist(), Downsample(kind="downsample", ratio=0.3)).tolist() == sorted(expected)


def test_another_seed_keeps_other_rows_of_the_reduced_class_only() -> None:
    labels = labels_of({"a": 100, "b": 80})
    first, second = (set(imbalance_rows(labels, Step(kind="step", ratio=0.2, seed=seed)).tolist()) for seed in (1, 2))
    assert first != second
    assert {labels[row] for row in first ^ second} == {"b"}


def test_default_order_is_by_rows_then_by_name() -> None:
    labels = labels_of({"z": 50, "m": 50, "a": 80, "b": 20})
    kept = Counter(labels[row] for row in imbalance_rows(labels, Step(kind="step", ratio=0.1)))
    # a (80), then m before z (50 each), then b: the last two keep 0.1 * 80
    assert kept == {"a": 80, "m": 50, "z": 8, "b": 8}


def test_middle_class_of_an_odd_number_keeps_its_rows_in_step() -> None:
    assert kept_sizes([90, 50, 30], Step(kind="step", ratio=0.1)) == [90, 50, 9]


def test_step_is_measured_by_the_largest_class_that_stays_whole() -> None:
    assert kept_sizes([50, 90, 400, 400], Step(kind="step", ratio=0.1)) == [50, 90, 9, 9]


def test_a_product_that_floating_point_misses_is_a_whole_number_of_rows_except_officially() -> None:
    # 0.29 * 100 is 28.999999999999996 in floating point, and the official code takes its floor
    assert kept_sizes([100, 100], Step(kind="step", ratio=0.29)) == [100, 29]
    assert kept_sizes([100, 100], LongTailed(kind="long_tailed", ratio=0.29)) == [100, 29]
    assert kept_sizes([100, 100], Downsample(kind="downsample", ratio=0.29)) == [100, 28]


@given(st.integers(2, 30), st.integers(1000, 10**6), st.floats(0.01, 1))
def test_long_tail_falls_from_the_largest_class_to_its_share(num_classes: int, rows: int, ratio: float) -> None:
    sizes = kept_sizes([rows] * num_classes, LongTailed(kind="long_tailed", ratio=ratio))
    assert sizes[0] == rows
    assert sizes == sorted(sizes, reverse=True)
    assert abs(sizes[-1] - rows * ratio) <= 1


def test_rows_come_in_ascending_order_without_repeats() -> None:
    rows = imbalance_rows(labels_of(NEWSGROUPS), LongTailed(kind="long_tailed", ratio=0.1, order=ORDER))
    assert rows.dtype == np.int64
    assert (np.diff(rows) > 0).all()


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (["positive", "negatve"], 'order names the class "negatve".*did you mean "negative"'),
        (["positive"], "order names 1 of 2 classes, but must name each: add negative"),
        (["positive", "negative", "positive"], "order names positive more than once"),
    ],
)
def test_an_order_that_is_not_the_classes_is_refused(order: list[str], message: str) -> None:
    with pytest.raises(ImbalanceError, match=message):
        imbalance_rows(["positive", "negative"], Downsample(kind="downsample", ratio=0.5, order=order))


def test_a_class_with_fewer_rows_than_asked_for_is_named_with_both_numbers() -> None:
    labels = labels_of({"a": 100, "b": 10, "c": 50})
    with pytest.raises(
        ImbalanceError, match=r'class "b" has 10 rows, but long_tailed with ratio 0.25 asks for 25 of it'
    ):
        imbalance_rows(labels, LongTailed(kind="long_tailed", ratio=0.25, order=["a", "c", "b"]))


def test_a_class_that_would_lose_all_its_rows_is_refused() -> None:
    with pytest.raises(ImbalanceError, match=r'class "b" would keep 0 of its 20 rows'):
        imbalance_rows(labels_of({"a": 30, "b": 20}), Step(kind="step", ratio=0.01))


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_numpy_does_not_take_is_refused(seed: int) -> None:
    with pytest.raises(ValidationError, match="seed"):
        Step(kind="step", ratio=0.5, seed=seed)
