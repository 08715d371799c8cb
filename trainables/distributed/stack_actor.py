"""Tune's trainable of a stack of trials, in a process that Tune reuses.

Tune knows the stack as one trial, which reports for all of its members at once. The sweep's driver judges each member;
which of them are over, Tune has no way to tell a trial, so that this goes by an actor, ``StackVerdicts``.
"""

import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray
import torch
from ray import tune
from tailsweep.trainables import report_keys
from tailsweep.trainables.distributed.checkpoint_store import CheckpointStore
from tailsweep.trainables.distributed.inputs import open_examples, open_features
from tailsweep.trainables.distributed.log_forwarding import ForwardedMessages, forwarded_messages
from tailsweep.trainables.distributed.retry_policy import Recovery, describe_failure, fault_of
from tailsweep.trainables.distributed.settings import StackConfig, TrialSetup, TuneTrialConfig
from tailsweep.trainables.distributed.stage_one_actor import untrained_model
from tailsweep.trainables.distributed.worker import describe_damaged
from tailsweep.trainables.execution.allocator import keep_freed_memory
from tailsweep.trainables.models.hub import check_weights
from tailsweep.trainables.stacks.stack import StackInputs, train_stack
from tailsweep.trainables.stacks.stack_checkpoint import load_stack
from tailsweep.trainables.storage.filesystem import join_location
from tailsweep.trainables.training.checkpoint import newest_checkpoint
from tailsweep.trainables.training.runtime import Report


def run_stack(config: Mapping[str, object], setup: TrialSetup) -> None:
    """Train stage one of a stack of trials in this process, which Tune reuses. Tune's trainable.

    If memory does not suffice, the stack is halved. Another error is every member's.

    Args:
        config: Tune's own ``config``; its ``stack`` is a ``StackConfig``, dumped.
        setup: What the trials share with the others.
    """
    dumped = config["stack"]
    assert isinstance(dumped, dict)
    stack = StackConfig.model_validate_json(dumped["json"])
    runtime = TuneStackRuntime(stack, setup)
    if runtime.device.type == "cpu":
        keep_freed_memory()
    recovery = Recovery(stack.members[0].worker.trial, setup.retries)
    parts = [Part(stack.members, (stack.name,))]
    while parts:
        part = parts[0].without(runtime.over)
        try:
            if part.members:
                _train(part, stack, runtime)
            del parts[0]
            continue
        except Exception as error:  # every member's
            cause = error
        fault, reason = fault_of(cause), describe_failure(cause)
        torch.cuda.empty_cache()
        if fault == "memory" and len(part.members) > 1:
            parts[:1] = part.halves()
            tune.report({report_keys.NOTICE: f"{reason}; continues as two halves"})
        elif fault != "memory" and (again := recovery.after(fault, reason)) is not None:
            tune.report({report_keys.NOTICE: again.why})
            time.sleep(again.delay)
        else:
            runtime.report({}, dict.fromkeys((member.name for member in part.members), cause), None)
            del parts[0]


@dataclass(frozen=True)
class Part:
    """Members that train together."""

    members: Sequence[TuneTrialConfig]  # some or all of a stack
    names: Sequence[str]  # of the folder of their checkpoints, and of those that they were in before, the newest first

    def without(self, over: Collection[str]) -> "Part":
        """Return the part without the members that are over."""
        return Part([member for member in self.members if member.name not in over], self.names)

    def halves(self) -> "list[Part]":
        """Return two halves of the part."""
        middle = len(self.members) // 2
        halves = (self.members[:middle], self.members[middle:])
        return [Part(half, (f"{self.names[0]}.{number}", *self.names)) for number, half in enumerate(halves)]


class TuneStackRuntime:
    """The process of a stack: keeps its latest checkpoint, and reports to Tune.

    Args:
        stack: The stack.
        setup: Where its checkpoints are, and who gives verdicts.
    """

    def __init__(self, stack: StackConfig, setup: TrialSetup) -> None:
        assert setup.verdicts is not None, "a sweep with stacks gives verdicts"
        self.verdicts = setup.verdicts
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.setup = setup
        self.store: CheckpointStore | None = None  # of the part in training
        self.messages = ForwardedMessages()  # go with the next report
        self.over: set[str] = set()  # members
        self._reported = {member.name: member.reported_places for member in stack.members}
        self._attempt, self._number = uuid.uuid4().hex, 0

    def report(
        self, reports: Mapping[str, Report], failures: Mapping[str, Exception], checkpoint: Path | None
    ) -> Collection[str]:
        """Keep the checkpoint, report to Tune what it has not yet, and return the members that are over."""
        if checkpoint is not None:
            assert self.store is not None
            self.store.keep(checkpoint)
        rows = [
            {report_keys.TRIAL: trial, **report} for trial, report in reports.items() if self._is_new(trial, report)
        ]
        if rows or failures:
            self._number += 1
            result = {
                report_keys.REPORTS: rows,
                report_keys.FAILURES: [[trial, describe_failure(error)] for trial, error in failures.items()],
                report_keys.ATTEMPT: self._attempt,
                report_keys.NUMBER: self._number,
            }
            tune.report({**result, **self.messages.take()})
            self.over |= {*failures, *ray.get(self.verdicts.take.remote(self._attempt, self._number))}
        return self.over

    def _is_new(self, trial: str, report: Report) -> bool:
        place = (str(report[report_keys.STAGE]), float(report[report_keys.EPOCH] or 0))
        is_new = place not in self._reported[trial]
        self._reported[trial].add(place)
        return is_new


def _train(part: Part, stack: StackConfig, runtime: TuneStackRuntime) -> None:
    """Train what is left of a part of a stack."""
    worker = stack.members[0].worker
    assert worker.features is not None, "heads of a stack are on features"
    check_weights(worker.trial.model.name, worker.weights)
    folders = [join_location(runtime.setup.stacks_uri, name) for name in part.names]
    runtime.store = CheckpointStore(folders[0])
    locations = [*folders, *([stack.resume_from] if stack.resume_from is not None else [])]
    with forwarded_messages() as runtime.messages, newest_checkpoint(locations) as (start, damaged):
        if (notice := describe_damaged(damaged, start)) is not None:
            tune.report({report_keys.NOTICE: notice})
        data = open_examples(worker.data)
        model = untrained_model(worker.trial, worker.data).to(runtime.device)
        inputs = StackInputs(data, open_features(model, data, worker.features), worker.metric)
        trials = {member.name: member.worker.trial for member in part.members}
        train_stack(trials, inputs, model, runtime, None if start is None else load_stack(start))
