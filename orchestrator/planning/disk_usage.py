"""The bytes that a sweep will write, as far as they are known before it starts: rows, features, checkpoints.

In the cache of every node lie the rows and the features; in storage their published copies and the trials'
checkpoints. Logs, tables and W&B's files are small next to these and left out.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from tailsweep.trainables import report_keys
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.models.layers import set_trainable
from torch import nn

MOMENTS = 2  # of AdamW for each trained number, of its size


@dataclass(frozen=True)
class CheckpointBytes:
    """Upper bounds, of the trial whose checkpoints are largest. Numbers are fp32.

    What lies there until the sweep's end: of a trial that ended in stage one, its best and its latest checkpoint,
    both perhaps from within the stage and with AdamW's moments; of a completed one, its best, and its last without.
    """

    stage_one: int  # of one that has done stage one
    completed: int
    running: int  # of one at its largest: the best, the latest, and the one being written
    model: int  # of the chosen model, exported

    @classmethod
    def largest(cls, several: Iterable["CheckpointBytes"]) -> "CheckpointBytes":
        """Return the largest of each size; 0 where there is none."""
        sizes = list(several)
        return cls(*(max((getattr(size, name) for size in sizes), default=0) for name in cls.__annotations__))


def checkpoint_bytes(model: nn.Module, trial_config: TrialConfig) -> CheckpointBytes:
    """Return the sizes of a trial's checkpoints. Sets what trains on the model."""
    trained: set[str] = set()
    stage_one_end = 0
    with_moments = []
    for stage in report_keys.STAGES:
        described = getattr(trial_config, stage)
        if described.epochs == 0:
            with_moments.append(0)
            continue
        set_trainable(model, described.trainable)
        own = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        stage_one_end = _num_bytes(model, trained)  # which each checkpoint of stage two holds as well
        trained |= own
        per_number = MOMENTS if described.ema_decay is None else MOMENTS + 1  # the weights, next to their average
        with_moments.append(stage_one_end + _num_bytes(model, trained) + per_number * _num_bytes(model, own))
    parameters = _num_bytes(model, trained) + stage_one_end
    return CheckpointBytes(
        stage_one=2 * with_moments[0],
        completed=max(with_moments) + parameters,
        running=3 * max(with_moments),
        model=_num_bytes(model, {name for name, _ in model.named_parameters()}),
    )


@dataclass(frozen=True)
class Forecast:
    """What a sweep will write."""

    tokens: dict[str, int]  # bytes of the tokenized rows, by their keys; in the cache of each node
    features: dict[str, int]  # likewise
    storage_least: int  # what the smallest course of the sweep needs there: one trial at its largest
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
    in_phase_two: int | None,
    trials: int,
    tokens: dict[str, int],
    features: dict[str, int],
    sizes: CheckpointBytes,
    published: bool = False,
) -> Forecast:
    """Estimate what the sweep will write.

    Args:
        in_phase_two: of a two-phase sweep, the trials of its phase two.
        trials: how many have something left to do.
        tokens, features: bytes, by their keys.
        published: whether these lie in storage already.
    """
    copies = 0 if published else sum(tokens.values()) + sum(features.values())
    if in_phase_two is None:
        kept = trials * max(sizes.stage_one, sizes.completed)
    else:
        kept = trials * sizes.stage_one + in_phase_two * sizes.completed
    once = copies + sizes.running + sizes.model
    return Forecast(tokens, features, storage_least=once, storage_most=once + kept)


def _num_bytes(model: nn.Module, names: set[str]) -> int:
    return sum(p.numel() * p.element_size() for name, p in model.named_parameters() if name in names)
