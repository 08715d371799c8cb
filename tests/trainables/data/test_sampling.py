from itertools import combinations
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tailsweep.trainables.config.trial import StageConfig
from tailsweep.trainables.data import sampling
from tailsweep.trainables.data.sampling import Rows, Span, epoch_rows, num_rows, shares, stage_spans, steps

KINDS = get_args(Rows)
kinds = st.sampled_from(KINDS)
class_lists = st.lists(st.integers(0, 5), min_size=1, max_size=80)
seeds = st.integers(0, 2**32)
epochs = st.integers(0, 50)


@settings(deadline=None)  # a busy machine is not a failure
@given(class_lists, seeds, epochs)
def test_original_visits_every_row_once(labels, seed, epoch):
    rows = epoch_rows("original", np.array(labels), seed, epoch)
    assert sorted(rows) == list(range(len(labels)))


@settings(deadline=None)
@given(class_lists, seeds, epochs)
def test_oversampled_visits_every_class_as_often_as_the_largest(labels, seed, epoch):
    labels = np.array(labels)
    rows = epoch_rows("oversampled", labels, seed, epoch)
    classes, visits = np.unique(labels[rows], return_counts=True)
    assert set(classes) == set(labels)
    assert set(visits) == {np.bincount(labels).max()}


@settings(deadline=None)
@given(class_lists, seeds, epochs)
def test_class_balanced_visits_as_many_rows_with_classes_as_equal_as_that_allows(labels, seed, epoch):
    labels = np.array(labels)
    rows = epoch_rows("class_balanced", labels, seed, epoch)
    classes, visits = np.unique(labels[rows], return_counts=True)
    assert len(rows) == len(labels)
    assert set(classes) == set(labels)
    assert visits.max() - visits.min() <= 1


def class_visits(kind, labels, seed, epoch, num_epochs=1):
    return np.bincount(labels[epoch_rows(kind, labels, seed, epoch, num_epochs)], minlength=labels.max() + 1)


@settings(deadline=None)
@given(class_lists, seeds, epochs)
def test_sqrt_visits_classes_by_the_root_of_their_rows_to_less_than_a_visit(labels, seed, epoch):
    labels = np.array(labels)
    visits = class_visits("sqrt", labels, seed, epoch)
    roots = np.sqrt(np.bincount(labels))
    assert visits.sum() == len(labels)
    assert (np.abs(visits - len(labels) * roots / roots.sum()) < 1 + 1e-9).all()


def test_sqrt_of_a_case_worked_by_hand():
    # 64, 16, 4 rows: roots 8, 4, 2; of 84 visits 48, 24, 12, with nothing left over.
    labels = np.repeat([0, 1, 2], [64, 16, 4])
    assert class_visits("sqrt", labels, seed=1, epoch=2).tolist() == [48, 24, 12]


def test_left_over_visits_of_sqrt_are_drawn_anew_so_that_the_mean_is_the_share():
    # Roots 3, 2, 1 of 14 visits: 7, 4 2/3, 2 1/3.
    labels = np.repeat([0, 1, 2], [9, 4, 1])
    visits = [class_visits("sqrt", labels, seed=0, epoch=epoch).tolist() for epoch in range(1200)]
    assert {tuple(visit) for visit in visits} == {(7, 5, 2), (7, 4, 3)}
    assert np.mean(visits, axis=0) == pytest.approx([7, 14 / 3, 7 / 3], abs=0.05)


@settings(deadline=None)
@given(class_lists, seeds, st.integers(1, 9), st.data())
def test_progressive_goes_from_original_to_class_balanced_in_equal_steps(labels, seed, num_epochs, data):
    """p(t) = (1 - t) p_IB + t p_CB (Kang et al. 2020), t from 0 in the first epoch to 1 in the last."""
    labels = np.array(labels)
    epoch = data.draw(st.integers(0, num_epochs - 1))
    way = 1.0 if num_epochs == 1 else epoch / (num_epochs - 1)
    counts = np.bincount(labels)
    shares = (1 - way) * counts / len(labels) + way * (counts > 0) / np.count_nonzero(counts)
    visits = class_visits("progressive", labels, seed, epoch, num_epochs)
    assert visits.sum() == len(labels)
    assert (np.abs(visits - len(labels) * shares) < 1 + 1e-9).all()
    assert (visits[counts > 0] >= 1).all()


def test_progressive_is_original_first_and_class_balanced_last():
    labels = np.repeat([0, 1, 2], [40, 9, 4])
    for epoch, num_epochs, kind in ((0, 4, "original"), (3, 4, "class_balanced"), (0, 1, "class_balanced")):
        rows = epoch_rows("progressive", labels, 5, epoch, num_epochs)
        assert rows.tolist() == epoch_rows(kind, labels, 5, epoch).tolist()


def test_progressive_of_a_case_worked_by_hand():
    # Halfway between 30, 9, 3 and 14, 14, 14.
    assert class_visits("progressive", np.repeat([0, 1, 2], [30, 9, 3]), 0, 1, 3).tolist() in ([22, 12, 8], [22, 11, 9])


@settings(deadline=None)
@given(kinds, class_lists, seeds, st.integers(0, 4))
def test_rows_of_a_class_come_again_only_when_all_have_come(kind, labels, seed, epoch):
    labels = np.array(labels)
    visits = np.bincount(epoch_rows(kind, labels, seed, epoch, num_epochs=5), minlength=len(labels))
    for label in np.unique(labels):
        assert np.ptp(visits[labels == label]) <= 1


@settings(deadline=None)
@given(kinds, class_lists, seeds, epochs)
def test_num_rows_is_known_from_the_counts(kind, labels, seed, epoch):
    labels = np.array(labels)
    class_counts = np.bincount(labels, minlength=8)  # classes without rows among them
    assert num_rows(kind, class_counts) == len(epoch_rows(kind, labels, seed, epoch))


@pytest.mark.parametrize("kind", KINDS)
def test_order_follows_from_seed_and_epoch_alone(kind):
    labels = np.repeat([0, 1, 2], [40, 9, 4])
    order = epoch_rows(kind, labels, seed=3, epoch=1)
    np.testing.assert_array_equal(order, epoch_rows(kind, labels, seed=3, epoch=1))
    assert order.tolist() != epoch_rows(kind, labels, seed=3, epoch=2).tolist()
    assert order.tolist() != epoch_rows(kind, labels, seed=1, epoch=3).tolist()


@pytest.mark.parametrize("kind", ["oversampled", "class_balanced", "progressive"])
def test_classes_are_mixed_within_an_epoch(kind):
    labels = np.repeat([0, 1], [300, 30])
    visited = labels[epoch_rows(kind, labels, seed=0, epoch=0)]
    halves = np.split(visited[: len(visited) // 2 * 2], 2)
    assert all(0.4 < half.mean() < 0.6 for half in halves)


def test_class_balanced_gives_the_left_over_visit_to_other_classes_in_other_epochs():
    labels = np.array([0, 0, 0, 0, 0, 1, 2])  # 7 visits to 3 classes: two each, one of them three
    favoured = {
        int(np.bincount(labels[epoch_rows("class_balanced", labels, 0, epoch)]).argmax()) for epoch in range(30)
    }
    assert favoured == {0, 1, 2}


def test_oversampling_reaches_other_rows_in_other_epochs():
    labels = np.repeat([0, 1], [7, 4])  # 7 visits to 4 rows: all once, three of them twice
    twice = {
        tuple(np.flatnonzero(np.bincount(epoch_rows("oversampled", labels, 0, epoch), minlength=11) == 2))
        for epoch in range(30)
    }
    assert twice == set(combinations([7, 8, 9, 10], 3))


def test_kinds_are_those_of_the_configuration():
    assert get_args(StageConfig.model_fields["sampling"].annotation) == KINDS


@settings(deadline=None)
@given(st.integers(0, 200), st.integers(1, 50))
def test_steps_are_full_batches_and_a_rest(n, batch_size):
    rows = np.random.default_rng(n).permutation(n)
    batches = steps(rows, batch_size)
    assert [row for batch in batches for row in batch] == rows.tolist()
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert all(1 <= len(batch) <= batch_size for batch in batches)


@settings(deadline=None)
@given(st.integers(1, 70), st.integers(1, 9), st.integers(1, 9))
def test_shares_are_the_rows_of_the_step_each_once_over_workers_and_micro_batches(n, world_size, micro_batches):
    step_rows = 1000 + np.random.default_rng(n).permutation(n)
    by_rank = [shares(step_rows, rank, world_size, micro_batches) for rank in range(world_size)]
    assert sorted(row for parts in by_rank for part in parts for row in part) == sorted(step_rows)

    # Every rank does as many backward passes, none of them without a row on any rank, and none more than asked for.
    (passes,) = {len(parts) for parts in by_rank}
    assert passes <= micro_batches
    sizes = np.array([[len(part) for part in parts] for parts in by_rank])  # (ranks, micro-batches)
    assert (sizes.sum(axis=0) > 0).all()

    # No worker waits long for another, and none holds more than its share.
    assert np.ptp(sizes) <= 1
    assert np.ptp(sizes.sum(axis=1)) <= 1


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 9))
def test_no_micro_batch_is_dropped_when_there_are_rows_enough(world_size, micro_batches):
    step_rows = np.arange(world_size * micro_batches)
    assert len(shares(step_rows, 0, world_size, micro_batches)) == micro_batches


def test_shares_of_a_case_worked_by_hand():
    # 5 rows over 2 workers in up to 4 micro-batches: one row each, the fourth micro-batch dropped, rank 1 ends empty.
    rows = np.array([10, 11, 12, 13, 14])
    assert [part.tolist() for part in shares(rows, 0, 2, 4)] == [[10], [12], [14]]
    assert [part.tolist() for part in shares(rows, 1, 2, 4)] == [[11], [13], []]


def test_one_worker_with_one_micro_batch_has_the_whole_step():
    (part,) = shares(np.array([4, 2, 9]), rank=0, world_size=1, micro_batches=1)
    assert part.tolist() == [4, 2, 9]


def test_spans_by_hand():
    # A third of 8 steps ends in the third, two thirds in the sixth.
    assert list(stage_spans(2, num_steps=8, evaluations=3)) == [
        Span(0, slice(0, 3), 0, 1 / 3),
        Span(0, slice(3, 6), 1, 2 / 3),
        Span(0, slice(6, 8), 2, 1),
        Span(1, slice(0, 3), 0, 4 / 3),
        Span(1, slice(3, 6), 1, 5 / 3),
        Span(1, slice(6, 8), 2, 2),
    ]
    # Quarters of 3 steps end in step 1, 2, 3 and 3: the third is as far as the fourth.
    assert list(stage_spans(1, 3, 4)) == [
        Span(0, slice(0, 1), 0, 0.25),
        Span(0, slice(1, 2), 1, 0.5),
        Span(0, slice(2, 3), 2, 1),
    ]
    assert list(stage_spans(2, 5, 1)) == [Span(0, slice(0, 5), 0, 1), Span(1, slice(0, 5), 0, 2)]
    assert list(stage_spans(0, 5, 2)) == []


@settings(deadline=None)
@given(st.integers(1, 3), st.integers(1, 3000), st.integers(1, 1000), st.data())
def test_spans_hold_every_step_once_and_continue_from_any_of_their_ends(stage_epochs, num_steps, evaluations, data):
    spans = list(stage_spans(stage_epochs, num_steps, evaluations))
    steps = [(span.epoch, step) for span in spans for step in range(num_steps)[span.steps]]
    assert steps == [(epoch, step) for epoch in range(stage_epochs) for step in range(num_steps)]
    assert len(spans) == stage_epochs * min(num_steps, evaluations)
    seen = [span.epoch + span.steps.stop / num_steps for span in spans]
    for span, share in zip(spans, seen, strict=True):  # an evaluation waits for the end of its step
        assert -1e-9 <= share - span.done <= 1 / num_steps + 1e-9
        assert isinstance(span.done, int) == (span.steps.stop == num_steps)
    assert len({round(span.done, 3) for span in spans}) == len(spans)
    number = data.draw(st.integers(0, len(spans) - 1))
    assert list(stage_spans(stage_epochs, num_steps, evaluations, spans[number].done)) == spans[number + 1 :]


@settings(deadline=None, max_examples=30)
@given(class_lists, st.integers(1, 4), st.data())
def test_the_visits_of_a_class_are_on_average_what_is_said_of_them(labels, num_epochs, data):
    epoch = data.draw(st.integers(0, num_epochs - 1))
    kind = data.draw(st.sampled_from(["original", "oversampled", "class_balanced", "sqrt", "progressive"]))
    labels = np.array(labels)
    num_classes = labels.max() + 1
    expected = sampling.class_visits(kind, np.bincount(labels, minlength=num_classes), epoch, num_epochs)
    counted = [
        np.bincount(labels[epoch_rows(kind, labels, seed, epoch, num_epochs)], minlength=num_classes)
        for seed in range(60)
    ]
    assert np.abs(np.array(counted) - expected).max() <= 1 + 1e-9  # each epoch, to a visit
    assert np.abs(np.mean(counted, axis=0) - expected).max() <= 0.4
