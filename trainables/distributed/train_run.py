"""One trial's Ray Train runs: start one, fit it, and retry it after a fault."""

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import pyarrow.fs as pafs
import ray
import ray.train
import ray.train.torch
import torch
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.distributed.log_forwarding import joined_notices
from tailsweep.trainables.distributed.ray_compat import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME, RayTrainError
from tailsweep.trainables.distributed.report_queue import End, Notice, Reported
from tailsweep.trainables.distributed.retry_policy import Fault, Recovery, fault_of
from tailsweep.trainables.distributed.settings import TrialSetup, TuneTrialConfig
from tailsweep.trainables.distributed.worker import CHECKPOINT_SCORE, train_two_stages
from tailsweep.trainables.errors import describe_error
from tailsweep.trainables.storage.filesystem import join_location, open_location

if TYPE_CHECKING:
    from ray.actor import ActorHandle


class ReportPublisher(ray.train.UserCallback):  # type: ignore[misc]
    """Train's side of the report queue; runs in the controller.

    All ranks report the same sums: rank 0's are used. Each rank has notices of its own.
    """

    def __init__(self, report_queue: "ActorHandle", attempt: str) -> None:
        self.report_queue = report_queue
        self.attempt = attempt

    def after_report(
        self,
        run_context: object,
        metrics: list[dict[str, object]],
        checkpoint: ray.train.Checkpoint | None,
    ) -> None:
        """Publish a report, and wait for it: no report may be overtaken by the "end" that another process sends."""
        controller = ray.get_runtime_context().current_actor
        report = metrics[0] | joined_notices(metrics)
        ray.get(self.report_queue.put.remote(self.attempt, Reported(report, controller)))


def train_environment() -> dict[str, str]:
    """Return the variables that Ray Train reads in the trial's driver and passes on to its processes (Ray 2.60)."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return {
        # The controller drains one report per poll: at the default of 2 s the polls would set the pace of short epochs.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
        # A process per trial that watches for preempted nodes. A single node takes the sweep with it anyway.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1" if len(nodes) > 1 else "0",
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,  # see ray_compat.propagate_ray_address
    }


def _trainer(
    tune_config: TuneTrialConfig, setup: TrialSetup, trial: TrialConfig, attempt: str
) -> ray.train.torch.TorchTrainer:
    placement = setup.placement
    gpus = placement.gpus_per_worker
    resources = {"CPU": placement.cpus_per_worker} | ({"GPU": gpus} if gpus else {})
    workers, fewest = placement.workers, placement.min_workers
    # NCCL refuses two ranks on one GPU.
    backend = "nccl" if gpus >= 1 and torch.distributed.is_nccl_available() else "gloo"
    return ray.train.torch.TorchTrainer(
        cast(Callable[..., None], train_two_stages),
        train_loop_config=tune_config.worker.model_copy(update={"trial": trial}).model_dump(mode="json"),
        torch_config=ray.train.torch.TorchConfig(backend=backend),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers if workers == fewest else (fewest, workers),
            use_gpu=gpus > 0,
            resources_per_worker=resources,
        ),
        run_config=ray.train.RunConfig(
            name=tune_config.name,
            storage_path=setup.checkpoints_uri,
            callbacks=[ReportPublisher(setup.report_queue, attempt)],
            # Train keeps the best one and, always, the latest one.
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute=CHECKPOINT_SCORE, checkpoint_score_order="max"
            ),
            # After a preemption with notice Train would start the run again by itself, without a message.
            failure_config=ray.train.FailureConfig(max_preemption_failures=0),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
    )


def fit_with_retries(tune_config: TuneTrialConfig, setup: TrialSetup, attempt: str, stopped: threading.Event) -> None:
    """Fit Train runs until one completes or its fault is permanent, and publish the end. Call it in its own thread.

    The next run has the same name and resumes where the last one stopped. Train's own ``FailureConfig`` would retry
    every exception, and always with the same settings.

    Args:
        tune_config: the trial.
        setup: what it shares with the others.
        attempt: names this attempt's reports in the queue.
        stopped: set when the trial itself ended its Train run.
    """
    recovery = Recovery(tune_config.worker.trial, setup.retries)
    report_queue = setup.report_queue
    assert report_queue is not None, "a Train run has a report queue"
    while True:
        try:
            _forget_checkpoints(join_location(setup.checkpoints_uri, tune_config.name))
            _trainer(tune_config, setup, recovery.trial, attempt).fit()
            reason = None
            break
        except Exception as error:  # the trial fails with this error; it must not be lost with this thread
            if stopped.is_set():
                return
            fault, root = _fault(error)
            reason = describe_failure(root)
            again = recovery.after(fault, reason)
        if again is None:
            break
        ray.get(report_queue.put.remote(attempt, Notice(again.why)))
        time.sleep(again.delay)
    ray.get(report_queue.put.remote(attempt, End(reason)))


def _forget_checkpoints(folder: str) -> None:
    """Delete Train's own record of a run's checkpoints before the run is resumed.

    The workers find the checkpoint to resume from themselves. Train (2.60) refuses a run whose record is truncated or
    names a missing checkpoint, and it reads and deletes folders by the paths in that record.
    """
    filesystem, path = open_location(folder)
    record = f"{path}/{CHECKPOINT_MANAGER_SNAPSHOT_FILENAME}"
    if filesystem.get_file_info(record).type != pafs.FileType.NotFound:
        filesystem.delete_file(record)


def _fault(error: BaseException) -> tuple[Fault, BaseException]:
    """Return the kind of fault that ended a Train run, and its exception: the cause among those of several workers."""
    failures = getattr(error, "worker_failures", None)
    roots = [_root(failures[rank]) for rank in sorted(failures)] if failures else [_root(error)]
    root_of = {_fault_of_ray(root): root for root in reversed(roots)}  # of one kind that of the lowest rank
    order: tuple[Fault, ...] = ("memory", "preempted", "lost", "storage", "own", "peer")
    return next((fault, root_of[fault]) for fault in order if fault in root_of)


def _fault_of_ray(error: BaseException) -> Fault:
    if isinstance(error, ray.exceptions.OutOfMemoryError):  # of the host: Ray ends a worker before the kernel does
        return "memory"
    if isinstance(error, ray.train.PreemptionError) or getattr(error, "preempted", False):
        return "preempted"
    return "lost" if isinstance(error, ray.exceptions.RayError | RayTrainError) else fault_of(error)


def _root(error: BaseException) -> BaseException:
    """Return the exception inside the layers that Ray wraps it in."""
    for layer in ("cause", "__cause__", "health_check_failure", "controller_failure"):
        if isinstance(inner := getattr(error, layer, None), BaseException):
            return _root(inner)
    return error


def describe_failure(error: BaseException) -> str:
    """Describe why a trial failed: the exception's type and the last line of its message."""
    name = type(error).__name__
    return f"{name}: {describe_error(error, line='last') if str(error).strip() else 'no message'}"
