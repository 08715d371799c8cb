"""Tune's two trainables: a trial in a slot of Ray Train workers, and a trial's stage one in a reused process.

A report goes from the worker to the ``ReportQueue``, the trial's own thread and ``tune.report``. Ray's
``TuneReportCallback`` is shorter, but in Ray 2.60 it leaks a permit per report, after which ``tune.report`` no longer
waits for Tune's decision.
"""

import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

import ray
import torch
from ray import tune
from tailsweep.trainables import report_keys
from tailsweep.trainables.distributed.checkpoint_store import CheckpointStore
from tailsweep.trainables.distributed.log_forwarding import ForwardedMessages, forwarded_messages
from tailsweep.trainables.distributed.report_queue import End, Notice
from tailsweep.trainables.distributed.retry_policy import Fault, Recovery, describe_failure, fault_of
from tailsweep.trainables.distributed.settings import TrialSetup, TuneTrialConfig
from tailsweep.trainables.distributed.slot import Slot
from tailsweep.trainables.distributed.worker import describe_damaged
from tailsweep.trainables.storage.filesystem import join_location
from tailsweep.trainables.training.runtime import Report, SingleProcess

if TYPE_CHECKING:
    from ray.actor import ActorHandle


def run_trial(config: Mapping[str, object], setup: TrialSetup) -> None:
    """Run both stages of one trial in this process's slot of Ray Train workers. Tune's trainable.

    A trial that cannot continue ends with a report of its failure. It does not raise, since Tune retries what raises;
    those retries are for processes that died.

    Args:
        config: Tune's own ``config``; its ``trial`` is a ``TuneTrialConfig``, dumped.
        setup: What the trial shares with the others.
    """
    tune_config = TuneTrialConfig.model_validate(config["trial"])
    slot = _slot(setup)
    recovery = Recovery(tune_config.worker.trial, setup.retries)
    reported = tune_config.reported_places
    while True:
        attempt = slot.assign(tune_config.worker.model_copy(update={"trial": recovery.trial}))
        end = _pass_on_reports(slot.queue, attempt, reported)
        if end.fault is None:
            return
        again = recovery.after(cast(Fault, end.fault), end.reason)
        if again is None:
            tune.report({report_keys.FAILURE: end.reason})
            return
        tune.report({report_keys.NOTICE: again.why})
        time.sleep(again.delay)


@lru_cache(maxsize=1)
def _slot(setup: TrialSetup) -> Slot:
    """Return the slot of this process, whose trials all have the same setup."""
    return Slot(setup)


def _pass_on_reports(queue: "ActorHandle", attempt: str, reported: set[tuple[str, float]]) -> End:
    """Pass on to Tune what comes of an attempt at a trial; returns how it ended.

    Args:
        queue: a ``ReportQueue``.
        attempt: names the attempt's reports in it.
        reported: the (stage, epoch) pairs that Tune has had; is updated.

    Raises:
        SystemExit: Tune stops the trial.
    """
    noticed: set[str] = set()  # several workers may log the same
    while True:
        item = ray.get(queue.next.remote(attempt))
        if isinstance(item, End):
            return item
        report = {report_keys.NOTICE: item.text} if isinstance(item, Notice) else dict(item.report)
        notice = str(report.get(report_keys.NOTICE, ""))
        if notice in noticed:
            del report[report_keys.NOTICE]
        elif notice:
            noticed.add(notice)
        if report_keys.STAGE in report:
            place = (str(report[report_keys.STAGE]), cast(float, report[report_keys.EPOCH]))
            if place in reported:
                continue
            reported.add(place)
        if report:
            try:
                tune.report(report)  # returns once Tune has decided
            except SystemExit:  # to stop this trial
                ray.get(queue.stop.remote(attempt))
                raise


def run_stage_one(config: Mapping[str, object], setup: TrialSetup) -> None:
    """Run one trial's stage one in this process, which Tune reuses. The trainable of a two-phase sweep's first phase.

    Args:
        config: Tune's own ``config``; its ``trial`` is a ``TuneTrialConfig``, dumped.
        setup: What the trial shares with the others.
    """
    from tailsweep.trainables.distributed.stage_one_actor import train_stage_one
    from tailsweep.trainables.execution.allocator import keep_freed_memory
    from tailsweep.trainables.models.hub import check_weights
    from tailsweep.trainables.training.checkpoint import newest_checkpoint

    tune_config = TuneTrialConfig.model_validate(config["trial"])
    worker = tune_config.worker
    checkpoints = join_location(setup.checkpoints_uri, tune_config.name)
    runtime = StageOneRuntime(checkpoints, tune_config.reported_places)
    if runtime.device.type == "cpu":
        keep_freed_memory()
    recovery = Recovery(worker.trial, setup.retries)
    while True:
        try:
            check_weights(worker.trial.model.name, worker.weights)
            with (
                forwarded_messages() as runtime.messages,
                newest_checkpoint(worker.resume_from) as (start, damaged),
            ):
                if (notice := describe_damaged(damaged, start)) is not None:
                    tune.report({report_keys.NOTICE: notice})
                train_stage_one(recovery.trial, worker.data, worker.features, runtime, start, worker.metric)
            return
        except Exception as error:  # the trial fails with this error
            reason = describe_failure(error)
            again = recovery.after(fault_of(error), reason)
        if again is None:
            tune.report({report_keys.FAILURE: reason})
            return
        tune.report({report_keys.NOTICE: again.why})
        torch.cuda.empty_cache()
        time.sleep(again.delay)


class StageOneRuntime(SingleProcess):
    """The runtime of a Tune trial that trains in its own process. Keeps the latest checkpoint.

    Args:
        storage: URI of the trial's folder of checkpoints.
        reported: the (stage, epoch) pairs that are not reported to Tune again.
    """

    def __init__(self, storage: str, reported: set[tuple[str, float]]) -> None:
        super().__init__()
        self.store = CheckpointStore(storage)
        self.reported = reported
        self.messages = ForwardedMessages()  # go with the next report

    def report(self, report: Report, checkpoint: Path | None) -> None:
        """Keep the checkpoint, and report to Tune what it has not yet."""
        if checkpoint is not None:
            self.store.keep(checkpoint)
        place = (str(report[report_keys.STAGE]), cast(float, report[report_keys.EPOCH]))
        if place not in self.reported:
            self.reported.add(place)
            tune.report({**report, **self.messages.take()})  # returns once Tune has decided
