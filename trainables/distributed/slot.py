"""A slot of a sweep: one long Ray Train run, whose workers train one trial after another.

So a trial does not wait for processes that start and import. A trial's own error ends that trial; a process that dies,
a lost node or a worker group of another size ends or restarts the run, and the trial is retried as ``retry_policy.py``
has it.
"""

import os
import threading
import uuid
from collections.abc import Callable
from typing import cast

import ray
import ray.train
import ray.train.torch
import torch
from tailsweep.trainables.distributed.ray_compat import RayTrainError, propagate_ray_address
from tailsweep.trainables.distributed.report_queue import End, Task
from tailsweep.trainables.distributed.retry_policy import Fault, describe_failure, fault_of
from tailsweep.trainables.distributed.settings import TrialSetup, WorkerConfig
from tailsweep.trainables.distributed.worker import train_trials


class Slot:
    """The workers that train the trials of one of Tune's reused processes.

    Args:
        setup: What its trials share with the others.
    """

    def __init__(self, setup: TrialSetup) -> None:
        assert setup.report_queue is not None, "a Train run has a report queue"
        self.name = f"slot-{uuid.uuid4().hex}"
        self.setup = setup
        self.queue = setup.report_queue
        self._lock = threading.Lock()
        self._running = False  # whether a thread fits Train runs
        propagate_ray_address()
        for variable, value in _train_environment().items():
            os.environ.setdefault(variable, value)

    def assign(self, config: WorkerConfig) -> str:
        """Give the workers a trial, and start them where none run; returns the name of this attempt at it."""
        attempt = uuid.uuid4().hex
        task = Task(attempt, config.model_dump(mode="json"))
        with self._lock:
            ray.get(self.queue.assign.remote(self.name, task))
            if not self._running:
                self._running = True
                threading.Thread(target=self._fit, name=self.name, daemon=True).start()
        return attempt

    def _fit(self) -> None:
        """Fit Train runs while there is a trial for them. A fault of one ends the attempt that it was at."""
        while True:
            end = None
            try:
                self._trainer().fit()
            except Exception as error:  # the trial learns of it; it must not be lost with this thread
                fault, root = _fault(error)
                end = End(fault, describe_failure(root))
            with self._lock:
                if end is not None:
                    ray.get(self.queue.end_task.remote(self.name, end))
                self._running = ray.get(self.queue.has_task.remote(self.name))
                if not self._running:
                    return

    def _trainer(self) -> ray.train.torch.TorchTrainer:
        placement = self.setup.placement
        gpus = placement.gpus_per_worker
        resources = {"CPU": placement.cpus_per_worker} | ({"GPU": gpus} if gpus else {})
        workers, fewest = placement.workers, placement.min_workers
        # NCCL refuses two ranks on one GPU.
        backend = "nccl" if gpus >= 1 and torch.distributed.is_nccl_available() else "gloo"
        return ray.train.torch.TorchTrainer(
            cast(Callable[..., None], train_trials),
            train_loop_config={"slot": self.name, "queue": self.queue},
            torch_config=ray.train.torch.TorchConfig(backend=backend),
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers if workers == fewest else (fewest, workers),
                use_gpu=gpus > 0,
                resources_per_worker=resources,
            ),
            run_config=ray.train.RunConfig(
                name=f"{self.name}-{uuid.uuid4().hex}",
                storage_path=self.setup.slots_uri,
                # After a preemption with notice Train would start the run again by itself, without a message.
                failure_config=ray.train.FailureConfig(max_preemption_failures=0),
                logging_config=ray.train.LoggingConfig(log_level="WARNING"),
            ),
        )


def _train_environment() -> dict[str, str]:
    """Return the variables that Ray Train reads in the trial's driver and passes on to its processes (Ray 2.60)."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return {
        # How soon a worker that died is noticed. Each poll costs a few milliseconds.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        # A process per slot that watches for preempted nodes. A single node takes the sweep with it anyway.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1" if len(nodes) > 1 else "0",
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,  # see ray_compat.propagate_ray_address
    }


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
