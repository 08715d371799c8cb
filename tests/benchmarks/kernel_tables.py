"""What a stage's arithmetic costs in one process, without Ray: one function for each table.

Three ways of doing the same work on the same rows: this project's, with its real training loop and its real making of
features; the reference habits; plain dynamic padding. Our own numbers in fp32 are those of the plain way to rounding,
which the tests prove, so that only time is looked at here.
"""

import copy
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, Protocol, cast

import dynamic_padding
import numpy as np
import reference_habits
import this_project
import torch
from benchmark_rows import BenchmarkRows
from numpy.typing import NDArray
from tables import DYNAMIC, REFERENCE, Line, Table, rows_per_second, seconds_for
from tailsweep.trainables.config.losses import (
    LDAM,
    BalancedSoftmax,
    CrossEntropy,
    Focal,
    LogitAdjustment,
    WeightedCrossEntropy,
)
from tailsweep.trainables.config.trial import HeadConfig, StageConfig, TopLayers, Trainable
from tailsweep.trainables.data.sampling import epoch_rows, steps
from tailsweep.trainables.execution.backends import CachedVectorsExecution, cached_execution, live_execution
from tailsweep.trainables.execution.feature_plan import FeaturePlan, plan_features
from tailsweep.trainables.execution.feature_store import Features, make_features
from tailsweep.trainables.execution.trunk import TokenTop
from tailsweep.trainables.models.layers import set_trainable
from torch import nn
from turns import Side, Timing, alternate

BATCH_SIZE = 16
LEARNING_RATE = 1e-5
STEPS = 10**6  # of the schedules: it matters only that the learning rate never gets to 0
MEAN = HeadConfig()  # mean-pooled vectors, linear
TOP_LAYER = TopLayers(top_layers=1)
HEAD_ONLY_MEAN = "head only (linear, mean-pooled)"
OURS = "ours"
ALL_QUERIES = "queries of all tokens"
ONE_BY_ONE = "one by one"
STACKS = (1, 8, 64, 128)  # heads
LOSSES = (
    CrossEntropy(name="cross_entropy"),
    WeightedCrossEntropy(name="weighted_cross_entropy"),
    LDAM(name="ldam"),
    Focal(name="focal"),
    BalancedSoftmax(name="balanced_softmax"),
    LogitAdjustment(name="logit_adjustment"),
)
FEW_ROWS = 100  # whose features stand in for those of many
LONG_TURNS = 2  # times a turn, for an epoch of many rows
DYNAMIC_FP32 = f"{DYNAMIC}, fp32"
OTHERS = {REFERENCE: REFERENCE, DYNAMIC: DYNAMIC_FP32}
# What is meant to be reached, at least, in times faster.
CACHE_AT_LEAST = {f"{OURS}, fp32": {REFERENCE: 10.0}, f"{OURS}, bf16": {REFERENCE: 16.0}}
FIRST_QUERIES_AT_LEAST = 1.4
STACKS_AT_LEAST = {f"{OURS}, 1 together": 1.0, f"{OURS}, 64 together": 30.0}
STAGE_TWO_AT_LEAST = {"fp32": {REFERENCE: 8.0, DYNAMIC: 1.7}, "bf16": {REFERENCE: 12.0, DYNAMIC: 1.6}}

Dtype = Literal["fp32", "bf16"]
DTYPES: tuple[Dtype, ...] = ("fp32", "bf16")
Head = Literal["native"] | HeadConfig


class Training(Protocol):
    def steps(self, batches: list[NDArray[np.int64]]) -> float:
        """A step per batch of row numbers; the mean of their losses."""


@dataclass
class Bench:
    """What all tables share: the rows, the model, the device, and how long is measured."""

    rows: BenchmarkRows  # of an epoch
    build: Callable[[Head], nn.Module]  # a classifier on the CPU, sdpa, fp32
    device: torch.device
    cache_rows: int = 500  # that our side puts into features at once
    rounds: int = 5
    turn_seconds: float = 1.5
    growth: tuple[int, ...] = (1_000, 10_000, 60_000)  # rows
    longest_seconds: float = 400.0  # what is forecast to take longer is left out of the growth
    others: dict[str, dict[str, Timing]] = field(default_factory=dict)  # table -> the other ways, for the growth

    def alternate(self, sides: list[Side]) -> dict[str, Timing]:
        return alternate(sides, self.rounds, self.turn_seconds, self.device)

    @property
    def batches(self) -> list[NDArray[np.int64]]:
        """An epoch's batches, in random order: the same for every side."""
        return steps(epoch_rows("original", self.rows.data.train.labels, seed=0, epoch=0), BATCH_SIZE)


def building_the_cache(bench: Bench) -> Table:
    lines = []
    kinds: list[tuple[str, Head, Trainable]] = [("top layer", "native", TOP_LAYER), ("pooled", MEAN, "head")]
    for title, head, trainable in kinds:
        model = bench.build(head).to(bench.device)
        timings = bench.alternate(list(_cache_sides(bench, model, trainable)))
        bench.others[f"cache, {title}"] = {name: timings[name] for name in (REFERENCE, DYNAMIC_FP32)}
        for name, timing in timings.items():
            line = _line(name, rows_per_second(timing), timings, CACHE_AT_LEAST)
            lines.append(replace(line, name=f"{title}: {name}"))
    return Table(
        "Building the cache",
        "rows/s",
        "From texts to the frozen trunk's outputs: what enters the top layer, for all tokens, or one mean-pooled "
        "vector per row. Tokenizing is inside on all sides. Ours also writes its file, and takes "
        f"{min(bench.cache_rows, len(bench.rows.texts)):,} rows at once; the others keep tensors in memory, and take "
        f"batches of {BATCH_SIZE} in the rows' order. The reference is fp32.",
        lines,
    )


def stage_one_epoch(bench: Bench, title: str, head: Head, trainable: Trainable, at_least: float) -> Table:
    """Cached features against the trunk run in every step: by this project, and by the others.

    Args:
        at_least: how many times faster than dynamic padding the cached epoch is meant to be.
    """
    model = bench.build(head)
    with _features(bench, model, trainable) as features:
        cached = _our_side(bench, model, trainable, "fp32", features)
        timings = bench.alternate(
            [
                _reference_side(bench, model, trainable),
                _dynamic_side(bench, model, trainable, "fp32"),
                _our_side(bench, model, trainable, "fp32"),
                cached,
            ]
        )
    bench.others[title] = {name: timings[name] for name in (REFERENCE, DYNAMIC_FP32)}
    num_examples = len(bench.rows.data.train)
    targets = {cached.name: {DYNAMIC: at_least}}
    return Table(
        f"Stage one: an epoch of {num_examples:,} rows, {title}",
        "s/epoch",
        f"Training only, batches of {BATCH_SIZE}, the same rows in each on all sides. Making the features is not in "
        "it. Slow sides are measured on some steps of the epoch, and their time per row is multiplied.",
        [_line(name, seconds_for(num_examples, timing), timings, targets) for name, timing in timings.items()],
    )


def first_queries(bench: Bench) -> Table:
    """What it saves in stage one that the last layer computes queries for the tokens alone that the head reads."""
    model = bench.build("native")
    with _features(bench, model, TOP_LAYER) as features:
        sides = {}
        for name in (ALL_QUERIES, f"{OURS}, queries of first tokens"):
            copied = _copy(bench, model, TOP_LAYER)
            execution = cached_execution(copied, features, bench.rows.data, bench.device, "fp32")
            if name == ALL_QUERIES:
                cast(TokenTop, execution.module).packer.read_all_queries()
            stage, data = _stage(TOP_LAYER), bench.rows.data
            training = this_project.Training(stage, copied, execution, data, STEPS, bench.device)
            sides[name] = _training_side(bench, name, training)
        timings = bench.alternate(list(sides.values()))
    ours = list(timings)[1]
    times = {ours: {ALL_QUERIES: timings[ours].times_faster_than(timings[ALL_QUERIES])}}
    return Table(
        "Stage one: a step of the top layer, pooler and head",
        "s/step",
        f"On cached tokens, fp32, with dropout, batches of {BATCH_SIZE}, the same rows in each on both sides: forward, "
        "backward, clipping, AdamW. The head reads the first token.",
        [
            Line(
                name,
                *seconds_for(BATCH_SIZE, timing),
                times.get(name, {}),
                {ALL_QUERIES: FIRST_QUERIES_AT_LEAST},
                ours=name == ours,
            )
            for name, timing in timings.items()
        ],
    )


def stacked_heads(bench: Bench) -> Table:
    """Heads on cached vectors that train together, against one after another; each with its own rate and loss."""
    model = bench.build(MEAN)
    with _features(bench, model, "head") as features:
        copied = _copy(bench, model, "head")
        execution = cached_execution(copied, features, bench.rows.data, bench.device, "fp32")
        single = this_project.Training(_stage("head"), copied, execution, bench.rows.data, STEPS, bench.device)
        sides = [_training_side(bench, ONE_BY_ONE, single)]
        for number in STACKS:
            copied = _copy(bench, model, "head")
            stages = [
                _stage("head").model_copy(
                    update={"loss": LOSSES[place % len(LOSSES)], "learning_rate": 1e-5 * 1.01**place}
                )
                for place in range(number)
            ]
            stacked = this_project.StackedTraining(stages, copied, features, bench.rows.data)
            side = _training_side(bench, f"{OURS}, {number} together", stacked)
            sides.append(replace(side, unit_rows=number * side.unit_rows))
        timings = bench.alternate(sides)
    num_examples = len(bench.rows.data.train)
    lines = []
    for name, timing in timings.items():
        times = {} if name == ONE_BY_ONE else {ONE_BY_ONE: timing.times_faster_than(timings[ONE_BY_ONE])}
        at_least = {ONE_BY_ONE: STACKS_AT_LEAST[name]} if name in STACKS_AT_LEAST else {}
        rates = (rate / num_examples for rate in rows_per_second(timing))
        lines.append(Line(name, *rates, times, at_least, ours=name != ONE_BY_ONE))
    return Table(
        f"Stage one: epochs of {num_examples:,} rows for heads on one cached vector per row",
        "epochs of a trial per second",
        f"Training only, fp32, with dropout, batches of {BATCH_SIZE}, the same rows in each on all sides: forward, "
        "backward, clipping, AdamW. Six losses in turn.",
        lines,
    )


def stage_two_step(bench: Bench) -> Table:
    model = bench.build("native")
    sides = [_reference_side(bench, model, "all")]
    targets = {}
    for dtype in DTYPES:
        ours = _our_side(bench, model, "all", dtype)
        sides += [_dynamic_side(bench, model, "all", dtype), ours]
        targets[ours.name] = STAGE_TWO_AT_LEAST[dtype]
    timings = bench.alternate(sides)
    return Table(
        "Stage two: a step",
        "s/step",
        f"Everything trains, with dropout, batches of {BATCH_SIZE}, the same rows in each on all sides: forward, "
        "backward, clipping, AdamW. The reference is fp32.",
        [_line(name, seconds_for(BATCH_SIZE, timing), timings, targets) for name, timing in timings.items()],
    )


def _line(
    name: str,
    values: tuple[float, float, float],
    timings: Mapping[str, Timing],
    targets: Mapping[str, Mapping[str, float]],
) -> Line:
    """Against the reference, and against dynamic padding of the same number format."""
    dynamic = f"{DYNAMIC}, {name.rpartition(', ')[2]}"
    others = {REFERENCE: REFERENCE} if name == dynamic else {REFERENCE: REFERENCE, DYNAMIC: dynamic}
    if name == REFERENCE:
        others = {}
    times = {shown: timings[name].times_faster_than(timings[other]) for shown, other in others.items()}
    return Line(name, *values, times, targets.get(name, {}), ours=name.startswith(OURS))


def growth(bench: Bench, make_rows: Callable[[int], BenchmarkRows]) -> list[Table]:
    """How the cache and an epoch on it grow with the rows. The other ways' time is that of their tables, by the row."""
    return [_cache_growth(bench, make_rows), _epoch_growth(bench, make_rows)]


def _cache_growth(bench: Bench, make_rows: Callable[[int], BenchmarkRows]) -> Table:
    lines: list[Line] = []
    remark, per_row = "", 0.0
    for count in bench.growth:
        if count * per_row > bench.longest_seconds:
            remark = f"{count:,} rows were left out: they would take about {count * per_row:,.0f} s."
            break
        rows, model = make_rows(count), bench.build(MEAN).to(bench.device)
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            plan = _plan(model, "head", rows, "fp32", bench.device)
            make_features(plan, model, rows.data, Path(folder), bench.device)
            seconds = time.perf_counter() - began
        num_made = len(rows.data.train) + len(rows.data.validation)
        per_row = seconds / num_made
        lines.append(
            _growth_line(f"{num_made:,} rows", (seconds, seconds, seconds), num_made, bench.others["cache, pooled"])
        )
    return Table(
        "Growth: the cache of pooled vectors, fp32",
        "s",
        "All that a sweep does once the rows are tokenized: the probes, the entry's key, the trunk's outputs of train "
        "and validation, writing, checking, opening. Measured once each. Against the others' time per row above.",
        lines,
        remark,
    )


def _epoch_growth(bench: Bench, make_rows: Callable[[int], BenchmarkRows]) -> Table:
    lines = []
    with _features(replace(bench, rows=make_rows(FEW_ROWS)), bench.build(MEAN), "head") as few:
        for count in bench.growth:
            rows, model = make_rows(count), bench.build(MEAN)
            num_examples = len(rows.texts)
            repeated = replace(few, train=few.train[torch.arange(num_examples) % len(few.train)])
            larger = replace(
                bench, rows=rows, turn_seconds=LONG_TURNS * bench.turn_seconds, rounds=min(3, bench.rounds)
            )
            model = _copy(larger, model, "head")
            # Not by cached_execution, whose probe would find that these are other rows' features.
            execution = CachedVectorsExecution(model, repeated, rows.data, bench.device)
            training = this_project.Training(_stage("head"), model, execution, rows.data, STEPS, bench.device)
            (timing,) = larger.alternate([_training_side(larger, "cached", training)]).values()
            values = seconds_for(num_examples, timing)
            lines.append(_growth_line(f"{num_examples:,} rows", values, num_examples, bench.others[HEAD_ONLY_MEAN]))
    return Table(
        f"Growth: a cached epoch, {HEAD_ONLY_MEAN}",
        "s/epoch",
        f"As in its table above, on the features of {FEW_ROWS} rows repeated, which cost as much as any. Against the "
        "others' time per row above.",
        lines,
        "The top layer's epoch was left out: its features hold every token's state, 22 kB a row for MiniLM.",
    )


def _growth_line(name: str, values: tuple[float, float, float], rows: int, others: Mapping[str, Timing]) -> Line:
    times = {shown: rows * others[other].median / values[0] for shown, other in OTHERS.items()}
    return Line(name, *values, times, ours=True)


def _cache_sides(bench: Bench, model: nn.Module, trainable: Trainable) -> Iterator[Side]:
    rows, length, device = bench.rows, bench.rows.max_length, bench.device
    plan = _plan(model, trainable, rows, "fp32", device)
    encoder = cast(nn.Module, model.base_model)
    eager = cast(nn.Module, reference_habits.as_eager(copy.deepcopy(model)).base_model)
    num_batches = len(rows.texts) // BATCH_SIZE
    count = min(bench.cache_rows, len(rows.texts))

    def side(name: str, make: Callable[[list[str]], object]) -> Side:
        return Side(
            name, lambda first, stop: make(rows.texts[first * BATCH_SIZE : stop * BATCH_SIZE]), num_batches, BATCH_SIZE
        )

    yield side(REFERENCE, partial(reference_habits.features, eager, rows.tokenizer, length, plan.split_point, device))
    for dtype in DTYPES:
        make = partial(dynamic_padding.features, encoder, rows.tokenizer, length, plan.split_point, dtype, device)
        yield side(f"{DYNAMIC}, {dtype}", make)
    for dtype in DTYPES:
        make_ours = partial(this_project.features, replace(plan, dtype=dtype), model, rows, count, device)
        yield Side(f"{OURS}, {dtype}", lambda first, stop, make=make_ours: make(), 1, count)  # type: ignore[misc]


def _reference_side(bench: Bench, model: nn.Module, trainable: Trainable) -> Side:
    model = reference_habits.as_eager(_copy(bench, model, trainable))
    rows = bench.rows
    training = reference_habits.Training(
        model, rows.texts, rows.data.train.labels, rows.tokenizer, rows.max_length, LEARNING_RATE, STEPS, bench.device
    )
    return _training_side(bench, REFERENCE, training)


def _dynamic_side(bench: Bench, model: nn.Module, trainable: Trainable, dtype: Dtype) -> Side:
    model = _copy(bench, model, trainable)
    training = dynamic_padding.Training(model, bench.rows.data.train, LEARNING_RATE, STEPS, dtype, bench.device)
    return _training_side(bench, f"{DYNAMIC}, {dtype}", training)


def _our_side(
    bench: Bench, model: nn.Module, trainable: Trainable, dtype: Dtype, features: Features | None = None
) -> Side:
    """On cached features, or on the live model; the side's name says which execution path that was."""
    model = _copy(bench, model, trainable)
    data, device = bench.rows.data, bench.device
    if features is None:
        execution = live_execution(model, data, device, dtype)
        name = f"{OURS}, {'' if trainable == 'all' else 'live trunk '}{execution.description}, {dtype}"
    else:
        execution = cached_execution(model, features, data, device, dtype)
        name = f"{OURS}, {execution.description}, {dtype}"
        if not execution.description.startswith("cached"):
            raise ValueError(f"the features are not used: {execution.description}")
    training = this_project.Training(_stage(trainable, dtype), model, execution, data, STEPS, device)
    return _training_side(bench, name, training)


def _training_side(bench: Bench, name: str, training: Training) -> Side:
    """Its units are the epoch's steps, without a last one that has fewer rows."""
    batches = [batch for batch in bench.batches if len(batch) == BATCH_SIZE]
    return Side(name, lambda first, stop: training.steps(batches[first:stop]), len(batches), BATCH_SIZE)


def _copy(bench: Bench, model: nn.Module, trainable: Trainable) -> nn.Module:
    copied = copy.deepcopy(model).to(bench.device)
    set_trainable(copied, trainable)
    return copied


def _stage(trainable: Trainable, precision: Dtype = "fp32") -> StageConfig:
    return StageConfig(trainable=trainable, batch_size=BATCH_SIZE, learning_rate=LEARNING_RATE, precision=precision)


@contextmanager
def _features(bench: Bench, model: nn.Module, trainable: Trainable) -> Iterator[Features]:
    """Of the rows of an epoch, fp32, as a sweep would have them."""
    model = copy.deepcopy(model).to(bench.device)
    with tempfile.TemporaryDirectory() as folder:
        plan = _plan(model, trainable, bench.rows, "fp32", bench.device)
        yield make_features(plan, model, bench.rows.data, Path(folder), bench.device)


def _plan(
    model: nn.Module, trainable: Trainable, rows: BenchmarkRows, dtype: Dtype, device: torch.device
) -> FeaturePlan:
    plan = plan_features(model, _stage(trainable), rows.data, dtype, device)
    if isinstance(plan, str):
        raise ValueError(f"no features can be made: {plan}")
    return plan
