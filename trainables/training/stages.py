"""The two stages of a trial: the heart of this project, and free of Ray.

Each stage is ordinary fine-tuning with a fresh AdamW and a fresh linear schedule, sized by the rows it really visits;
what makes it stage one or stage two is only its :class:`StageConfig`. After every epoch, or span of one where
``evaluations_per_epoch`` is above 1, the validation rows are scored and a checkpoint is written. The test rows are
never used here.

Everything random is drawn from where in the trial it is used: the order of rows from (seed, stage, epoch), dropout from
these and the span of the epoch. So a trial that resumes from a checkpoint is the same trial.
"""

import math
import tempfile
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tailsweep.trainables import report_keys
from tailsweep.trainables.config.trial import StageConfig, TrialConfig
from tailsweep.trainables.data.sampling import shares, stage_spans
from tailsweep.trainables.data.tokenized import PreparedData
from tailsweep.trainables.execution.backends import Execution, cached_execution, live_execution
from tailsweep.trainables.execution.feature_store import Features
from tailsweep.trainables.execution.last_layer import last_layer
from tailsweep.trainables.execution.packing import Packing
from tailsweep.trainables.execution.sparse_embeddings import SparseEmbeddingTraining
from tailsweep.trainables.models.layers import set_train_mode, set_trainable
from tailsweep.trainables.report_keys import STAGES, Stage
from tailsweep.trainables.training.checkpoint import (
    Progress,
    copy_parameters,
    load_optimizer,
    load_parameters,
    load_progress,
    load_stage_one_end,
    save_checkpoint,
)
from tailsweep.trainables.training.early_stopping import stage_is_over
from tailsweep.trainables.training.head_init import start_at_class_means
from tailsweep.trainables.training.losses import LossSchedule, build_losses
from tailsweep.trainables.training.metrics import Confusion
from tailsweep.trainables.training.optimizer import LinearSchedule, adamw, rate_depths, set_learning_rate
from tailsweep.trainables.training.regularization import Objective
from tailsweep.trainables.training.runtime import Report, Runtime
from tailsweep.trainables.training.step_plan import StepPlan
from tailsweep.trainables.training.weight_average import WeightAverage
from torch import Tensor, nn

STEPS_BETWEEN_LOSS_CHECKS = 50  # reading the loss waits for the device


class TrainingDiverged(ArithmeticError):
    """The loss or a score is not a finite number; the trial fails, the sweep continues."""


@dataclass(frozen=True, eq=False)
class TrialRun:
    """What both stages of a trial use, apart from its model."""

    config: TrialConfig
    data: PreparedData
    runtime: Runtime  # the worker it runs on, and the receiver of its reports
    features: Features | None = None  # the cached outputs of stage one's frozen trunk; None: the trunk is run live
    metric: str = report_keys.DEFAULT_METRIC  # key of the score that ``patience`` waits for


@dataclass(frozen=True, eq=False)
class StageRun:
    """What one stage is trained with, the same from its first step to its last."""

    config: StageConfig
    data: PreparedData
    model: nn.Module  # on the runtime's device; the parameters that train have been set
    execution: Execution  # computes the model's logits
    runtime: Runtime
    seed: int  # the trial's
    metric: str = report_keys.DEFAULT_METRIC  # key of the score that ``patience`` waits for
    stage_one_end: Mapping[str, Tensor] | None = None  # of stage two, the parameters that stage one ended with


@dataclass(frozen=True, eq=False)
class Optimization:
    """What every optimizer step of a stage uses."""

    model: nn.Module  # the execution path's module, wrapped for data-parallel training
    losses: LossSchedule
    optimizer: torch.optim.Optimizer
    schedule: LinearSchedule
    objective: Objective
    average: WeightAverage


def run_two_stages(run: TrialRun, model: nn.Module, start: Path | None = None) -> None:
    """Train ``model`` through both stages, reporting after every epoch, or span of one.

    Args:
        run: The trial.
        model: The model as ``build_classifier`` returns it for the trial's configuration and seed.
        start: A checkpoint folder to resume from. Its reports are published again first, without a checkpoint: the
            last of them may have been lost.

    Raises:
        TrainingDiverged: The loss or a score is not finite.
    """
    config, data, runtime = run.config, run.data, run.runtime
    progress = Progress()
    model = runtime.place(model)
    stage_one_end: Mapping[str, Tensor] | None = None
    if start is not None:
        progress = load_progress(start)
        load_parameters(start, model)
        stage_one_end = load_stage_one_end(start)
        for report in progress.reports:
            runtime.report(report, None)
    trained: set[str] = set()  # names of the parameters that some stage has trained so far
    for stage, stage_config in ((Stage.ONE, config.stage_one), (Stage.TWO, config.stage_two)):
        if stage_config.epochs == 0:
            continue
        if stage == Stage.TWO and progress.stage == Stage.ONE and trained:
            stage_one_end = {name: p.clone() for name, p in copy_parameters(model, trained).items()}
        set_trainable(model, stage_config.trainable)
        trained |= {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        if STAGES.index(stage) < STAGES.index(progress.stage):
            continue
        if stage != progress.stage:
            progress, start = Progress(stage, 0, progress.reports), None
        if _is_over(stage_config, progress, run.metric):
            continue
        if stage == Stage.ONE and run.features is not None:
            execution = cached_execution(model, run.features, data, runtime.device, stage_config.precision)
        else:
            execution = live_execution(model, data, runtime.device, stage_config.precision)
        if config.model.head_init == "class_means" and not progress.reports:
            _, layer = last_layer(model, data.train, runtime.device, "model.head_init")
            start_at_class_means(layer, execution, data, stage_config.training_split, config.seed)
        end = stage_one_end if stage == Stage.TWO else None
        stage_run = StageRun(stage_config, data, model, execution, runtime, config.seed, run.metric, end)
        progress = run_stage(stage_run, progress, trained, start)


def stage_one_is_left(config: TrialConfig, start: Path | None, metric: str = report_keys.DEFAULT_METRIC) -> bool:
    """Return whether a trial that resumes from ``start`` still has epochs of stage one to train."""
    progress = Progress() if start is None else load_progress(start)
    return progress.stage == Stage.ONE and not _is_over(config.stage_one, progress, metric)


def run_stage(run: StageRun, progress: Progress, trained: set[str], start: Path | None = None) -> Progress:
    """Train one stage from ``progress`` to its end.

    Args:
        run: the stage.
        progress: what is done of the trial.
        trained: names of the parameters that this stage or an earlier one trains; a checkpoint holds them.
        start: the checkpoint ``progress`` was read from, if it lies within this stage.

    Returns:
        The progress at the stage's end, with every report.
    """
    config, data, model, runtime = run.config, run.data, run.model, run.runtime
    stage_index = STAGES.index(progress.stage)
    split = config.training_split
    # An average of decaying weights lags behind them, for words without a row as well.
    lagging = config.ema_decay is not None and config.weight_decay > 0
    depth_of = rate_depths(model, config)
    words = SparseEmbeddingTraining(model, run.execution, data, split, whole=lagging)
    with words.active():  # the optimizer and the wrapper must see the parameters that the steps train
        optimizer = adamw(model, config, depth_of)
        if start is not None and progress.epoch > 0:
            load_optimizer(start, optimizer)
        wrapped = runtime.wrap(run.execution.module)
    rows_seed = derived_seed(run.seed, stage_index)
    plan = StepPlan(config, data.rows_of(split).labels, data.class_counts_of(split), rows_seed)
    losses = build_losses(config.loss, plan.visits(), plan.steps_per_pass, plan.num_steps)
    schedule = LinearSchedule(config.learning_rate, plan.num_steps, config.warmup_fraction)
    asked = config.reads_vectors
    layer = None if asked is None else last_layer(model, data.train, runtime.device, f"{progress.stage}.{asked}")[1]
    average = WeightAverage(optimizer, config.ema_decay)
    optimization = Optimization(wrapped, losses, optimizer, schedule, Objective(config, layer), average)
    for span in stage_spans(config.epochs, plan.steps_per_epoch, config.evaluations_per_epoch, progress.epoch):
        began = time.perf_counter()
        later = [span.after] if span.after else []  # the first span draws what a whole epoch would
        torch.manual_seed(derived_seed(run.seed, stage_index, span.epoch, runtime.rank, *later))
        where = f"{progress.stage} epoch {report_keys.shown_epochs(span.done)}"
        set_train_mode(model, config.frozen_dropout)
        before = span.epoch * plan.steps_per_epoch
        first_step = before + span.steps.start
        span_steps = plan.rows(first_step, before + span.steps.stop)
        with words.active(optimizer), average.training():
            train_loss = train_span(run, optimization, span_steps, first_step, where)
        report: dict[str, str | int | float | None] = {
            report_keys.STAGE: progress.stage.value,
            report_keys.EPOCH: span.done,
            report_keys.TRAIN_LOSS: train_loss,
            report_keys.LEARNING_RATE: schedule(first_step + len(span_steps) - 1),
            report_keys.ROWS: sum(map(len, span_steps)),
            report_keys.EXECUTION: run.execution.description + words.description,
            **evaluate(run.execution, data, runtime, report_keys.VALIDATION, config.precision),
        }
        _check_finite(report, where, config)
        if progress.stage == Stage.ONE:
            report[report_keys.STAGE_ONE_EPOCH] = span.done
        report[report_keys.SECONDS] = time.perf_counter() - began
        progress = replace(progress, epoch=span.done, reports=(*progress.reports, report))
        over = _is_over(config, progress, run.metric)  # on every worker alike: scores are of counts summed over them
        _report_with_checkpoint(run, progress, trained, None if over else optimizer)
        if over:
            break
    return progress


def evaluate(
    execution: Execution, data: PreparedData, runtime: Runtime, split: str, precision: str = "fp32"
) -> dict[str, float | None]:
    """Score a split in eval mode, each worker its share of the batches, from confusion counts summed over workers."""
    execution.module.eval()
    labels = getattr(data, split).labels
    confusion = Confusion(len(data.label_names), runtime.device)
    with torch.inference_mode(), autocast(runtime.device, precision):
        for batch in execution.evaluation_batches(split)[runtime.rank :: runtime.world_size]:
            logits = execution.module(*execution.inputs(split, batch))
            confusion.update(logits.float(), _labels(labels, batch, runtime.device))
    confusion.load(runtime.sum(confusion.state()))
    return confusion.scores(data.class_counts, data.label_names, split)


def train_span(
    run: StageRun, optimization: Optimization, span_steps: list[np.ndarray], first_step: int, where: str
) -> float:
    """Train an epoch, or a span of one.

    Args:
        run: the stage.
        optimization: what its steps share.
        span_steps: the row numbers of each step, over all workers.
        first_step: the number of the span's first step within the stage, from 0.
        where: names the span in messages.

    Returns:
        The mean over the steps of the step's global weighted mean loss.

    Raises:
        TrainingDiverged: the loss is not finite.
    """
    config, execution, runtime = run.config, run.execution, run.runtime
    model, optimizer, objective = optimization.model, optimization.optimizer, optimization.objective
    parameters = [p for p in model.parameters() if p.requires_grad]
    split = config.training_split
    labels = run.data.rows_of(split).labels
    total = torch.zeros((), device=runtime.device)
    for number, step_rows in enumerate(span_steps):
        set_learning_rate(optimizer, optimization.schedule(first_step + number))
        loss = optimization.losses(first_step + number)
        class_weights = loss.class_weights.numpy()
        # Weighted losses are means over weights: every part counts by its share of the whole step's weight. So the
        # sum over workers and micro-batches is the weighted mean over the step.
        step_weight = float(class_weights[labels[step_rows]].sum())
        micro_batches = shares(step_rows, runtime.rank, runtime.world_size, config.gradient_accumulation)
        parts = [part for micro_batch in micro_batches for part in execution.parts(split, micro_batch)]
        for index, part in enumerate(parts):
            share = float(class_weights[labels[part]].sum()) / step_weight
            if len(part) == 0:  # a worker without rows still takes part in the exchange of gradients
                part = step_rows[:1]
            with _gradients_exchanged(model, last=index + 1 == len(parts)):
                inputs = execution.inputs(split, part.repeat(objective.views))

                def compute(inputs: tuple[Tensor | Packing, ...] = inputs) -> Tensor:
                    with autocast(runtime.device, config.precision):
                        logits: Tensor = model(*inputs)
                    return logits

                part_loss = objective(compute, _labels(labels, part, runtime.device), loss) * share
                # Data-parallel training takes the mean of the workers' gradients; the shares want their sum.
                (part_loss * runtime.world_size).backward()  # type: ignore[no-untyped-call]
            total += part_loss.detach()
        nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.step()
        optimization.average.update(first_step + number)
        optimizer.zero_grad(set_to_none=True)
        if (number + 1) % STEPS_BETWEEN_LOSS_CHECKS == 0 and not math.isfinite(total.item()):
            raise TrainingDiverged(
                describe_divergence("training loss", total.item(), f"{where}, step {number + 1}", config)
            )
    return float(runtime.sum(total).item()) / len(span_steps)


def _is_over(config: StageConfig, progress: Progress, metric: str) -> bool:
    return stage_is_over(progress.stage, progress.reports, metric, config.epochs, config.patience)


def _labels(labels: np.ndarray, batch: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(labels[batch]).to(device, non_blocking=True)


def _report_with_checkpoint(
    run: StageRun, progress: Progress, trained: set[str], optimizer: torch.optim.Optimizer | None
) -> None:
    """Publish the last report of the progress, from the first worker with a checkpoint."""
    report = progress.reports[-1]
    if run.runtime.rank != 0:
        run.runtime.report(report, None)
        return
    with tempfile.TemporaryDirectory(prefix="tailsweep-") as temporary:
        folder = Path(temporary) / progress.name
        folder.mkdir()
        save_checkpoint(folder, progress, run.model, trained, optimizer, run.stage_one_end)
        run.runtime.report(report, folder)


def _check_finite(report: Report, where: str, config: StageConfig) -> None:
    for key, value in report.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise TrainingDiverged(describe_divergence(key, value, where, config))


def describe_divergence(quantity: str, value: float, where: str, config: StageConfig) -> str:
    """Describe a loss or score that is no finite number, and what it likely comes of."""
    return (
        f"{quantity} is {value} in {where}, but must be finite: learning_rate {config.learning_rate:g} is likely too "
        f"high for trainable {config.trainable}, loss {config.loss.name}, precision {config.precision}"
    )


def derived_seed(*parts: int) -> int:
    """Return one number from several, well mixed, so that neighbouring seeds and epochs share nothing."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context in which a stage of this precision computes logits."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def _gradients_exchanged(model: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Workers exchange gradients once per step, in the backward pass of its last micro-batch."""
    if last or not isinstance(model, nn.parallel.DistributedDataParallel):
        return nullcontext()
    exchange_later: AbstractContextManager[None] = model.no_sync()
    return exchange_later
