"""Tune's two trainables: a trial as one Ray Train run, and a trial's stage one in a reused process.

A report goes from the worker to Train's controller, the ``ReportQueue``, the trial's own thread and ``tune.report``.
Ray's ``TuneReportCallback`` is shorter, but in Ray 2.60 it leaks a permit per report, after which ``tune.report`` no
longer waits for Tune's decision.
"""

import os
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import pyarrow.fs as pafs
import ray
import ray.train
import ray.train.torch
import torch
from ray import tune
from tailsweep.trainables import report_keys
from tailsweep.trainables.distributed.log_forwarding import ForwardedMessages, forwarded_messages
from tailsweep.trainables.distributed.ray_compat import propagate_ray_address
from tailsweep.trainables.distributed.report_queue import End, Notice
from tailsweep.trainables.distributed.retry_policy import Recovery, fault_of
from tailsweep.trainables.distributed.settings import TrialSetup, TuneTrialConfig
from tailsweep.trainables.distributed.train_run import describe_failure, fit_with_retries, train_environment
from tailsweep.trainables.distributed.worker import describe_damaged
from tailsweep.trainables.storage.atomic import replace_folder
from tailsweep.trainables.storage.filesystem import join_location, open_location, upload
from tailsweep.trainables.storage.retry import with_retries
from tailsweep.trainables.training.runtime import Report, SingleProcess


def run_trial(config: Mapping[str, object], setup: TrialSetup) -> None:
    """Run one trial as one Ray Train run of both stages. Tune's trainable.

    A trial that cannot continue ends with a report of its failure. It does not raise, since Tune retries what raises;
    those retries are for processes that died.

    Args:
        config: Tune's own ``config``; its ``trial`` is a ``TuneTrialConfig``, dumped.
        setup: What the trial shares with the others.
    """
    tune_config = TuneTrialConfig.model_validate(config["trial"])
    propagate_ray_address()
    attempt = f"{tune_config.name}-{uuid.uuid4().hex}"
    report_queue = setup.report_queue
    assert report_queue is not None, "a Train run has a report queue"
    for variable, value in train_environment().items():
        os.environ.setdefault(variable, value)
    stopped = threading.Event()
    arguments = (tune_config, setup, attempt, stopped)
    fitting = threading.Thread(target=fit_with_retries, args=arguments, name=f"fit-{attempt}", daemon=True)
    fitting.start()
    reported = tune_config.reported_places
    while True:
        item = ray.get(report_queue.next.remote(attempt))
        if isinstance(item, End):
            if item.reason is not None:
                tune.report({report_keys.FAILURE: item.reason})
            return
        if isinstance(item, Notice):
            tune.report({report_keys.NOTICE: item.text})
            continue
        place = (str(item.report[report_keys.STAGE]), cast(float, item.report[report_keys.EPOCH]))
        if place in reported:
            continue
        reported.add(place)
        try:
            tune.report(dict(item.report))  # returns once Tune has decided
        except SystemExit:  # to stop this trial: its Train run is stopped with it, and frees what it holds
            stopped.set()
            ray.kill(item.controller)
            raise


def run_stage_one(config: Mapping[str, object], setup: TrialSetup) -> None:
    """Run one trial's stage one in this process, which Tune reuses. The trainable of a two-phase sweep's first phase.

    Args:
        config: Tune's own ``config``; its ``trial`` is a ``TuneTrialConfig``, dumped.
        setup: What the trial shares with the others.
    """
    from tailsweep.trainables.distributed.allocator import keep_freed_memory
    from tailsweep.trainables.distributed.stage_one_actor import train_stage_one
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
        self.filesystem, self.path = open_location(storage)
        self.reported = reported
        self.messages = ForwardedMessages()  # go with the next report

    def report(self, report: Report, checkpoint: Path | None) -> None:
        """Keep the checkpoint, and report to Tune what it has not yet."""
        if checkpoint is not None:
            with_retries(lambda: self._keep(checkpoint), f"{self.path}/{checkpoint.name}")
        place = (str(report[report_keys.STAGE]), cast(float, report[report_keys.EPOCH]))
        if place not in self.reported:
            self.reported.add(place)
            tune.report({**report, **self.messages.take()})  # returns once Tune has decided

    def _keep(self, checkpoint: Path) -> None:
        """Store the checkpoint, then delete the earlier ones.

        On a disk the folder is renamed when it is whole. An object store has no rename: readers verify the checksums.
        """
        target = Path(self.path) / checkpoint.name
        if isinstance(self.filesystem, pafs.LocalFileSystem):
            target.parent.mkdir(parents=True, exist_ok=True)
            with replace_folder(target) as partial:
                upload(checkpoint, self.filesystem, str(partial))
        else:
            upload(checkpoint, self.filesystem, str(target))
        for info in self.filesystem.get_file_info(pafs.FileSelector(self.path)):
            if info.base_name.startswith(report_keys.STAGE_ONE) and info.base_name != checkpoint.name:
                self.filesystem.delete_dir(info.path)
