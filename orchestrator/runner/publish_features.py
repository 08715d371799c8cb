"""Features made before the trials start, in parts, by all the CPUs or GPUs that the cluster has for trials."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.progress import Progress
from tailsweep.orchestrator.runs.directory import FEATURES_FOLDER, RunDirectory
from tailsweep.trainables.config.data import DataSource
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.data.tokenized import fetch_prepared
from tailsweep.trainables.distributed.settings import FeatureSource, Placement
from tailsweep.trainables.errors import InputError, StorageError, describe_error
from tailsweep.trainables.execution.feature_plan import FeaturePlan
from tailsweep.trainables.execution.feature_store import PartSet, is_whole, make_part
from tailsweep.trainables.models.classifier import build_classifier
from tailsweep.trainables.models.hub import check_weights
from tailsweep.trainables.models.layers import set_trainable
from tailsweep.trainables.storage.cache import cache_folder, default_cache_dir

ROWS_PER_PART = 1024  # small enough for a bar that moves
FEWEST_ROWS = 256  # of a part: a process takes seconds to start
MAX_PARTS = 256

logger = logging.getLogger(__name__)


class FeatureError(InputError):
    """Features cannot be made: a disk is full, say."""


@dataclass(frozen=True)
class Entry:
    """Features that trials need, and the trial of one of these, dumped, whose trunk it is."""

    plan: FeaturePlan
    config: dict[str, Any]
    data: DataSource
    weights: str | None  # of its model, see `models.hub.weights_digest`


def publish_features(
    run: RunDirectory,
    entries: Iterable[Entry],
    placement: Placement,
    slots: int,
    cache_dir: str | None,
    console: Console,
) -> dict[str, FeatureSource]:
    """Have the parts made of every entry that some node's cache lacks.

    Args:
        placement: what a task asks for: a worker's share of it.
        slots: how many such workers the cluster holds.

    Returns:
        Where a trial finds its features, by their keys.

    Raises:
        FeatureError: they cannot be made.
        StorageError: the run directory keeps refusing them.
    """
    task = ray.remote(num_cpus=placement.cpus_per_worker, num_gpus=placement.gpus_per_worker)(_make_one_part)
    sources = {}
    for entry in entries:
        plan = entry.plan
        folder = f"{FEATURES_FOLDER}/{plan.key}"
        at_once = min(slots, plan.num_rows // FEWEST_ROWS)
        parts = max(1, min(max(at_once, plan.num_rows // ROWS_PER_PART), MAX_PARTS))
        sources[plan.key] = FeatureSource(
            plan=plan.dump(), published=run.uri(folder), num_parts=parts, cache_dir=cache_dir
        )
        if _everywhere(plan, cache_dir):
            continue
        run.make_folder(folder)
        part_set = PartSet(run.uri(folder), parts)
        tasks = [task.remote(entry, part_set, index) for index in range(parts)]
        description = f"making features: {plan.split_point}, {plan.num_bytes / 1e6:,.0f} MB"
        try:
            _wait(tasks, description, console)
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            if isinstance(cause, StorageError):
                raise cause from None
            reason = describe_error(cause, line="last")
            raise FeatureError(
                f"{description}: {reason}; fix that and continue by `{run.resume_command}`, or start again with "
                "`--set features.cache=off`"
            ) from None
    return sources


def _wait(tasks: Sequence[Any], description: str, console: Console) -> None:
    """Wait until all are done; a failure cancels the others. Shows a bar in a terminal, a line elsewhere."""
    logger.info(description)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        shown = bar.add_task("", total=len(tasks))
        pending = list(tasks)
        while pending:
            done, pending = ray.wait(pending, num_returns=1)
            try:
                ray.get(done)
            except ray.exceptions.RayError:
                for other in pending:
                    ray.cancel(other, force=True)
                raise
            bar.advance(shown, len(done))


def _everywhere(plan: FeaturePlan, cache_dir: str | None) -> bool:
    """Whether every node has the entry already."""
    check = ray.remote(num_cpus=0)(_is_here)
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    asked = [
        check.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            plan.dump(), cache_dir
        )
        for node in nodes
    ]
    return all(ray.get(asked))


def _is_here(plan: dict[str, Any], cache_dir: str | None) -> bool:
    loaded = FeaturePlan.load(plan)
    return is_whole(cache_folder(cache_dir) / "features" / loaded.key, loaded)


def _make_one_part(entry: Entry, parts: PartSet, index: int) -> None:
    """Make one part of an entry, as a Ray task. Its process is reused, and keeps the model between parts."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trial_config = TrialConfig.model_validate(entry.config)
    check_weights(trial_config.model.name, entry.weights)
    data = fetch_prepared(entry.data, default_cache_dir())
    model = _model(trial_config.model_dump_json(), data.label_names)
    make_part(entry.plan, model, data, parts, index, device)


@lru_cache(maxsize=1)
def _model(trial_config: str, label_names: tuple[str, ...]) -> Any:
    loaded = TrialConfig.model_validate_json(trial_config)
    model = build_classifier(loaded.model, label_names, loaded.seed)
    set_trainable(model, loaded.stage_one.trainable)
    return model
