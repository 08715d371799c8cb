"""Runs a sweep from its configuration to its results: checks first, then the rounds, then the chosen model."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from rich.console import Console

from orchestrator.bookkeeping import Bookkeeping, epochs_of, settled
from orchestrator.config import Sweep, to_yaml
from orchestrator.export import Chosen, export_best
from orchestrator.preparation import environment, prepare_trials
from orchestrator.progress import Progress
from orchestrator.ray_session import ray_session, trial_slots
from orchestrator.records import (
    CHECKPOINTS_FOLDER,
    DATA_FOLDER,
    ENVIRONMENT_FILE,
    SWEEP_FILE,
    WANDB_FOLDER,
    Records,
    RunDirectory,
    best_epoch,
    made_of,
    open_run,
    read_records,
    read_sweep,
    record_of,
    write_candidates,
)
from orchestrator.report import write_report
from orchestrator.results import chosen_row, read_test_metrics, write_tables
from orchestrator.rounds import Playing, placement, remove_published_features, run_rounds
from orchestrator.scheduler import Rungs, StageASHA
from orchestrator.search_space import Candidate
from orchestrator.tracking import Tracker, flatten, sync_command
from trainables import keys
from trainables.checkpoint import checkpoint_name


def run_sweep(
    sweep: Sweep,
    address: str | None,
    console: Console,
    candidates: Sequence[Candidate] | None = None,
    export: bool = True,
) -> int:
    """Run a new sweep to its end; returns the exit status: 0 done, 1 interrupted or no candidate was completed.

    Args:
        candidates: in place of those that ``sweep`` would draw.
        export: whether the chosen candidate becomes ``best/`` and is scored on the test rows.

    Raises:
        ValueError: the user's input cannot be used; nothing has been written then.
    """

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    config = sweep.config
    run = RunDirectory(f"{config.storage.rstrip('/')}/{config.name}")
    run.refuse_existing()
    records = Records([record_of(candidate) for candidate in candidates or sweep.candidates()])
    say(f"sweep {config.name}: {sweep.num_candidates} candidates")
    trials = [candidate.trial for candidate in records.candidates]
    trials = trials or [trial.model_dump(mode="json") for trial in sweep.representatives()]
    prepared = prepare_trials(trials, config.metric, config.features, say, config.finish)
    for note in (*sweep.notes, *prepared.notes):
        say(f"note: {note}")
    with ray_session(address):
        for stage in keys.STAGES:
            trial_slots(placement(sweep, stage), stage)
        run.create()
        made = environment(prepared, ray.nodes())
        run.write_text(ENVIRONMENT_FILE, json.dumps(made, indent=2) + "\n")
        for key, data in prepared.data.items():
            run.upload(data.folder, f"{DATA_FOLDER}/{key}")
        run.write_text(SWEEP_FILE, to_yaml(sweep))
        # Last: with this file the run directory is one that `resume` can go on with.
        write_candidates(run, records.candidates)
        return _to_the_end(run, sweep, records, made, console, export)


def resume_sweep(location: str, address: str | None, console: Console, export: bool = True) -> int:
    """Go on with an interrupted sweep from its own records; returns the exit status as :func:`run_sweep` does.

    Finished candidates stay finished, unfinished ones go on from their last checkpoint, and ASHA's rungs are as they
    were: the history is replayed to a fresh scheduler.
    """
    run = open_run(location)
    records = read_records(run)
    sweep = read_sweep(run)
    made = json.loads(run.read_text(ENVIRONMENT_FILE))
    to_draw = sweep.num_candidates - len(records.entered)
    left = to_draw + sum(candidate.name not in records.outcomes for candidate in records.candidates)
    text = f"sweep {run.name}: {left} of {to_draw + len(records.candidates)} candidates left"
    console.print(text, highlight=False, markup=False, soft_wrap=True)
    with ray_session(address):
        return _to_the_end(run, sweep, records, made, console, export)


def _to_the_end(
    run: RunDirectory, sweep: Sweep, records: Records, made: dict[str, Any], console: Console, export: bool
) -> int:
    """The rounds, then the results."""
    config = sweep.config
    scheduler = _scheduler(sweep, records)
    epochs = {candidate.name: epochs_of(candidate.trial) for candidate in records.candidates}
    with tempfile.TemporaryDirectory(prefix="tailsweep-") as temporary:
        tracking_folder = run.local or Path(temporary)
        tracker = Tracker(config.wandb, run.name, tracking_folder)
        progress = Progress(epochs, config.metric, console, sweep.num_candidates)
        bookkeeping = Bookkeeping(run, records, scheduler, config.metric, tracker, progress)
        playing = Playing(run, sweep, records, made, scheduler, bookkeeping, console)
        _settle_what_is_known(records, scheduler, bookkeeping)
        try:
            if not playing.finished:
                run_rounds(playing)
        finally:
            tracker.close()
        rows = write_tables(run, records, config.metric)
        chosen = chosen_row(rows, config.metric)
        if playing.finished:
            remove_published_features(run)
        if playing.finished and chosen is not None:
            _drop_spent_checkpoints(run, records, config.metric)
            if export and read_test_metrics(run) is None:
                _export(playing, chosen["candidate"])
                test = {k: v for k, v in (read_test_metrics(run) or {}).items() if k.startswith(f"{keys.TEST}/")}
                settings = flatten(config.model_dump(mode="json"))
                tracker.finish_sweep(settings, {"chosen": chosen["candidate"], **test})
        if run.local is None and (tracking_folder / WANDB_FOLDER).exists():
            run.upload(tracking_folder / WANDB_FOLDER, WANDB_FOLDER)
    playing.say("\n" + write_report(run, records, config.metric))
    if config.wandb.mode == "offline":
        playing.say(f"W&B      {run.uri(WANDB_FOLDER)}; to upload: {sync_command(run.uri(WANDB_FOLDER))}")
    if not playing.finished:
        playing.say(f"interrupted; to go on: tailsweep resume {run.location}")
    return 0 if playing.finished and chosen is not None else 1


def _export(playing: Playing, candidate: str) -> None:
    """Make ``best/`` in a task with a worker's resources: the driver's node may have no accelerator."""
    asked = placement(playing.sweep, keys.STAGE_TWO)
    chosen = to_be_a_model(playing.run, playing.sweep, playing.records, playing.environment, candidate)
    task = ray.remote(num_cpus=asked["cpus_per_worker"], num_gpus=asked["gpus_per_worker"])(export_best)
    for step in ray.get(task.remote(chosen)):
        playing.say(f"finish   {step}")


def to_be_a_model(
    run: RunDirectory, sweep: Sweep, records: Records, environment: dict[str, Any], candidate: str
) -> Chosen:
    """A completed candidate, as :func:`export_best` takes it; ``environment`` is the content of environment.json."""
    best = best_epoch(records.history_of(candidate), sweep.config.metric)
    assert best is not None, "a completed candidate has reported"
    trial = records.candidate(candidate).trial
    return Chosen(
        location=run.location,
        candidate=candidate,
        trial=trial,
        best=dict(best),
        data_key=environment["made_of"][made_of(trial)]["data"],
        finish=sweep.config.finish.model_dump(),
        metric=sweep.config.metric,
    )


def _scheduler(sweep: Sweep, records: Records) -> StageASHA | None:
    """ASHA with the rungs that the history so far gives; None where it has nothing to decide."""
    config = sweep.config
    trials = [candidate.trial for candidate in records.candidates]
    if config.search == "optuna":  # what may yet be drawn
        trials += [trial.model_dump(mode="json") for trial in sweep.representatives()]
    rungs = {}
    for stage, asha in ((keys.STAGE_ONE, config.asha), (keys.STAGE_TWO, config.round_two.asha)):
        max_epochs = max(trial[stage]["epochs"] for trial in trials)
        if asha is not None and max_epochs >= asha.grace_epochs:
            rungs[stage] = Rungs(asha.grace_epochs, max_epochs, asha.reduction_factor, asha.brackets, seed=config.seed)
    if not rungs:
        return None
    scheduler = StageASHA(rungs, config.metric)
    scheduler.replay(records.history)
    return scheduler


def _settle_what_is_known(records: Records, scheduler: StageASHA | None, bookkeeping: Bookkeeping) -> None:
    """Take up the outcomes there are, and write those that a killed sweep had no time for: its history has them."""
    for candidate in records.candidates:
        if candidate.name in records.outcomes:
            bookkeeping.recall(records.outcomes[candidate.name])
        elif (verdict := settled(records, scheduler, bookkeeping.metric, candidate.name)) is not None:
            bookkeeping.end(candidate.name, *verdict)


def _drop_spent_checkpoints(run: RunDirectory, records: Records, metric: str) -> None:
    """Keep of every completed candidate the epoch it is judged by, of those that ended otherwise nothing."""
    for name, outcome in records.outcomes.items():
        folder = f"{CHECKPOINTS_FOLDER}/{name}"
        if outcome.state in {"pruned", "not_promoted", "promoted"}:
            run.delete_folder(folder)
        elif outcome.state == "completed":
            best = best_epoch(records.history_of(name), metric)
            assert best is not None, "a completed candidate has reported"
            kept = checkpoint_name(best[keys.STAGE], best[keys.EPOCH])
            for checkpoint in run.list(folder):
                if checkpoint.startswith(keys.STAGES) and checkpoint != kept:
                    run.delete_folder(f"{folder}/{checkpoint}")
