"""Checkpoints of a stack: one folder per report of all its heads, and a trial's own, extracted from it.

Heads whose stage one is over stay in it, next to those that train: whether a trial is promoted is known once all have
ended.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from safetensors.torch import load_file
from tailsweep.trainables import report_keys
from tailsweep.trainables.report_keys import Stage
from tailsweep.trainables.storage.json_text import parse_json
from tailsweep.trainables.training.checkpoint import (
    OPTIMIZER_FILE,
    PARAMETERS_FILE,
    PROGRESS_FILE,
    Progress,
    write_checkpoint,
)
from tailsweep.trainables.training.runtime import Report
from torch import Tensor

TRAINING, ENDED = "training", "ended"  # the two kinds of heads: keys of the progress and of the parameters


@dataclass(frozen=True, eq=False)
class StackState:
    """What is kept of a stack.

    K heads of C classes on vectors of width H.
    """

    epoch: int | float
    layer: str  # the name, in the model, of the layer that the heads are
    training: Mapping[str, tuple[Report, ...]]  # the reports of the heads that train, by trial, in their order
    parameters: Tensor  # theirs, (K, C, H + 1), the bias last
    optimizer: Mapping[str, Tensor]  # the state of `StackedHeads`
    ended: Mapping[str, tuple[Report, ...]]  # of those whose stage one is over
    ended_parameters: Mapping[str, Tensor]  # theirs, by trial, (C, H + 1)


def save_stack(folder: Path, state: StackState) -> None:
    """Write a stack's state into an existing, empty folder, of the name that its progress has."""
    parameters = {TRAINING: state.parameters.cpu().contiguous()}
    parameters |= {f"{ENDED}/{trial}": tensor.cpu().contiguous() for trial, tensor in state.ended_parameters.items()}
    tensors = {PARAMETERS_FILE: parameters, OPTIMIZER_FILE: state.optimizer}
    heads = {
        kind: [{"trial": trial, "reports": [dict(report) for report in reports]} for trial, reports in heads.items()]
        for kind, heads in ((TRAINING, state.training), (ENDED, state.ended))
    }
    write_checkpoint(folder, Progress(Stage.ONE, state.epoch), tensors, layer=state.layer, **heads)


def load_stack(folder: Path) -> StackState:
    """Read a stack's state."""
    read = parse_json((folder / PROGRESS_FILE).read_text(encoding="utf-8"))
    parameters = load_file(folder / PARAMETERS_FILE)
    training, ended = ({head["trial"]: tuple(head["reports"]) for head in read[kind]} for kind in (TRAINING, ENDED))
    return StackState(
        epoch=read["epoch"],
        layer=read["layer"],
        training=training,
        parameters=parameters[TRAINING],
        optimizer=load_file(folder / OPTIMIZER_FILE),
        ended=ended,
        ended_parameters={trial: parameters[f"{ENDED}/{trial}"] for trial in ended},
    )


def save_trial(folder: Path, state: StackState, trial: str) -> None:
    """Write the checkpoint of a trial whose stage one is over into an existing, empty folder.

    It is as if the trial had trained alone.
    """
    parameters = state.ended_parameters[trial]
    weight, bias = parameters[:, :-1].contiguous(), parameters[:, -1].contiguous()
    tensors = {PARAMETERS_FILE: {f"{state.layer}.weight": weight, f"{state.layer}.bias": bias}}
    write_checkpoint(folder, progress_at_end(state, trial), tensors)


def progress_at_end(state: StackState, trial: str) -> Progress:
    """Return how far a trial has come whose stage one is over."""
    reports = state.ended[trial]
    return Progress(Stage.ONE, cast(float, reports[-1][report_keys.EPOCH]), reports)
