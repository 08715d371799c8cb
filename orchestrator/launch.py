"""Runs a sweep from its configuration to its results: checks first, then Tune, then the chosen model."""

import functools
import json
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console

from orchestrator.bookkeeping import Bookkeeping, settled
from orchestrator.config import Sweep, SweepConfig, to_yaml
from orchestrator.export import export_best
from orchestrator.preparation import environment, prepare_trials
from orchestrator.progress import Progress
from orchestrator.ray_session import ray_session, trial_slots
from orchestrator.records import (
    CHECKPOINTS_FOLDER,
    DATA_FOLDER,
    ENVIRONMENT_FILE,
    SWEEP_FILE,
    WANDB_FOLDER,
    CandidateRecord,
    Records,
    RunDirectory,
    best_epoch,
    open_run,
    read_records,
    read_sweep,
    write_candidates,
)
from orchestrator.report import write_report
from orchestrator.results import chosen_row, read_test_metrics, write_tables
from orchestrator.scheduler import Rungs, StageOneASHA
from orchestrator.tracking import Tracker, flatten, sync_command
from trainables import keys
from trainables.checkpoint import checkpoint_name
from trainables.mailbox import ReportMailbox
from trainables.ray_trial import Placement, TrialSetup, WorkerConfig, run_trial


def run_sweep(sweep: Sweep, address: str | None, console: Console) -> int:
    """Run a new sweep to its end; returns the exit status: 0 done, 1 interrupted or no candidate was completed.

    Raises:
        ValueError: the user's input cannot be used; nothing has been written then.
    """
    say = _sayer(console)
    config = sweep.config
    run = RunDirectory(f"{config.storage.rstrip('/')}/{config.name}")
    run.refuse_existing()
    records = Records(
        [CandidateRecord(c.name, dict(c.values), c.trial.model_dump(mode="json")) for c in sweep.candidates()], []
    )
    say(f"sweep {config.name}: {len(records.candidates)} candidates")
    prepared = prepare_trials(records.candidates, config.metric, say)
    for note in (*sweep.notes, *prepared.notes):
        say(f"note: {note}")
    with ray_session(address):
        slots = trial_slots(_placement(config))
        run.create()
        run.write_text(ENVIRONMENT_FILE, json.dumps(environment(prepared, ray.nodes()), indent=2) + "\n")
        for key, data in prepared.by_key.items():
            run.upload(data.folder, f"{DATA_FOLDER}/{key}")
        run.write_text(SWEEP_FILE, to_yaml(sweep))
        # Last: with this file the run directory is one that `resume` can go on with.
        write_candidates(run, records.candidates)
        return _to_the_end(run, config, records, prepared.key_of, slots, console)


def resume_sweep(location: str, address: str | None, console: Console) -> int:
    """Go on with an interrupted sweep from its own records; returns the exit status as :func:`run_sweep` does.

    Finished candidates stay finished, unfinished ones go on from their last checkpoint, and ASHA's rungs are as they
    were: the history is replayed to a fresh scheduler.
    """
    run = open_run(location)
    records = read_records(run)
    config = read_sweep(run).config
    key_of: dict[str, str] = json.loads(run.read_text(ENVIRONMENT_FILE))["data_of"]
    left = len(records.candidates) - len(records.outcomes)
    _sayer(console)(f"sweep {run.name}: {left} of {len(records.candidates)} candidates left")
    with ray_session(address):
        return _to_the_end(run, config, records, key_of, trial_slots(_placement(config)), console)


def _to_the_end(
    run: RunDirectory, config: SweepConfig, records: Records, key_of: dict[str, str], slots: int, console: Console
) -> int:
    say = _sayer(console)
    scheduler = _scheduler(config, records)
    epochs = {c.name: (c.trial["stage_one"]["epochs"], c.trial["stage_two"]["epochs"]) for c in records.candidates}
    with tempfile.TemporaryDirectory(prefix="tailsweep-") as temporary:
        tracking_folder = run.local or Path(temporary)
        tracker = Tracker(config.wandb, run.name, tracking_folder)
        bookkeeping = Bookkeeping(
            run, records, scheduler, config.metric, tracker, Progress(epochs, config.metric, console)
        )
        _settle_what_is_known(records, scheduler, bookkeeping)
        try:
            if not records.finished:
                _tune(run, config, records, key_of, slots, scheduler, bookkeeping)
        finally:
            tracker.close()
        rows = write_tables(run, records, config.metric)
        chosen = chosen_row(rows, config.metric)
        if records.finished and chosen is not None:
            _drop_spent_checkpoints(run, records, config.metric)
            if read_test_metrics(run) is None:
                _export(run, config, records, key_of, chosen["candidate"])
                test = {k: v for k, v in (read_test_metrics(run) or {}).items() if k.startswith(f"{keys.TEST}/")}
                settings = flatten(config.model_dump(mode="json"))
                tracker.finish_sweep(settings, {"chosen": chosen["candidate"], **test})
        if run.local is None and (tracking_folder / WANDB_FOLDER).exists():
            run.upload(tracking_folder / WANDB_FOLDER, WANDB_FOLDER)
    say("\n" + write_report(run, records, config.metric))
    if config.wandb.mode == "offline":
        say(f"W&B      {run.uri(WANDB_FOLDER)}; to upload: {sync_command(run.uri(WANDB_FOLDER))}")
    if not records.finished:
        say(f"interrupted; to go on: tailsweep resume {run.location}")
    return 0 if records.finished and chosen is not None else 1


def _tune(
    run: RunDirectory,
    config: SweepConfig,
    records: Records,
    key_of: dict[str, str],
    slots: int,
    scheduler: StageOneASHA | None,
    bookkeeping: Bookkeeping,
) -> None:
    """Tune's part: the unfinished candidates, in their order, as many at once as fit."""
    unfinished = [candidate for candidate in records.candidates if candidate.name not in records.outcomes]
    at_once = slots if config.max_concurrent == "auto" else min(slots, config.max_concurrent)
    # Beside the driver, whose node must live anyway.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    mailbox = ray.remote(num_cpus=0, scheduling_strategy=here)(ReportMailbox).remote()
    setup = TrialSetup(
        storage=run.uri(CHECKPOINTS_FOLDER),
        placement=_placement(config),
        mailbox=mailbox,
        workers={
            candidate.name: WorkerConfig(
                trial=candidate.trial,
                metric=config.metric,
                data_key=key_of[candidate.name],
                published_data=run.uri(f"{DATA_FOLDER}/{key_of[candidate.name]}"),
            )
            for candidate in unfinished
        },
        heard={
            candidate.name: [(row[keys.STAGE], row[keys.EPOCH]) for row in records.history_of(candidate.name)]
            for candidate in unfinished
        },
    )
    # Tune's own loggers would write every report a second time, next to pickles that nothing here reads.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(at_once)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    tuner = tune.Tuner(
        # A trial's driver only waits: a byte of memory costs its workers nothing, where a CPU would.
        tune.with_resources(functools.partial(run_trial, setup=setup), tune.PlacementGroupFactory([{"memory": 1}])),
        param_space={"candidate": tune.grid_search([candidate.name for candidate in unfinished])},
        tune_config=tune.TuneConfig(
            metric=config.metric,
            mode="max",
            scheduler=scheduler,
            max_concurrent_trials=at_once,
            reuse_actors=True,  # a trial's driver spends seconds importing Ray Train and torch
            trial_dirname_creator=lambda trial: str(trial.config["candidate"]),
        ),
        run_config=tune.RunConfig(name="tune", storage_path=run.uri("state"), callbacks=[bookkeeping], verbose=0),
    )
    with bookkeeping.progress:
        tuner.fit()


def _export(run: RunDirectory, config: SweepConfig, records: Records, key_of: dict[str, str], candidate: str) -> None:
    """Make ``best/`` in a task with a worker's resources: the driver's node may have no accelerator."""
    placement = _placement(config)
    best = best_epoch(records.history_of(candidate), config.metric)
    trial = next(c.trial for c in records.candidates if c.name == candidate)
    task = ray.remote(num_cpus=placement["cpus_per_worker"], num_gpus=placement["gpus_per_worker"])(export_best)
    ray.get(task.remote(run.location, candidate, trial, best, key_of[candidate]))


def _scheduler(config: SweepConfig, records: Records) -> StageOneASHA | None:
    """ASHA with the rungs that the history so far gives; None where it has nothing to decide."""
    max_epochs = max(candidate.trial[keys.STAGE_ONE]["epochs"] for candidate in records.candidates)
    if config.asha is None or max_epochs < config.asha.grace_epochs:
        return None
    asha = config.asha
    rungs = Rungs(asha.grace_epochs, max_epochs, asha.reduction_factor, asha.brackets, seed=config.seed)
    scheduler = StageOneASHA(rungs, config.metric)
    scheduler.replay(records.history)
    return scheduler


def _settle_what_is_known(records: Records, scheduler: StageOneASHA | None, bookkeeping: Bookkeeping) -> None:
    """Take up the outcomes there are, and write those that a killed sweep had no time for: its history has them."""
    for candidate in records.candidates:
        if candidate.name in records.outcomes:
            bookkeeping.recall(records.outcomes[candidate.name])
        elif (verdict := settled(records, scheduler, bookkeeping.metric, candidate.name)) is not None:
            bookkeeping.end(candidate.name, *verdict)


def _drop_spent_checkpoints(run: RunDirectory, records: Records, metric: str) -> None:
    """Keep of every completed candidate the epoch it is judged by, of the pruned ones nothing."""
    for name, outcome in records.outcomes.items():
        folder = f"{CHECKPOINTS_FOLDER}/{name}"
        if outcome.state == "pruned":
            run.delete_folder(folder)
        elif outcome.state == "completed":
            best = best_epoch(records.history_of(name), metric)
            assert best is not None, "a completed candidate has reported"
            kept = checkpoint_name(best[keys.STAGE], best[keys.EPOCH])
            for checkpoint in run.list(folder):
                if checkpoint.startswith(keys.STAGES) and checkpoint != kept:
                    run.delete_folder(f"{folder}/{checkpoint}")


def _placement(config: SweepConfig) -> Placement:
    stage_two = config.resources.stage_two
    return Placement(
        workers=stage_two.workers, cpus_per_worker=stage_two.cpus_per_worker, gpus_per_worker=stage_two.gpus_per_worker
    )


def _sayer(console: Console) -> Callable[[str], Any]:
    return functools.partial(console.print, highlight=False, markup=False, soft_wrap=True)
