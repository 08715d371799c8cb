"""Which rows an epoch visits and in what order, which of them are whose, and where a stage pauses to be evaluated.

Row numbers only: no data, no tensors, no torch. Rank and world size are plain integers. Everything follows from
(seed, epoch), so every worker computes the whole order for itself and takes its share; nothing is sent.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np

Rows = Literal["original", "oversampled", "class_balanced", "sqrt", "progressive", "augmented"]


def epoch_rows(kind: Rows, labels: np.ndarray, seed: int, epoch: int, num_epochs: int = 1) -> np.ndarray:
    """Return the rows of one epoch, in the order of their visit.

    Visits are counts, not draws: those of two rows of one class differ by one at most, and no row of a class comes
    again before all have come.

    Args:
        kind: ``original``: every row once. ``augmented``: the same; it is the rows that differ, see
            ``StageConfig.training_split``. ``oversampled``: every class as often as the largest one, its rows repeated.
            The others make as many visits as there are rows. ``class_balanced``: the classes as equal as that allows
            (the left-over visits go to classes drawn anew each epoch). ``sqrt``: a class of n rows in proportion to
            n^(1/2). ``progressive``: from ``original`` in the first epoch to ``class_balanced`` in the last, in between
            the shares that lie as far between the two (Kang et al. 2020, arXiv 1910.09217); a single epoch is the last.
        labels: (n,) class of each row.
        seed: not negative.
        epoch: from 0.
        num_epochs: of the stage; what ``progressive`` goes by.

    Returns:
        int64 indices into ``labels``, shuffled; ``num_rows`` of them.
    """
    rng = np.random.default_rng((seed, epoch))
    way = _way(epoch, num_epochs)
    if kind == "progressive" and way in (0, 1):
        kind = "original" if way == 0 else "class_balanced"
    if kind in ("original", "augmented"):
        return rng.permutation(len(labels))
    class_counts = np.unique(labels, return_counts=True)[1]  # of the classes with rows
    rows_by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(class_counts)[:-1])
    if kind == "oversampled":
        visits = np.full(len(class_counts), class_counts.max())
    elif kind == "class_balanced":
        visits = np.full(len(class_counts), len(labels) // len(class_counts))
        visits[rng.permutation(len(class_counts))[: len(labels) % len(class_counts)]] += 1
    elif kind == "sqrt":
        visits = _apportioned(np.sqrt(class_counts), len(labels), rng)
    else:
        visits = _apportioned((1 - way) * class_counts + way * class_counts.mean(), len(labels), rng)
    drawn = [_repeat_to(rows, count, rng) for rows, count in zip(rows_by_class, visits, strict=True)]
    return rng.permutation(np.concatenate(drawn))


def num_rows(kind: Rows, class_counts: np.ndarray) -> int:
    """Rows that an epoch visits, where ``class_counts`` (C,) rows are in each class."""
    if kind == "oversampled":
        return int(class_counts.max() * np.count_nonzero(class_counts))
    return int(class_counts.sum())


def class_visits(kind: Rows, class_counts: np.ndarray, epoch: int, num_epochs: int) -> np.ndarray:
    """Return how often an epoch visits each class, (C,), on average over what is drawn.

    Args:
        kind: as for :func:`epoch_rows`.
        class_counts: (C,), the rows of each class.
        epoch: from 0.
        num_epochs: of the stage.

    Example:
        >>> class_visits("class_balanced", np.array([8, 2]), 0, 1).tolist()
        [5.0, 5.0]
    """
    if kind in ("original", "augmented"):
        return class_counts
    has_rows = class_counts > 0
    total, balanced = class_counts.sum(), has_rows * (class_counts.sum() / has_rows.sum())
    if kind == "oversampled":
        return np.asarray(has_rows * class_counts.max())
    if kind == "class_balanced":
        return np.asarray(balanced)
    if kind == "sqrt":
        return np.asarray(np.sqrt(class_counts) * (total / np.sqrt(class_counts).sum()))
    way = _way(epoch, num_epochs)
    return np.asarray((1 - way) * class_counts + way * balanced)


def _way(epoch: int, num_epochs: int) -> float:
    """Return how far ``progressive`` has gone in an epoch, from 0 to 1; a single epoch is the last."""
    return 1.0 if epoch + 1 >= num_epochs else epoch / (num_epochs - 1)


def steps(rows: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Return the rows of each optimizer step, in order: ``batch_size`` of them, in the last step the remainder."""
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]


class Span(NamedTuple):
    """What a stage trains between two reports: some of an epoch's steps."""

    epoch: int  # that it is of, from 0
    steps: slice  # of the epoch's
    after: int  # how many of the epoch's evaluations were due before it; 0: it starts the epoch
    done: int | float  # epochs of the stage that are done at its end; an int where whole


def stage_spans(epochs: int, num_steps: int, evaluations: int, done: float = 0) -> Iterator[Span]:
    """Yield what remains of a stage when ``done`` of its epochs are done, in order.

    Args:
        epochs: of the stage.
        num_steps: of each epoch.
        evaluations: of each epoch; the i-th of n comes after ceil(i / n * num_steps) steps. Of those that would come
            after the same step only the last does.
        done: as an earlier span said it.
    """
    ends = {math.ceil(num_steps * i / evaluations): i for i in range(1, evaluations + 1)}
    for epoch in range(epochs):
        for (first, after), (end, i) in pairwise([(0, 0), *ends.items()]):
            if epoch * evaluations + after >= round(done * evaluations):
                share = epoch + 1 if i == evaluations else (epoch * evaluations + i) / evaluations
                yield Span(epoch, slice(first, end), after, share)


def shares(step_rows: np.ndarray, rank: int, world_size: int, micro_batches: int) -> list[np.ndarray]:
    """Return this worker's micro-batches of one optimizer step.

    Over all workers each row of the step occurs exactly once, and sizes differ by one row at most. The number of
    micro-batches is the same on every rank, because data-parallel workers must do the same number of backward passes:
    ``micro_batches``, less those that would be empty on every rank. In a step with few rows a share may therefore be
    empty on some ranks, in its last micro-batch.
    """
    assert 0 <= rank < world_size, (rank, world_size)
    parts = np.array_split(step_rows, micro_batches * world_size)  # the empty ones come last
    shared = range(0, min(len(step_rows), len(parts)), world_size)  # first part of each micro-batch that has rows
    return [parts[first + rank] for first in shared]


def _apportioned(shares: np.ndarray, total: int, rng: np.random.Generator) -> np.ndarray:
    """``total`` visits in proportion to ``shares``, each class's part rounded down or up.

    Which are rounded up is drawn, each class with the chance of what its part is over, so that over many epochs the
    proportions are exact (systematic sampling: the parts are laid end to end in random order, and a comb of step 1
    dropped on them).
    """
    order = rng.permutation(len(shares))
    ends = np.floor(np.cumsum(shares[order]) * (total / shares.sum()) + rng.random()).astype(np.int64)
    ends[-1] = total  # whatever the sums were rounded to
    visits = np.empty(len(shares), np.int64)
    visits[order] = np.diff(ends, prepend=0)
    return visits


def _repeat_to(rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` of ``rows``: all of them as often as they fit whole, then some without replacement."""
    whole, rest = divmod(count, len(rows))
    return np.concatenate([np.tile(rows, whole), rng.permutation(rows)[:rest]])
