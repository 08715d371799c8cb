"""A trial under Ray: Tune's trainables, the function that Ray Train workers run, and the Runtimes between them.

The only module here that imports Ray. The way a report takes: worker -> Train's controller -> ``ReportMailbox`` -> the
trial's own thread -> ``tune.report``. Ray's ``TuneReportCallback`` is a shorter way, but in Ray 2.60 it leaks a permit
per report, after which ``tune.report`` no longer waits for Tune's decision.
"""

import os
import threading
import time
import uuid
from pathlib import Path
from typing import Any, cast

import pyarrow.fs as pafs
import ray
import ray.train
import ray.train.torch
import torch
from ray import tune
from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE
from tailsweep.trainables import report_keys
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.distributed.report_queue import End, Notice
from tailsweep.trainables.distributed.retry_policy import Recovery, fault_of
from tailsweep.trainables.distributed.train_run import TrialConfigOfTune, TrialSetup, _fit, _reason, _train_environment
from tailsweep.trainables.distributed.worker import damage_told, features_of
from tailsweep.trainables.storage.filesystem import copy_there, join_location, open_location
from tailsweep.trainables.storage.retry import patiently
from tailsweep.trainables.training.runtime import Report, SingleProcess

# Train's placement-group cleaner asks the State API whether its controller lives. Where several Rays run on one host
# and none is named, the question fails, and Ray 2.60 takes the controller for dead and a healthy run's workers away.
# The cleaner's process inherits what Train hands to the controller, and only this private set decides what that is.
ENV_VARS_TO_PROPAGATE.add("RAY_ADDRESS")


def run_trial(config: dict[str, Any], setup: TrialSetup) -> None:
    """Tune's trainable: one candidate as one Ray Train run of both stages.

    Args:
        config: ``of``: a :class:`TrialConfigOfTune`.
        setup: what it shares with the others.

    A candidate that cannot go on says so in a last report, since Tune would start again what raises: that is for
    processes that died.
    """
    of: TrialConfigOfTune = config["of"]
    candidate = of["candidate"]
    attempt = f"{candidate}-{uuid.uuid4().hex}"
    mailbox = setup["mailbox"]
    for variable, value in _train_environment().items():
        os.environ.setdefault(variable, value)
    stopped = threading.Event()
    fitting = threading.Thread(target=_fit, args=(of, setup, attempt, stopped), name=f"fit-{attempt}", daemon=True)
    fitting.start()
    heard = {(stage, epoch) for stage, epoch in of["heard"]}
    while True:
        item = ray.get(mailbox.next.remote(attempt))
        if isinstance(item, End):
            if item.reason is not None:
                tune.report({report_keys.FAILURE: item.reason})
            return
        if isinstance(item, Notice):
            tune.report({report_keys.NOTICE: item.text})
            continue
        place = (str(item.report[report_keys.STAGE]), cast(float, item.report[report_keys.EPOCH]))
        if place in heard:
            continue
        heard.add(place)
        try:
            tune.report(dict(item.report))  # returns once Tune has decided
        except SystemExit:  # to stop this trial: its Train run is stopped with it, and frees what it holds
            stopped.set()
            ray.kill(item.controller)
            raise


def run_stage_one(config: dict[str, Any], setup: TrialSetup) -> None:
    """Tune's trainable of a tournament's first round: one candidate's stage one, in this process, which is reused.

    Args: as :func:`run_trial`.
    """
    from tailsweep.trainables.distributed.allocator import keep_freed_memory
    from tailsweep.trainables.distributed.stage_one_actor import train_stage_one
    from tailsweep.trainables.training.checkpoint import newest_checkpoint

    of: TrialConfigOfTune = config["of"]
    worker = of["worker"]
    heard = {(stage, epoch) for stage, epoch in of["heard"]}
    runtime = FirstRoundRuntime(join_location(setup["storage"], of["candidate"]), heard)
    if runtime.device.type == "cpu":
        keep_freed_memory()
    recovery = Recovery(TrialConfig.model_validate(worker["trial"]), setup["retries"])
    data = (worker["data_key"], worker["published_data"], features_of(worker))
    while True:
        try:
            with newest_checkpoint(worker["checkpoints"]) as (start, damaged):
                if (told := damage_told(damaged, start)) is not None:
                    tune.report({report_keys.NOTICE: told})
                train_stage_one(recovery.trial, *data, runtime, start, worker["metric"])
            return
        except Exception as error:  # whatever ended it is the candidate's reason
            reason = _reason(error)
            again = recovery.after(fault_of(error), reason)
        if again is None:
            tune.report({report_keys.FAILURE: reason})
            return
        tune.report({report_keys.NOTICE: again.why})
        torch.cuda.empty_cache()
        time.sleep(again.delay)


class FirstRoundRuntime(SingleProcess):
    """The Runtime inside a Tune trial that trains in its own process. Keeps the latest checkpoint.

    Args:
        storage: URI of the candidate's folder of checkpoints.
        heard: the (stage, epoch) pairs that Tune need not be told again.
    """

    def __init__(self, storage: str, heard: set[tuple[str, float]]) -> None:
        super().__init__()
        self.filesystem, self.path = open_location(storage)
        self.heard = heard

    def report(self, report: Report, checkpoint: Path | None) -> None:
        if checkpoint is not None:
            patiently(lambda: self._keep(checkpoint), f"{self.path}/{checkpoint.name}")
        place = (str(report[report_keys.STAGE]), cast(float, report[report_keys.EPOCH]))
        if place not in self.heard:
            self.heard.add(place)
            tune.report(dict(report))  # returns once Tune has decided

    def _keep(self, checkpoint: Path) -> None:
        """On a disk the folder appears under its name when it is whole; an object store renames nothing, and a reader
        tells by the checksums. Then the earlier ones go."""
        kept, aside = f"{self.path}/{checkpoint.name}", f"{self.path}/.{checkpoint.name}.partial"
        local = isinstance(self.filesystem, pafs.LocalFileSystem)
        if local:
            self.filesystem.create_dir(aside, recursive=True)
        copy_there(checkpoint, self.filesystem, aside if local else kept)
        earlier = self.filesystem.get_file_info(pafs.FileSelector(self.path))
        if local:
            if any(info.base_name == checkpoint.name for info in earlier):
                self.filesystem.delete_dir(kept)
            self.filesystem.move(aside, kept)
        for info in earlier:
            if info.base_name.startswith(report_keys.STAGE_ONE) and info.base_name != checkpoint.name:
                self.filesystem.delete_dir(info.path)
