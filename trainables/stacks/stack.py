"""Stage one of many trials that train a linear head on the same cached vectors: every step is one for all of them.

The trials share examples, model, seed and batch size, so that a step's rows and dropout are the same for each; loss,
learning rate, epochs and all else that ``stack_key`` leaves out are each trial's own. What a trial learns here is what
``training/stages.py`` would teach it alone, to rounding, with the same reports and checkpoints.
"""

import json
import math
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tailsweep.trainables import report_keys
from tailsweep.trainables.config.trial import StageConfig, TrialConfig
from tailsweep.trainables.data.sampling import Span, stage_spans
from tailsweep.trainables.data.tokenized import PreparedData
from tailsweep.trainables.errors import ModelError
from tailsweep.trainables.execution.backends import Execution, cached_execution
from tailsweep.trainables.execution.feature_store import Features
from tailsweep.trainables.execution.last_layer import last_layer, split_inputs, trains_last_layer_alone
from tailsweep.trainables.models.layers import set_train_mode, set_trainable
from tailsweep.trainables.report_keys import Stage
from tailsweep.trainables.stacks.stack_checkpoint import StackState, save_stack
from tailsweep.trainables.stacks.stacked_heads import StackedHeads
from tailsweep.trainables.stacks.stacked_loss import StackedLoss
from tailsweep.trainables.training.checkpoint import checkpoint_name
from tailsweep.trainables.training.early_stopping import stage_is_over
from tailsweep.trainables.training.head_init import start_at_class_means
from tailsweep.trainables.training.losses import Loss, LossSchedule, build_losses
from tailsweep.trainables.training.metrics import scores_of_many
from tailsweep.trainables.training.optimizer import LinearSchedule
from tailsweep.trainables.training.runtime import Report
from tailsweep.trainables.training.stages import (
    STEPS_BETWEEN_LOSS_CHECKS,
    TrainingDiverged,
    autocast,
    derived_seed,
    describe_divergence,
)
from tailsweep.trainables.training.step_plan import StepPlan
from torch import Tensor, nn

LOGITS_AT_ONCE = 2**22  # of all heads, in an evaluation
STAGE_INDEX = report_keys.STAGES.index(Stage.ONE)


class StackRuntime(Protocol):
    """The process that a stack trains in."""

    device: torch.device

    def report(
        self, reports: Mapping[str, Report], failures: Mapping[str, Exception], checkpoint: Path | None
    ) -> Collection[str]:
        """Publish a report of each head by its trial, and why others have failed; returns the trials that are over."""


def stack_key(trial: TrialConfig) -> str | None:
    """Return a key of what the trials of a stack have in common; None for a trial that trains alone.

    Alone are those that do more in a step than a loss of the logits. Whether the head is a linear layer, and has
    cached vectors, is known of the features (``FeaturePlan``).
    """
    stage = trial.stage_one
    if stage.trainable != "head" or stage.gradient_accumulation > 1 or stage.reads_vectors or stage.r_drop:
        return None
    if stage.ema_decay is not None or 0 in (stage.epochs, trial.stage_two.epochs):
        return None
    shared = ("sampling", "batch_size", "evaluations_per_epoch", "precision", "frozen_dropout", "steps")
    rows = [getattr(stage, name) for name in shared]
    if stage.steps is not None or stage.sampling == "progressive":
        rows.append(stage.epochs)
    return json.dumps([trial.seed, trial.model.model_dump(mode="json"), trial.data.model_dump(mode="json"), *rows])


@dataclass(frozen=True, eq=False)
class StackInputs:
    """What the trials of a stack share, apart from the model."""

    data: PreparedData
    features: Features
    metric: str = report_keys.DEFAULT_METRIC  # the key of the score that a stage with ``patience`` waits for


@dataclass(frozen=True, eq=False)
class HeadLayer:
    """The layer of the model that every head is one of."""

    name: str
    module: nn.Linear


@dataclass(frozen=True, eq=False)
class Member:
    """A trial of a stack, with what its stage one is sized by."""

    config: StageConfig
    plan: StepPlan
    losses: LossSchedule
    schedule: LinearSchedule

    @classmethod
    def from_trial(cls, trial: TrialConfig, data: PreparedData) -> "Member":
        """Size the stage one of a trial."""
        config = trial.stage_one
        split = config.training_split
        seed = derived_seed(trial.seed, STAGE_INDEX)
        plan = StepPlan(config, data.rows_of(split).labels, data.class_counts_of(split), seed)
        losses = build_losses(config.loss, plan.visits(), plan.steps_per_pass, plan.num_steps)
        return cls(config, plan, losses, LinearSchedule(config.learning_rate, plan.num_steps, config.warmup_fraction))


def train_stack(
    trials: Mapping[str, TrialConfig],
    inputs: StackInputs,
    model: nn.Module,
    runtime: StackRuntime,
    start: StackState | None = None,
) -> None:
    """Train stage one of every trial to its end.

    Args:
        trials: By name; all with one ``stack_key``.
        inputs: What they share.
        model: As ``build_classifier`` returns it for each of them, on the runtime's device.
        runtime: Receives the reports.
        start: What to resume from; of the trials that it has, those in ``trials`` continue.

    Raises:
        ModelError: The parameters that train are not those of the linear layer that gives the logits.
    """
    config = next(iter(trials.values()))
    set_trainable(model, config.stage_one.trainable)
    execution = cached_execution(model, inputs.features, inputs.data, runtime.device, config.stage_one.precision)
    layer_name, layer = last_layer(model, inputs.data.train, runtime.device)
    if not trains_last_layer_alone(model, inputs.data.train, runtime.device):
        raise ModelError(
            f"a stack trains the layer {layer_name} alone, but trainable {config.stage_one.trainable} is more"
        )
    if start is None:
        if config.model.head_init == "class_means":
            start_at_class_means(layer, execution, inputs.data, config.stage_one.training_split, config.seed)
        heads = StackedHeads.from_layer(layer, [trial.stage_one for trial in trials.values()])
    else:
        stages = [trials.get(trial, config).stage_one for trial in start.training]
        heads = StackedHeads.from_state(stages, start.parameters.to(runtime.device), start.optimizer)
        heads.keep([place for place, trial in enumerate(start.training) if trial in trials])
        trials = {trial: trials[trial] for trial in start.training if trial in trials}
    stack = Stack(trials, inputs, execution, HeadLayer(layer_name, layer), heads, runtime)
    if start is not None:
        stack.restore(start)
    stack.train(model)


class Stack:
    """Heads in training.

    Args:
        trials: The trials that train, by name, in the order of the heads.
        inputs: What they share.
        execution: Computes what the heads are given.
        layer: Is given it, in the execution's module.
        heads: One of each trial.
        runtime: Receives the reports.
    """

    def __init__(
        self,
        trials: Mapping[str, TrialConfig],
        inputs: StackInputs,
        execution: Execution,
        layer: HeadLayer,
        heads: StackedHeads,
        runtime: StackRuntime,
    ) -> None:
        self.trials = dict(trials)
        self.inputs = inputs
        self.execution = execution
        self.layer = layer
        self.heads = heads
        self.runtime = runtime
        self.members = {trial: Member.from_trial(config, inputs.data) for trial, config in trials.items()}
        self.epoch: int | float = 0  # how many are done
        self.reports: dict[str, tuple[Report, ...]] = dict.fromkeys(trials, ())
        self.ended: dict[str, tuple[Report, ...]] = {}  # those of the trials whose stage one is over
        self.ended_parameters: dict[str, Tensor] = {}  # theirs, (C, H + 1)
        self.failures: dict[str, Exception] = {}  # since the last report
        self._losses: tuple[list[Loss], StackedLoss] | None = None  # of the last step

    def restore(self, start: StackState) -> None:
        """Take over what is done, and publish its reports again: the last may have been lost."""
        self.epoch = start.epoch
        self.reports = {trial: start.training[trial] for trial in self.trials}
        self.ended, self.ended_parameters = dict(start.ended), dict(start.ended_parameters)
        known = {**self.reports, **self.ended}
        for number in range(max(map(len, known.values()), default=0)):
            again = {trial: reports[number] for trial, reports in known.items() if number < len(reports)}
            self._drop(self.runtime.report(again, {}, None))

    def train(self, model: nn.Module) -> None:
        """Train until the last trial's stage one is over."""
        while self.trials:
            longest = max(self.members.values(), key=lambda member: member.config.epochs)
            plan, stage = longest.plan, longest.config
            span = next(stage_spans(stage.epochs, plan.steps_per_epoch, stage.evaluations_per_epoch, self.epoch))
            set_train_mode(model, stage.frozen_dropout)
            self._train_and_report(span, plan)

    def _train_and_report(self, span: Span, plan: StepPlan) -> None:
        """Train a span of an epoch, and report it."""
        began = time.perf_counter()
        seed = next(iter(self.trials.values())).seed
        later = [span.after] if span.after else []  # as `training/stages.py` draws
        torch.manual_seed(derived_seed(seed, STAGE_INDEX, span.epoch, 0, *later))
        where = f"{Stage.ONE} epoch {report_keys.shown_epochs(span.done)}"
        before = span.epoch * plan.steps_per_epoch
        first = before + span.steps.start
        rows = plan.rows(first, before + span.steps.stop)
        train_losses = self.train_steps(rows, first, where)
        scores = self._evaluate()
        share = 1 / max(1, len(self.trials))  # of the time, which they take together
        reports: dict[str, Report] = {}
        for place, trial in enumerate(self.trials):
            report: Report = {
                report_keys.STAGE: Stage.ONE.value,
                report_keys.EPOCH: span.done,
                report_keys.TRAIN_LOSS: train_losses[place],
                report_keys.LEARNING_RATE: self.members[trial].schedule(first + len(rows) - 1),
                report_keys.ROWS: sum(map(len, rows)),
                report_keys.EXECUTION: f"{self.execution.description}, stacked",
                **scores[place],
                report_keys.STAGE_ONE_EPOCH: span.done,
                report_keys.SECONDS: (time.perf_counter() - began) * share,
            }
            if (why := self._why_not_finite(trial, report, where)) is None:
                reports[trial] = report
            else:
                self.failures[trial] = why
        self.epoch = span.done
        self._publish(reports)

    def train_steps(self, rows: Sequence[NDArray[np.int64]], first: int, where: str) -> list[float]:
        """Take steps; returns each head's mean loss over them. Heads whose loss is not finite are dropped.

        Args:
            rows: Of each step.
            first: The first step's number within the stage.
            where: Names the span in messages.
        """
        device = self.runtime.device
        stage = next(iter(self.members.values())).config
        all_labels = self.inputs.data.rows_of(stage.training_split).labels
        rates = self._learning_rates(first, len(rows))
        total = torch.zeros(len(self.heads), device=device)
        for number, step_rows in enumerate(rows):
            order, vectors = self._vectors(stage.training_split, step_rows)
            labels = torch.from_numpy(all_labels[order]).to(device, non_blocking=True)
            with torch.no_grad(), autocast(device, stage.precision):
                losses, gradient = self._loss(first + number)(self.heads.logits(vectors), labels)
                self.heads.update(vectors, gradient, rates[number])
            total += losses
            if (number + 1) % STEPS_BETWEEN_LOSS_CHECKS == 0 and not bool(total.isfinite().all()):
                finite = self._drop_diverged(total, f"{where}, step {number + 1}")
                total, rates = total[finite], rates[:, finite]
                if not self.trials:
                    break
        means: list[float] = (total / len(rows)).tolist()
        return means

    def _vectors(self, split: str, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], Tensor]:
        """Return rows of a step in the order they are computed in, and what the layer is given, (B, H + 1)."""
        parts = self.execution.parts(split, rows)
        given: list[Tensor] = []
        hook = self.layer.module.register_forward_pre_hook(lambda _, arguments: given.append(arguments[0]))
        stage = next(iter(self.members.values())).config
        try:
            with torch.no_grad(), autocast(self.runtime.device, stage.precision):
                for part in parts:
                    self.execution.module(*self.execution.inputs(split, part))
        finally:
            hook.remove()
        return np.concatenate(parts), _with_ones(torch.cat(given))

    def _loss(self, step: int) -> StackedLoss:
        """Return the losses of a step, which are most often those of the step before."""
        losses = [member.losses(step) for member in self.members.values()]
        if self._losses is None or losses != self._losses[0]:  # compares identities
            self._losses = losses, StackedLoss(losses, self.runtime.device)
        return self._losses[1]

    def _learning_rates(self, first: int, num_steps: int) -> Tensor:
        """Return the learning rates of some steps, (num_steps, K)."""
        rates = [
            [member.schedule(step) for member in self.members.values()] for step in range(first, first + num_steps)
        ]
        return torch.tensor(rates, dtype=torch.float32, device=self.runtime.device)

    @cached_property
    def _validation(self) -> tuple[Tensor, Tensor]:
        """The validation rows as the layer is given them, (n, H + 1), and their labels (n,)."""
        examples = self.inputs.data.validation
        vectors = split_inputs(self.layer.module, self.execution, report_keys.VALIDATION, len(examples))
        device = self.runtime.device
        return _with_ones(torch.from_numpy(vectors).to(device)), torch.from_numpy(examples.labels.copy()).to(device)

    @torch.no_grad()
    def _evaluate(self) -> list[dict[str, float | None]]:
        """Return each head's scores of the validation rows."""
        if not self.trials:
            return []
        vectors, labels = self._validation
        data = self.inputs.data
        stage = next(iter(self.members.values())).config
        num_heads, num_classes = len(self.heads), len(data.label_names)
        cells = torch.zeros(num_heads, num_classes**2, dtype=torch.int64, device=vectors.device)
        loss = torch.zeros(num_heads, dtype=torch.float64, device=vectors.device)
        at_once = max(1, LOGITS_AT_ONCE // (num_heads * num_classes))
        for start in range(0, len(labels), at_once):
            some, true = vectors[start : start + at_once], labels[start : start + at_once]
            with autocast(vectors.device, stage.precision):
                logits = self.heads.logits(some)
            cell = true * num_classes + logits.argmax(-1)  # (K, b)
            cells.scatter_add_(1, cell, torch.ones_like(cell))
            surprise = -logits.double().log_softmax(-1).gather(-1, true[None, :, None].expand(num_heads, -1, 1))
            loss += surprise.sum((1, 2))
        counts = cells.view(num_heads, num_classes, num_classes).cpu().numpy()
        columns = scores_of_many(counts, data.class_counts, data.label_names)
        columns[report_keys.on_split(report_keys.VALIDATION, report_keys.LOSS)] = (loss / len(labels)).cpu().numpy()
        return [
            {key: _none_if_nan(key, values[place]) for key, values in columns.items()} for place in range(num_heads)
        ]

    def _why_not_finite(self, trial: str, report: Report, where: str) -> Exception | None:
        for key, value in report.items():
            if isinstance(value, float) and not math.isfinite(value):
                return _divergence(key, value, where, self.members[trial].config)
        return None

    def _drop_diverged(self, total: Tensor, where: str) -> list[int]:
        """Drop the heads whose summed loss (K,) is not finite; returns the places of the others."""
        finite = []
        for place, (trial, value) in enumerate(zip(list(self.trials), total.tolist(), strict=True)):
            if math.isfinite(value):
                finite.append(place)
            else:
                self.failures[trial] = _divergence("training loss", value, where, self.members[trial].config)
        self._drop(self.failures)
        return finite

    def _publish(self, reports: Mapping[str, Report]) -> None:
        """Report, with a checkpoint of all heads; drops those that have ended here or by the sweep's decision."""
        self._drop(self.failures)
        for place, (trial, report) in enumerate(reports.items()):
            self.reports[trial] = (*self.reports[trial], report)
            stage = self.members[trial].config
            if stage_is_over(Stage.ONE, self.reports[trial], self.inputs.metric, stage.epochs, stage.patience):
                self.ended[trial] = self.reports[trial]
                self.ended_parameters[trial] = self.heads.parameters[place].clone()  # not a view that keeps them all
        failures, self.failures = self.failures, {}
        self._drop(self.ended)
        with tempfile.TemporaryDirectory(prefix="tailsweep-") as temporary:
            folder = Path(temporary) / checkpoint_name(Stage.ONE, self.epoch)
            folder.mkdir()
            save_stack(folder, self._state())
            self._drop(self.runtime.report(reports, failures, folder))

    def _drop(self, trials: Collection[str]) -> None:
        """Take trials out of the stack."""
        kept = [place for place, trial in enumerate(self.trials) if trial not in trials]
        if len(kept) < len(self.trials):
            self.heads.keep(kept)
            dropped = [trial for trial in self.trials if trial in trials]
            for trial in dropped:
                del self.trials[trial], self.members[trial], self.reports[trial]

    def _state(self) -> StackState:
        return StackState(
            epoch=self.epoch,
            layer=self.layer.name,
            training=dict(self.reports),
            parameters=self.heads.parameters,
            optimizer=self.heads.state(),
            ended=dict(self.ended),
            ended_parameters=dict(self.ended_parameters),
        )


def _with_ones(vectors: Tensor) -> Tensor:
    return torch.cat([vectors, vectors.new_ones(len(vectors), 1)], dim=1)


def _none_if_nan(key: str, value: float) -> float | None:
    """Return a score that may be undefined; a loss that is NaN has diverged."""
    is_loss = key == report_keys.on_split(report_keys.VALIDATION, report_keys.LOSS)
    return None if math.isnan(value) and not is_loss else float(value)


def _divergence(quantity: str, value: float, where: str, config: StageConfig) -> TrainingDiverged:
    return TrainingDiverged(describe_divergence(quantity, value, where, config))
