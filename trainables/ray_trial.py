"""A trial under Ray: Tune's trainables, the function that Ray Train workers run, and the Runtimes between them.

The only module here that imports Ray. The way a report takes: worker -> Train's controller -> ``ReportMailbox`` -> the
trial's own thread -> ``tune.report``. Ray's ``TuneReportCallback`` is a shorter way, but in Ray 2.60 it leaks a permit
per report, after which ``tune.report`` no longer waits for Tune's decision.
"""

import os
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict, cast

import pyarrow.fs as pafs
import ray
import ray.train
import ray.train.torch
import torch
from ray import tune
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME, ENV_VARS_TO_PROPAGATE
from ray.train.v2._internal.exceptions import RayTrainError
from torch import Tensor, nn

from trainables import keys
from trainables.config import TrialConfig
from trainables.locations import copy_there, join_location, open_location, patiently
from trainables.mailbox import End, Notice, Reported
from trainables.recovery import Fault, Recovery, fault_of
from trainables.runtime import Report, SingleProcess

# Scores lie in [-1, 1]: with this offset a checkpoint of stage two always outranks one of stage one.
STAGE_OFFSET = 10.0
TIE_BREAK = 1e-9  # per epoch: of equal scores the earlier checkpoint is kept
CHECKPOINT_SCORE = "checkpoint_score"

# Train's placement-group cleaner asks the State API whether its controller lives. Where several Rays run on one host
# and none is named, the question fails, and Ray 2.60 takes the controller for dead and a healthy run's workers away.
# The cleaner's process inherits what Train hands to the controller, and only this private set decides what that is.
ENV_VARS_TO_PROPAGATE.add("RAY_ADDRESS")


class FeatureSource(TypedDict):
    """Where a trial's features come from, see ``warm.open_features_of``."""

    plan: dict[str, Any]  # FeaturePlan, dumped
    published: str  # URI of the parts that the sweep had made
    num_parts: int
    cache_dir: str | None


class WorkerConfig(TypedDict):
    """What a trial's workers are given; plain values, since it travels."""

    trial: dict[str, Any]  # TrialConfig, dumped
    metric: str  # the key that says which report was best, and what a stage with patience waits for
    data_key: str  # of the tokenised rows, in the node's cache
    published_data: str  # URI of the sweep's own copy of them, for nodes that lack it
    features: FeatureSource | None  # of stage one's frozen trunk; None: it is run live
    checkpoints: list[str]  # URIs of the folders with those to go on from: the candidate's own, its parent's


class Placement(TypedDict):
    """What one Train run asks Ray for."""

    workers: int
    min_workers: int  # with fewer than `workers`, as few as these, a run goes on where nodes were lost
    cpus_per_worker: float
    gpus_per_worker: float


class TrialSetup(TypedDict):
    """What the trials of a round share."""

    storage: str  # URI of the folder that holds one folder of checkpoints per candidate
    placement: Placement
    mailbox: Any  # handle of a ReportMailbox; None where the trials train in their own processes
    retries: int  # of each trial, see Recovery


class TrialConfigOfTune(TypedDict):
    """What a trial is told of its candidate: under ``of``, the only key of Tune's own ``config``."""

    candidate: str  # its name, which names its Train run too, so that a run that was cut short is gone on with
    worker: WorkerConfig
    heard: list[tuple[str, float]]  # the (stage, epoch) pairs already in the sweep's history


def train_two_stages(config: WorkerConfig) -> None:
    """What every Ray Train worker of this project runs: both stages, going on from the run's last checkpoint."""
    # Imported here: the trial's driver and Train's controller unpickle this function and need none of it.
    from trainables.checkpoint import newest_checkpoint
    from trainables.memory import keep_freed_memory
    from trainables.model import build_classifier
    from trainables.stages import run_two_stages, stage_one_is_left
    from trainables.tokenised import default_cache_dir, fetch_prepared
    from trainables.warm import open_features_of

    trial = TrialConfig.model_validate(config["trial"])
    data = fetch_prepared(config["data_key"], config["published_data"], default_cache_dir())
    runtime = RayRuntime(config["metric"])
    if runtime.device.type == "cpu":
        keep_freed_memory()
    model = runtime.place(build_classifier(trial.model, data.label_names, trial.seed))
    # Looked for by ourselves: Train names the latest it knows of, also where that one is damaged.
    with newest_checkpoint(config["checkpoints"]) as (start, damaged):
        runtime.notice = damage_told(damaged, start)
        source = features_of(config)
        is_left = stage_one_is_left(trial, start, config["metric"])
        features = open_features_of(model, data, **source) if source and is_left else None
        run_two_stages(trial, data, model, runtime, start, features, config["metric"])


def features_of(config: WorkerConfig) -> dict[str, Any] | None:
    """Keywords of ``warm.open_features_of``, the plan as it was before it travelled."""
    from trainables.feature_plan import FeaturePlan

    source = config["features"]
    return None if source is None else {**source, "plan": FeaturePlan.load(source["plan"])}


class RayRuntime:
    """The Runtime inside a Ray Train worker."""

    def __init__(self, metric: str) -> None:
        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        # On a node whose GPUs are only declared to Ray (tests do that), there is no CUDA device to use.
        self.device: torch.device = ray.train.torch.get_device() if torch.cuda.is_available() else torch.device("cpu")
        self.metric = metric
        self.notice: str | None = None  # to be told with the next report

    def place(self, model: nn.Module) -> nn.Module:
        return model.to(self.device)

    def wrap(self, model: nn.Module) -> nn.Module:
        if self.world_size == 1:
            return model
        # Some architectures (XLNet) have parameters that no gradient reaches.
        return nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)

    def sum(self, tensor: Tensor) -> Tensor:
        if self.world_size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def report(self, report: Report, checkpoint: Path | None) -> None:
        stage, epoch = keys.STAGES.index(str(report[keys.STAGE])), cast(float, report[keys.EPOCH])
        score = STAGE_OFFSET * stage + cast(float, report[self.metric]) - TIE_BREAK * epoch
        told = {} if self.notice is None else {keys.NOTICE: self.notice}
        self.notice = None
        ray.train.report(
            {**report, **told, CHECKPOINT_SCORE: score},
            checkpoint=None if checkpoint is None else ray.train.Checkpoint.from_directory(str(checkpoint)),
            checkpoint_dir_name=None if checkpoint is None else checkpoint.name,
        )


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
                tune.report({keys.FAILURE: item.reason})
            return
        if isinstance(item, Notice):
            tune.report({keys.NOTICE: item.text})
            continue
        place = (str(item.report[keys.STAGE]), cast(float, item.report[keys.EPOCH]))
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
    from trainables.checkpoint import newest_checkpoint
    from trainables.memory import keep_freed_memory
    from trainables.warm import train_stage_one

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
                    tune.report({keys.NOTICE: told})
                train_stage_one(recovery.trial, *data, runtime, start, worker["metric"])
            return
        except Exception as error:  # whatever ended it is the candidate's reason
            reason = _reason(error)
            again = recovery.after(fault_of(error), reason)
        if again is None:
            tune.report({keys.FAILURE: reason})
            return
        tune.report({keys.NOTICE: again.why})
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
        place = (str(report[keys.STAGE]), cast(float, report[keys.EPOCH]))
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
            if info.base_name.startswith(keys.STAGE_ONE) and info.base_name != checkpoint.name:
                self.filesystem.delete_dir(info.path)


def damage_told(damaged: list[str], start: Path | None) -> str | None:
    """In words, where checkpoints were passed over; None where none was."""
    if not damaged:
        return None
    where = "its start" if start is None else start.name
    return f"damaged, by their checksums, and passed over: {', '.join(damaged)}; goes on from {where}"


class PostReports(ray.train.UserCallback):  # type: ignore[misc]
    """Train's side of the mailbox; runs in the controller. Rank 0's metrics are every rank's: they are sums."""

    def __init__(self, mailbox: Any, attempt: str) -> None:
        self.mailbox = mailbox
        self.attempt = attempt

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        # Waited for, so that no report can be overtaken by the "end" that another process sends.
        controller = ray.get_runtime_context().current_actor
        ray.get(self.mailbox.put.remote(self.attempt, Reported(metrics[0], controller)))


def _train_environment() -> dict[str, str]:
    """What Ray Train reads in the trial's driver and hands on to its controller and workers (Ray 2.60)."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return {
        # The controller drains one report per poll: at the default of 2 s the polls would set the pace of short epochs.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
        # A process per trial that looks out for nodes about to vanish; the only node takes the sweep with it anyway.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1" if len(nodes) > 1 else "0",
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,  # see ENV_VARS_TO_PROPAGATE above
    }


def _trainer(
    of: TrialConfigOfTune, setup: TrialSetup, trial: TrialConfig, attempt: str
) -> ray.train.torch.TorchTrainer:
    placement = setup["placement"]
    gpus = placement["gpus_per_worker"]
    resources = {"CPU": placement["cpus_per_worker"]} | ({"GPU": gpus} if gpus else {})
    workers, fewest = placement["workers"], placement["min_workers"]
    # NCCL refuses two ranks on one GPU.
    backend = "nccl" if gpus >= 1 and torch.distributed.is_nccl_available() else "gloo"
    return ray.train.torch.TorchTrainer(
        cast(Callable[..., None], train_two_stages),
        train_loop_config={**of["worker"], "trial": trial.model_dump(mode="json")},
        torch_config=ray.train.torch.TorchConfig(backend=backend),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers if workers == fewest else (fewest, workers),
            use_gpu=gpus > 0,
            resources_per_worker=resources,
        ),
        run_config=ray.train.RunConfig(
            name=of["candidate"],
            storage_path=setup["storage"],
            callbacks=[PostReports(setup["mailbox"], attempt)],
            # The best one and, always, the latest one are kept.
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute=CHECKPOINT_SCORE, checkpoint_score_order="max"
            ),
            # Of a node that is taken back with notice, too: Train would start again by itself, without a word.
            failure_config=ray.train.FailureConfig(max_preemption_failures=0),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
    )


def _fit(of: TrialConfigOfTune, setup: TrialSetup, attempt: str, stopped: threading.Event) -> None:
    """Run Train runs until one ends well or cannot be mended, and post how. Runs in a thread of its own.

    The next run has the same name and goes on where the last one stopped. Not left to Train's own ``FailureConfig``,
    which starts every exception again, and always with the same settings.

    Args:
        stopped: set when the trial itself ended its Train run.
    """
    recovery = Recovery(TrialConfig.model_validate(of["worker"]["trial"]), setup["retries"])
    mailbox = setup["mailbox"]
    while True:
        try:
            _forget_checkpoints(join_location(setup["storage"], of["candidate"]))
            _trainer(of, setup, recovery.trial, attempt).fit()
            reason = None
            break
        except Exception as error:  # whatever ended it is the candidate's reason; it must not be lost with this thread
            if stopped.is_set():
                return
            fault, root = _fault(error)
            reason = _reason(root)
            again = recovery.after(fault, reason)
        if again is None:
            break
        ray.get(mailbox.put.remote(attempt, Notice(again.why)))
        time.sleep(again.delay)
    ray.get(mailbox.put.remote(attempt, End(reason)))


def _forget_checkpoints(folder: str) -> None:
    """Remove what Train wrote down of a run's checkpoints before it is gone on with.

    The workers look for themselves where to go on. Train (2.60) would refuse the run where its record was cut short or
    a checkpoint it names is gone, and read and delete folders by the paths that stand in it.
    """
    filesystem, path = open_location(folder)
    record = f"{path}/{CHECKPOINT_MANAGER_SNAPSHOT_FILENAME}"
    if filesystem.get_file_info(record).type != pafs.FileType.NotFound:
        filesystem.delete_file(record)


def _fault(error: BaseException) -> tuple[Fault, BaseException]:
    """What ended a Train run, with the exception that says so: of several workers' the cause, not what followed."""
    failures = getattr(error, "worker_failures", None)
    roots = [_root(failures[rank]) for rank in sorted(failures)] if failures else [_root(error)]
    found = {_fault_of_ray(root): root for root in reversed(roots)}  # of one kind that of the lowest rank
    order: tuple[Fault, ...] = ("memory", "preempted", "lost", "storage", "own", "peer")
    return next((fault, found[fault]) for fault in order if fault in found)


def _fault_of_ray(error: BaseException) -> Fault:
    if isinstance(error, ray.exceptions.OutOfMemoryError):  # of the host: Ray ends a worker before the kernel does
        return "memory"
    if isinstance(error, ray.train.PreemptionError) or getattr(error, "preempted", False):
        return "preempted"
    return "lost" if isinstance(error, ray.exceptions.RayError | RayTrainError) else fault_of(error)


def _root(error: BaseException) -> BaseException:
    """The exception itself, out of the layers Ray wraps it in."""
    for layer in ("cause", "__cause__", "health_check_failure", "controller_failure"):
        if isinstance(inner := getattr(error, layer, None), BaseException):
            return _root(inner)
    return error


def _reason(error: BaseException) -> str:
    """An exception in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"
