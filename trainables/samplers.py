"""Which rows an epoch visits and in what order, which of them are whose, and where a stage pauses to be evaluated.

Row numbers only: no data, no tensors, no torch. Rank and world size are plain integers. Everything follows from
(seed, epoch), so every worker computes the whole order for itself and takes its share; nothing is sent.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np

Rows = Literal["original", "oversampled", "class_balanced", "augmented"]


def epoch_rows(kind: Rows, labels: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The rows of one epoch, in the order of their visit.

    Args:
        kind: ``original``: every row once. ``augmented``: the same; it is the rows that differ, see
            ``StageConfig.training_split``. ``oversampled``: every class as often as the largest one, its rows repeated.
            ``class_balanced``: as many visits as there are rows, the classes as equal as that allows (the left-over
            visits go to classes drawn anew each epoch). The visits of two rows of one class differ by one at most.
        labels: (n,) class of each row.
        seed: not negative.
        epoch: from 0.

    Returns:
        int64 indices into ``labels``, shuffled; ``num_rows`` of them.
    """
    rng = np.random.default_rng((seed, epoch))
    if kind in ("original", "augmented"):
        return rng.permutation(len(labels))
    class_counts = np.unique(labels, return_counts=True)[1]  # of the classes with rows
    rows_by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(class_counts)[:-1])
    if kind == "oversampled":
        visits = np.full(len(class_counts), class_counts.max())
    else:
        visits = np.full(len(class_counts), len(labels) // len(class_counts))
        visits[rng.permutation(len(class_counts))[: len(labels) % len(class_counts)]] += 1
    drawn = [_repeat_to(rows, count, rng) for rows, count in zip(rows_by_class, visits, strict=True)]
    return rng.permutation(np.concatenate(drawn))


def num_rows(kind: Rows, class_counts: np.ndarray) -> int:
    """Rows that an epoch visits, where ``class_counts`` (C,) rows are in each class."""
    if kind == "oversampled":
        return int(class_counts.max() * np.count_nonzero(class_counts))
    return int(class_counts.sum())


def steps(rows: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """The rows of each optimiser step, in order: ``batch_size`` of them, in the last step what is left."""
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]


class Span(NamedTuple):
    """What a stage trains between two reports: some of an epoch's steps."""

    epoch: int  # that it is of, from 0
    steps: slice  # of the epoch's
    after: int  # how many of the epoch's evaluations were due before it; 0: it starts the epoch
    done: int | float  # epochs of the stage that are done at its end; an int where whole


def stage_spans(epochs: int, num_steps: int, evaluations: int, done: float = 0) -> Iterator[Span]:
    """What is left of a stage when ``done`` of its epochs are done, in order.

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
    """This worker's micro-batches of one optimiser step.

    Over all workers each row of the step occurs exactly once, and sizes differ by one row at most. The number of
    micro-batches is the same on every rank, because data-parallel workers must do the same number of backward passes:
    ``micro_batches``, less those that would be empty on every rank. In a step with few rows a share may therefore be
    empty on some ranks, in its last micro-batch.
    """
    assert 0 <= rank < world_size, (rank, world_size)
    parts = np.array_split(step_rows, micro_batches * world_size)  # the empty ones come last
    shared = range(0, min(len(step_rows), len(parts)), world_size)  # first part of each micro-batch that has rows
    return [parts[first + rank] for first in shared]


def _repeat_to(rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` of ``rows``: all of them as often as they fit whole, then some without replacement."""
    whole, rest = divmod(count, len(rows))
    return np.concatenate([np.tile(rows, whole), rng.permutation(rows)[:rest]])
