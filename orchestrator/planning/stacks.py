"""Which trials of phase one train together, and what earlier processes have kept of such stacks."""

import math
import re
import tempfile
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from tailsweep.orchestrator.planning.environment import Environment
from tailsweep.orchestrator.runs.directory import CHECKPOINTS_FOLDER, STACKS_FOLDER, RunDirectory
from tailsweep.orchestrator.runs.trials import TrialRecord
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.stacks.stack import stack_key
from tailsweep.trainables.stacks.stack_checkpoint import load_stack, progress_at_end, save_trial
from tailsweep.trainables.training.checkpoint import newest_checkpoint

# Below as many, a step takes as long whatever the number of heads; above, the work grows with it.
FEWEST_HEADS, MOST_HEADS = 16, 128
MOST_BYTES = 2**28  # of parameters, gradients and moments
TENSORS_PER_HEAD = 5
STACK_NAME = re.compile(r"s(\d+)(\.\d+)*")


@dataclass(frozen=True)
class TrialStack:
    """Trials that train together."""

    name: str  # of its folder of checkpoints
    trials: tuple[TrialRecord, ...]
    resume_from: str | None = None  # the stack that has them in training, of an earlier process


@dataclass(frozen=True)
class KeptStack:
    """The newest checkpoint of a stack."""

    name: str
    epoch: float
    training: tuple[str, ...]  # trials


def arrange_stacks(
    run: RunDirectory, trials: Sequence[TrialRecord], environment: Environment, slots: int
) -> tuple[list[TrialStack], list[TrialRecord]]:
    """Arrange in stacks those of the trials that can train together; returns the others, too.

    Args:
        run: the run directory, which may have checkpoints of stacks.
        trials: trials with a stage one on features before them.
        environment: their inputs.
        slots: how many stacks can train at once.
    """
    together: defaultdict[tuple[str, str | None], list[TrialRecord]] = defaultdict(list)
    alone = []
    kept = kept_stacks(run)
    in_training = {trial: stack for stack in sorted(kept, key=lambda stack: stack.epoch) for trial in stack.training}
    for trial in trials:
        key = _key(trial, environment)
        if key is None:
            alone.append(trial)
        else:
            source = in_training.get(trial.name)
            together[key, None if source is None else source.name].append(trial)
    numbers = [int(match[1]) for stack in kept if (match := STACK_NAME.fullmatch(stack.name))]
    number = max(numbers, default=-1) + 1
    stacks: list[TrialStack] = []
    for (_, source_name), members in together.items():
        most = min(MOST_HEADS, max(1, MOST_BYTES // _bytes_per_head(members[0], environment)))
        size = min(most, max(FEWEST_HEADS, math.ceil(len(members) / slots)))
        parts = math.ceil(len(members) / size)
        for part in range(parts):
            chosen = members[len(members) * part // parts : len(members) * (part + 1) // parts]
            stacks.append(TrialStack(f"s{number + len(stacks):03d}", tuple(chosen), source_name))
    return stacks, alone


def _key(trial: TrialRecord, environment: Environment) -> str | None:
    """Return a key of what the trials of a stack have in common; None for a trial that trains alone."""
    inputs = environment.inputs_of(trial.config)
    if not inputs.linear_head:
        return None
    key = stack_key(TrialConfig.model_validate(trial.config))
    return None if key is None else f"{inputs.features} {key}"


def _bytes_per_head(trial: TrialRecord, environment: Environment) -> int:
    inputs = environment.inputs_of(trial.config)
    assert inputs.features is not None
    return (
        4 * TENSORS_PER_HEAD * environment.features[inputs.features].width * len(environment.data[inputs.data].labels)
    )


def kept_stacks(run: RunDirectory) -> list[KeptStack]:
    """Return the stacks that an earlier process has kept checkpoints of, each with its newest."""
    return [kept for name in run.list(STACKS_FOLDER) if (kept := _read_kept(run, name)) is not None]


def _read_kept(run: RunDirectory, name: str) -> KeptStack | None:
    with newest_checkpoint([run.uri(f"{STACKS_FOLDER}/{name}")]) as (folder, _):
        if folder is None:
            return None
        state = load_stack(folder)
        return KeptStack(name, float(state.epoch), tuple(state.training))


def write_trial_checkpoints(run: RunDirectory, trials: Collection[str]) -> None:
    """Write the checkpoints of trials whose stage one has ended in a stack, as if each had trained alone.

    One whose stack's checkpoint is missing or damaged has none, and trains its stage one again.
    """
    missing = {trial for trial in trials if not run.list(f"{CHECKPOINTS_FOLDER}/{trial}")}
    for name in run.list(STACKS_FOLDER) if missing else ():
        with newest_checkpoint([run.uri(f"{STACKS_FOLDER}/{name}")]) as (folder, _):
            state = None if folder is None else load_stack(folder)
        if state is None:
            continue
        for trial in sorted(missing & state.ended.keys()):
            checkpoint = progress_at_end(state, trial).name
            with tempfile.TemporaryDirectory(prefix="tailsweep-") as temporary:
                written = Path(temporary) / checkpoint
                written.mkdir()
                save_trial(written, state, trial)
                run.upload(written, f"{CHECKPOINTS_FOLDER}/{trial}/{checkpoint}")
            missing.remove(trial)
