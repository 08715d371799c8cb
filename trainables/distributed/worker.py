"""The function that every Ray Train worker runs, and the `Runtime` it runs with."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import ray
import ray.train
import ray.train.torch
import torch
from tailsweep.trainables import report_keys
from tailsweep.trainables.distributed.log_forwarding import ForwardedMessages, forwarded_messages
from tailsweep.trainables.distributed.settings import WorkerConfig
from tailsweep.trainables.report_keys import Stage
from tailsweep.trainables.training.runtime import Report
from torch import Tensor, nn

logger = logging.getLogger(__name__)

# Scores lie in [-1, 1]: with this offset a checkpoint of stage two always outranks one of stage one.
STAGE_OFFSET = 10.0
TIE_BREAK = 1e-9  # per epoch: of equal scores the earlier checkpoint is kept
CHECKPOINT_SCORE = "checkpoint_score"


def train_two_stages(train_loop_config: Mapping[str, object]) -> None:
    """Train both stages in a Ray Train worker, from the newest whole checkpoint on.

    Args:
        train_loop_config: A ``WorkerConfig``, dumped.
    """
    # Imported here: the trial's driver and Train's controller unpickle this function and need none of it.
    from tailsweep.trainables.data.tokenized import fetch_prepared
    from tailsweep.trainables.distributed.allocator import keep_freed_memory
    from tailsweep.trainables.distributed.stage_one_actor import open_features_of
    from tailsweep.trainables.models.classifier import build_classifier
    from tailsweep.trainables.models.hub import check_weights
    from tailsweep.trainables.storage.cache import default_cache_dir
    from tailsweep.trainables.training.checkpoint import newest_checkpoint
    from tailsweep.trainables.training.stages import TrialRun, run_two_stages, stage_one_is_left

    config = WorkerConfig.model_validate(train_loop_config)
    trial, metric = config.trial, config.metric
    data = fetch_prepared(config.data, default_cache_dir())
    # Train would name the latest checkpoint it knows of, even a damaged one.
    with forwarded_messages() as messages, newest_checkpoint(config.resume_from) as (start, damaged):
        runtime = RayRuntime(metric, [trial.stage_one.keeps_best, trial.stage_two.keeps_best], messages)
        if runtime.device.type == "cpu":
            keep_freed_memory()
        check_weights(trial.model.name, config.weights)
        model = runtime.place(build_classifier(trial.model, data.label_names, trial.seed))
        if (notice := describe_damaged(damaged, start)) is not None:
            logger.warning(notice)
        is_left = stage_one_is_left(trial, start, metric)
        features = open_features_of(model, data, config.features) if config.features and is_left else None
        run_two_stages(TrialRun(trial, data, runtime, features, metric), model, start)


class RayRuntime:
    """The runtime of a Ray Train worker.

    Args:
        metric: the key that ranks checkpoints.
        keeps_best: for each stage, whether the best of them is kept; else the last.
        messages: what this worker logs.
    """

    def __init__(self, metric: str, keeps_best: Sequence[bool], messages: ForwardedMessages) -> None:
        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        # On a node whose GPUs are only declared to Ray (tests do that), there is no CUDA device to use.
        self.device: torch.device = ray.train.torch.get_device() if torch.cuda.is_available() else torch.device("cpu")
        self.metric = metric
        self.keeps_best = keeps_best
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
        if self.world_size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def report(self, report: Report, checkpoint: Path | None) -> None:
        """Report to Ray Train, with the score that ranks the checkpoint."""
        stage = report_keys.STAGES.index(Stage(str(report[report_keys.STAGE])))
        epoch = cast(float, report[report_keys.EPOCH])
        value = cast(float, report[self.metric]) - TIE_BREAK * epoch if self.keeps_best[stage] else 1 - 1 / (1 + epoch)
        score = STAGE_OFFSET * stage + value
        ray.train.report(
            {**report, **self.messages.take(), CHECKPOINT_SCORE: score},
            checkpoint=None if checkpoint is None else ray.train.Checkpoint.from_directory(str(checkpoint)),
            checkpoint_dir_name=None if checkpoint is None else checkpoint.name,
        )


def describe_damaged(damaged: list[str], start: Path | None) -> str | None:
    """Describe the damaged checkpoints that were skipped; None if there are none."""
    if not damaged:
        return None
    where = "its start" if start is None else start.name
    return f"damaged, by their checksums, and passed over: {', '.join(damaged)}; continues from {where}"
