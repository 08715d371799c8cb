"""One round of trials under Tune: what runs, what it asks for, and who hears of it."""

import functools
import logging
import os
from collections.abc import Mapping
from typing import Literal

import ray
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.bookkeeping import Bookkeeping
from orchestrator.records import CHECKPOINTS_FOLDER, RunDirectory
from orchestrator.scheduler import StageOneASHA
from trainables.config import TrialConfig
from trainables.mailbox import ReportMailbox
from trainables.ray_trial import Placement, TrialSetup, WorkerConfig, run_stage_one, run_trial

# both_stages: a Ray Train run of all that a candidate has left. The first round of a tournament has stage one only:
# stage_one_warm trains it in Tune's own actors, one candidate after another; stage_one_run as a Ray Train run, where
# the trunk has to be run live.
Round = Literal["both_stages", "stage_one_warm", "stage_one_run"]


def run_round(
    a_round: Round,
    run: RunDirectory,
    workers: Mapping[str, WorkerConfig],
    heard: Mapping[str, list[tuple[str, int]]],
    placement: Placement,
    at_once: int,
    scheduler: StageOneASHA | None,
    bookkeeping: Bookkeeping,
) -> None:
    """Run the candidates of ``workers``, in their order, as many at once as are allowed; returns when Tune is done.

    Args:
        workers: by candidate, what its workers are given.
        heard: by candidate, the (stage, epoch) pairs that the history has already.
        placement: what one candidate asks for.
    """
    if not workers:
        return
    if a_round == "stage_one_run":
        workers = {name: _only_stage_one(worker) for name, worker in workers.items()}
    warm = a_round == "stage_one_warm"
    # Beside the driver, whose node must live anyway.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    setup = TrialSetup(
        storage=run.uri(CHECKPOINTS_FOLDER),
        placement=placement,
        mailbox=None if warm else ray.remote(num_cpus=0, scheduling_strategy=here)(ReportMailbox).remote(),
        workers=dict(workers),
        heard=dict(heard),
    )
    if warm:
        bundle = {"CPU": placement["cpus_per_worker"], "GPU": placement["gpus_per_worker"]}
        asked = tune.PlacementGroupFactory([{kind: amount for kind, amount in bundle.items() if amount}])
    else:
        # The driver of a Train run only waits: a byte of memory costs its workers nothing, where a CPU would.
        asked = tune.PlacementGroupFactory([{"memory": 1}])
    # Tune's own loggers would write every report a second time, next to pickles that nothing here reads.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(at_once)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    tuner = tune.Tuner(
        tune.with_resources(functools.partial(run_stage_one if warm else run_trial, setup=setup), asked),
        param_space={"candidate": tune.grid_search(list(workers))},
        tune_config=tune.TuneConfig(
            metric=bookkeeping.metric,
            mode="max",
            scheduler=scheduler,
            max_concurrent_trials=at_once,
            reuse_actors=True,  # a process spends seconds importing Ray Train, torch and transformers
            trial_dirname_creator=lambda trial: str(trial.config["candidate"]),
        ),
        run_config=tune.RunConfig(
            name=f"tune-{a_round}", storage_path=run.uri("state"), callbacks=[bookkeeping], verbose=0
        ),
    )
    with bookkeeping.progress:
        tuner.fit()


def _only_stage_one(worker: WorkerConfig) -> WorkerConfig:
    trial = TrialConfig.model_validate(worker["trial"])
    cut = trial.model_copy(update={"stage_two": trial.stage_two.model_copy(update={"epochs": 0})})
    return {**worker, "trial": cut.model_dump(mode="json")}
