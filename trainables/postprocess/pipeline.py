"""What is done to a trained classifier before it is used.

Its last layer is rebalanced, its decision and its probabilities are fitted. Everything is affine in the logits, so
that it ends up in the weights and bias of the last layer, where any reader of the model applies it without knowing.

The order is fixed. First the classifier (``rebalancing.py``). Then the decision (``thresholds.py``), which shifts the
classes' logits. Last the temperature (``calibration.py``): it changes no decision, and the probabilities it is fitted
to are those that the model will give. After a shift these are the probabilities of a model whose classes were
reweighted, and one temperature can only make the confidence in what is said right on average; for probabilities as
right as they can be, leave the decision out.

The validation rows chose the trial, and the fits here use them again: scores on them are too good afterwards.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from tailsweep.trainables import report_keys
from tailsweep.trainables.config.postprocess import (
    BestDecision,
    ClassifierRetraining,
    LearnableWeightScaling,
    PostHocLogitAdjustment,
    PostprocessConfig,
    TauNormalization,
    Thresholds,
)
from tailsweep.trainables.data.tokenized import PreparedData
from tailsweep.trainables.execution.backends import live_execution
from tailsweep.trainables.execution.last_layer import last_layer, split_inputs
from tailsweep.trainables.postprocess.calibration import (
    expected_calibration_error,
    fitted_temperature,
    negative_log_likelihood,
)
from tailsweep.trainables.postprocess.decision_rules import Rule, choose_rule
from tailsweep.trainables.postprocess.rebalancing import (
    Layer,
    TrainingSettings,
    learned_scales,
    retrained,
    tau_normalized,
)
from tailsweep.trainables.postprocess.thresholds import Score, adjustment, chosen_tau, counts_of, fitted_thresholds
from tailsweep.trainables.training import metrics
from torch import Tensor, nn

POSTPROCESS_FILE = "finish.json"
OUT_OF_FOLD = "out_of_fold"  # of a choice among decision rules: the score of each
BEFORE_FILE = "before_finish.safetensors"  # the last layer as it was trained


Fitted = dict[str, float | dict[str, float]]  # the fitted values by name, or by name and class


@dataclass(frozen=True)
class Step:
    """One step of the postprocessing, with the validation scores on both sides of it."""

    kind: str  # crt, tau_normalization, lws, thresholds, logit_adjustment or temperature
    fitted: Fitted
    before: Mapping[str, float]  # validation metric, loss and ECE
    after: Mapping[str, float]
    judged_by: str  # the key of these that the step is to improve

    @property
    def helped(self) -> bool:
        """Whether validation rows are scored better than before; a temperature is to lower the loss."""
        gain = self.after[self.judged_by] - self.before[self.judged_by]
        return (-gain if self.kind == "temperature" else gain) > 0

    def __str__(self) -> str:
        """Describe the step for the log: ``thresholds: validation/macro_f1 0.8123 -> 0.8301``."""
        if isinstance(scores := self.fitted.get(OUT_OF_FOLD), dict):
            judged = ", ".join(f"{rule} {score:.4f}" for rule, score in scores.items())
            error = self.fitted["standard_error"]
            return f"{self.kind}: {self.judged_by} on rows left out of the fits: {judged}; standard error {error:.4f}"
        changes = ", ".join(f"{key} {self.before[key]:.4f} -> {self.after[key]:.4f}" for key in self.before)
        return f"{self.kind}: {changes}" + ("" if self.helped else "; no better on validation rows, kept as asked for")


@dataclass(frozen=True)
class Postprocessed:
    """What was done to a classifier's last layer."""

    layer: str  # its name in the model
    before: dict[str, Tensor]  # its weight and bias as trained
    steps: tuple[Step, ...]

    def dump(self) -> list[dict[str, object]]:
        """Return the steps as plain values."""
        return [
            {"kind": s.kind, "fitted": s.fitted, "before": s.before, "after": s.after, "helped": s.helped}
            for s in self.steps
        ]

    def write(self, folder: Path) -> None:
        """Write the fitted values and the layer as trained, which undoes them, next to the model."""
        content = {"layer": self.layer, "as_trained": BEFORE_FILE, "steps": self.dump()}
        (folder / POSTPROCESS_FILE).write_text(
            json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
        )
        save_file(self.before, folder / BEFORE_FILE)


def postprocess_classifier(
    model: nn.Module, data: PreparedData, config: PostprocessConfig, metric: str, seed: int, device: torch.device
) -> Postprocessed:
    """Rebalance and calibrate the model, which is on ``device``, as ``config`` asks; test rows are not used.

    Args:
        metric: the sweep's, e.g. ``validation/macro_f1``: what thresholds and ``tau: auto`` are fitted to raise.
        seed: of cRT and LWS.

    Raises:
        ModelError: the model has no last linear layer that this could be written into.
    """
    name, linear = last_layer(model, data.train, device)
    before = {key: value.detach().cpu().clone() for key, value in linear.named_parameters()}
    execution = live_execution(model, data, device, "fp32")
    inputs = split_inputs(linear, execution, report_keys.VALIDATION, len(data.validation))
    rows = _ValidationRows(inputs, data.validation.labels, data.class_counts, metric)
    layer = Layer(*(before[key].double().numpy() for key in ("weight", "bias")))
    steps = []

    def take(kind: str, changed: Layer, fitted: Fitted, judged_by: str = metric) -> None:
        nonlocal layer
        steps.append(Step(kind, fitted, rows.measured(layer), rows.measured(changed), judged_by))
        layer = changed

    def by_class(values: NDArray[np.float64]) -> dict[str, float]:
        return dict(zip(data.label_names, map(float, values), strict=True))

    if isinstance(config.classifier, TauNormalization):
        as_trained = layer
        tau = chosen_tau(
            config.classifier.tau, lambda tau: tau_normalized(as_trained, tau).logits(inputs), rows.labels, rows.score
        )
        take(config.classifier.kind, tau_normalized(layer, tau), {"tau": tau})
    elif config.classifier is not None:
        train_inputs = split_inputs(linear, execution, report_keys.TRAIN, len(data.train))
        labels = np.array(data.train.labels)  # torch wants to own what it is given
        settings = TrainingSettings(**config.classifier.model_dump(exclude={"kind"}), seed=seed)
        if isinstance(config.classifier, LearnableWeightScaling):
            scales = learned_scales(layer.logits(train_inputs), labels, settings)
            take(config.classifier.kind, layer.scaled(scales), {"scales": by_class(scales)})
        else:
            assert isinstance(config.classifier, ClassifierRetraining)
            take(config.classifier.kind, retrained(train_inputs, labels, len(data.class_counts), settings), {})

    logits = layer.logits(inputs)
    decision = config.decision
    if isinstance(decision, BestDecision):
        choice = choose_rule(logits, rows.labels, data.class_counts, rows.score)
        out_of_fold: dict[str, float] = dict(choice.scores.items())
        take(f"decision {choice.rule}", layer, {OUT_OF_FOLD: out_of_fold, "standard_error": choice.standard_error})
        decision = _RULES[choice.rule]
    if isinstance(decision, Thresholds):
        thresholds, kept = fitted_thresholds(logits, rows.labels, rows.score)
        fitted: Fitted = {"thresholds": by_class(thresholds), "share_kept": kept}
        take(decision.kind, layer.shifted(-np.log(thresholds)), fitted)
    elif decision is not None:
        tau = chosen_tau(decision.tau, lambda tau: logits + adjustment(data.class_counts, tau), rows.labels, rows.score)
        shift = adjustment(data.class_counts, tau)
        take(decision.kind, layer.shifted(shift), {"tau": tau, "shift": by_class(shift)})

    if config.temperature:
        temperature = fitted_temperature(layer.logits(inputs), rows.labels)
        take("temperature", layer.scaled(1 / temperature), {"temperature": temperature}, _LOSS)

    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(layer.weight))
        linear.bias.copy_(torch.from_numpy(layer.bias))
    return Postprocessed(name, before, tuple(steps))


_RULES: dict[Rule, PostHocLogitAdjustment | Thresholds | None] = {
    "none": None,
    "logit_adjustment": PostHocLogitAdjustment(kind="logit_adjustment"),
    "thresholds": Thresholds(kind="thresholds"),
}
_LOSS = report_keys.on_split(report_keys.VALIDATION, report_keys.LOSS)


@dataclass(frozen=True)
class _ValidationRows:
    inputs: NDArray[np.float32]  # of the last layer, (n, H)
    labels: NDArray[np.int64]  # (n,)
    class_counts: NDArray[np.int64]  # (C,), of the training rows
    metric: str

    @property
    def score(self) -> Score:
        name = self.metric.removeprefix(f"{report_keys.VALIDATION}/")

        def score(counts: NDArray[np.int64]) -> float:
            value = metrics.score(name, counts, self.class_counts)
            return 0.0 if value is None else value  # None: too few of the rows to tell one decision from another

        return score

    def measured(self, layer: Layer) -> dict[str, float]:
        logits = layer.logits(self.inputs)
        return {
            self.metric: self.score(counts_of(logits, self.labels)),
            _LOSS: negative_log_likelihood(logits, self.labels),
            report_keys.on_split(report_keys.VALIDATION, report_keys.ECE): expected_calibration_error(
                logits, self.labels
            ),
        }
