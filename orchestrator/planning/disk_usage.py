"""The bytes that a sweep will write, as far as they are known before it starts: rows, features, checkpoints.

In the cache of every node lie the rows and the features; in storage their published copies and the candidates'
checkpoints. Logs, tables and W&B's files are small beside these and left out.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tailsweep.orchestrator.config.schema import SweepConfig
from tailsweep.trainables import report_keys
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.models.layers import set_trainable
from torch import nn

MOMENTS = 2  # of AdamW for each trained number, of its size


@dataclass(frozen=True)
class CheckpointBytes:
    """Upper bounds, of the candidate whose checkpoints are largest. Numbers are fp32.

    What lies there until the sweep's end: of a candidate that ended in stage one, its best and its latest checkpoint,
    both perhaps from within the stage and with AdamW's moments; of a completed one, its best, and its last without.
    """

    stage_one: int  # of one that has done stage one
    completed: int
    running: int  # of one at its largest: the best, the latest, and the one being written
    model: int  # of the chosen model, exported

    @classmethod
    def largest(cls, several: Iterable["CheckpointBytes"]) -> "CheckpointBytes":
        listed = list(several)
        return cls(*(max((getattr(one, name) for one in listed), default=0) for name in cls.__annotations__))


def checkpoint_bytes(model: nn.Module, trial: TrialConfig) -> CheckpointBytes:
    """Sets what trains on the model."""
    trained: set[str] = set()
    with_moments = []
    for stage in report_keys.STAGES:
        described = getattr(trial, stage)
        if described.epochs == 0:
            with_moments.append(0)
            continue
        set_trainable(model, described.trains)
        own = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        trained |= own
        with_moments.append(_num_bytes(model, trained) + MOMENTS * _num_bytes(model, own))
    parameters = _num_bytes(model, trained)
    return CheckpointBytes(
        stage_one=2 * with_moments[0],
        completed=max(with_moments) + parameters,
        running=3 * max(with_moments),
        model=_num_bytes(model, {name for name, _ in model.named_parameters()}),
    )


@dataclass(frozen=True)
class Forecast:
    """What a sweep will write."""

    tokens: dict[str, int]  # bytes of the tokenised rows, by their keys; in the cache of each node
    features: dict[str, int]  # likewise
    storage_least: int  # what the smallest course of the sweep needs there: one candidate at its largest
    storage_most: int  # if nothing is pruned

    def __add__(self, other: "Forecast") -> "Forecast":
        """Of two sweeps one after the other, which share rows and features."""
        return Forecast(
            self.tokens | other.tokens,
            self.features | other.features,
            max(self.storage_least, other.storage_least),
            self.storage_most + other.storage_most,
        )


def forecast(
    config: SweepConfig,
    candidates: int,
    tokens: dict[str, int],
    features: dict[str, int],
    sizes: CheckpointBytes,
    published: bool = False,
) -> Forecast:
    """What is to come.

    Args:
        candidates: how many have something left to do.
        tokens, features: bytes, by their keys.
        published: whether these lie in storage already.
    """
    copies = 0 if published else sum(tokens.values()) + sum(features.values())
    if config.promote == "all":
        kept = candidates * max(sizes.stage_one, sizes.completed)
    else:
        kept = candidates * sizes.stage_one + config.promote * config.round_two.settings * sizes.completed
    once = copies + sizes.running + sizes.model
    return Forecast(tokens, features, storage_least=once, storage_most=once + kept)


def _num_bytes(model: nn.Module, names: set[str]) -> int:
    return sum(p.numel() * p.element_size() for name, p in model.named_parameters() if name in names)


def in_words(num_bytes: float) -> str:
    """``1.5 GB``; decimal units, as disks are sold."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"


def load_checkpoint_bytes(dumped: Any) -> CheckpointBytes:
    """As ``environment.json`` has them; of a run that an earlier version began: nothing."""
    return CheckpointBytes(**dumped) if dumped else CheckpointBytes(0, 0, 0, 0)
