"""The function that every Ray Train worker of a slot runs: one trial after another, each with its `Runtime`."""

import gc
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import psutil
import ray
import ray.train
import ray.train.torch
import torch
from tailsweep.trainables.distributed.checkpoint_store import CheckpointStore, best_checkpoint
from tailsweep.trainables.distributed.log_forwarding import ForwardedMessages, forwarded_messages
from tailsweep.trainables.distributed.report_queue import End, Notice, Task
from tailsweep.trainables.distributed.retry_policy import describe_failure, fault_of
from tailsweep.trainables.distributed.settings import WorkerConfig
from tailsweep.trainables.training.runtime import Report
from torch import Tensor, nn

if TYPE_CHECKING:
    from ray.actor import ActorHandle

# A process whose memory has grown by so much since its first trial ends, and another takes its place.
GROWTH_FACTOR, GROWTH_BYTES = 1.5, 2**30

logger = logging.getLogger(__name__)


class TrialStopped(Exception):
    """The end of a trial that Tune has stopped."""


def train_trials(train_loop_config: Mapping[str, object]) -> None:
    """Train trial after trial in a Ray Train worker, until its memory has grown.

    Args:
        train_loop_config: the name of the ``slot``, and its ``queue``, a ``ReportQueue``.
    """
    # Imported here: the trial's driver and Train's controller unpickle this function and need none of it.
    from tailsweep.trainables.execution.allocator import keep_freed_memory

    slot, queue = str(train_loop_config["slot"]), cast("ActorHandle", train_loop_config["queue"])
    worker = SlotWorker(queue)
    if worker.device.type == "cpu":
        keep_freed_memory()
    process = psutil.Process()
    attempt: str | None = None
    first_bytes: int | None = None
    while True:
        task: Task = ray.get(queue.next_task.remote(slot, attempt))
        attempt = task.attempt
        end = worker.run(task)
        if worker.rank == 0:
            ray.get(queue.end.remote(slot, attempt, end))
        gc.collect()  # cycles hold a model's memory
        if worker.device.type == "cuda":
            torch.cuda.empty_cache()
        memory_bytes = process.memory_info().rss
        first_bytes = first_bytes or memory_bytes
        grown = memory_bytes > GROWTH_FACTOR * first_bytes + GROWTH_BYTES
        if worker.sum(torch.tensor([float(grown)], device=worker.device)).item():
            return


class SlotWorker:
    """One of the processes that train a slot's trials together.

    Args:
        queue: a ``ReportQueue``.
    """

    def __init__(self, queue: "ActorHandle") -> None:
        context = ray.train.get_context()
        self.queue = queue
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        # On a node whose GPUs are only declared to Ray (tests do that), there is no CUDA device to use.
        self.device: torch.device = ray.train.torch.get_device() if torch.cuda.is_available() else torch.device("cpu")

    def run(self, task: Task) -> End:
        """Run one attempt at a trial to its end.

        Raises:
            Exception: the trial's own, where other workers may wait for this one: all of them end with it.
        """
        config = WorkerConfig.model_validate(task.config)
        try:
            with forwarded_messages() as messages:
                train_two_stages(config, RayRuntime(self, task.attempt, config, messages))
        except TrialStopped:
            return End()
        except Exception as error:
            if self.world_size > 1:
                raise
            return End(fault_of(error), describe_failure(error))
        return End()

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over the workers, in place."""
        if self.world_size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor


def train_two_stages(config: WorkerConfig, runtime: "RayRuntime") -> None:
    """Train both stages of a trial, from the newest whole checkpoint on."""
    from tailsweep.trainables.distributed.inputs import open_examples, open_features
    from tailsweep.trainables.models.classifier import build_classifier
    from tailsweep.trainables.models.hub import check_weights
    from tailsweep.trainables.training.checkpoint import newest_checkpoint
    from tailsweep.trainables.training.stages import TrialRun, run_two_stages, stage_one_is_left

    trial, metric = config.trial, config.metric
    data = open_examples(config.data)
    with newest_checkpoint(config.resume_from) as (start, damaged):
        check_weights(trial.model.name, config.weights)
        model = runtime.place(build_classifier(trial.model, data.label_names, trial.seed))
        if (notice := describe_damaged(damaged, start)) is not None:
            logger.warning(notice)
        is_left = stage_one_is_left(trial, start, metric)
        features = open_features(model, data, config.features) if config.features and is_left else None
        run_two_stages(TrialRun(trial, data, runtime, features, metric), model, start)


class RayRuntime:
    """The runtime of a trial in a slot's worker.

    Args:
        worker: the process, and the others that train with it.
        attempt: names this attempt's reports in the queue.
        config: the trial's.
        messages: what this worker logs.
    """

    def __init__(self, worker: SlotWorker, attempt: str, config: WorkerConfig, messages: ForwardedMessages) -> None:
        self.worker = worker
        self.rank, self.world_size, self.device = worker.rank, worker.world_size, worker.device
        self.attempt = attempt
        self.trial = config.trial
        self.metric = config.metric
        self.store = CheckpointStore(config.resume_from[0])
        self.messages = messages  # go with the next report

    def place(self, model: nn.Module) -> nn.Module:
        """Move the model to this worker's device."""
        return model.to(self.device)

    def wrap(self, model: nn.Module) -> nn.Module:
        """Make the model average gradients over the workers."""
        if self.world_size == 1:
            return model
        # Some architectures (XLNet) have parameters that no gradient reaches.
        return nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over the workers, in place."""
        return self.worker.sum(tensor)

    def report(self, report: Report, checkpoint: Path | None) -> None:
        """Keep the checkpoint, and report from the first worker, which has the sums of all.

        Raises:
            TrialStopped: Tune has stopped the trial; on every worker.
        """
        queue = self.worker.queue
        if checkpoint is not None:
            self.store.keep(checkpoint, [best_checkpoint(checkpoint, self.trial, self.metric)])
        notice = self.messages.take()
        if self.rank > 0:  # every worker may have logged something of its own
            for text in notice.values():
                ray.get(queue.put.remote(self.attempt, Notice(text)))
        continues = self.rank > 0 or ray.get(queue.report.remote(self.attempt, {**report, **notice}))
        if self.sum(torch.tensor([float(not continues)], device=self.device)).item():
            raise TrialStopped


def describe_damaged(damaged: list[str], start: Path | None) -> str | None:
    """Describe the damaged checkpoints that were skipped; None if there are none."""
    if not damaged:
        return None
    where = "its start" if start is None else start.name
    return f"damaged, by their checksums, and passed over: {', '.join(damaged)}; continues from {where}"
