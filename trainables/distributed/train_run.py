"""One trial's Ray Train runs: start one, fit it, and retry it after a fault."""

import threading
import time
from collections.abc import Callable
from typing import Any, TypedDict, cast

import pyarrow.fs as pafs
import ray
import ray.train
import ray.train.torch
import torch
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
from ray.train.v2._internal.exceptions import RayTrainError
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.distributed.report_queue import End, Notice, Reported
from tailsweep.trainables.distributed.retry_policy import Fault, Recovery, fault_of
from tailsweep.trainables.distributed.worker import CHECKPOINT_SCORE, WorkerConfig, train_two_stages
from tailsweep.trainables.storage.filesystem import join_location, open_location


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
