"""Runs a sweep from its configuration to its results: checks first, then the rounds, then the chosen model."""

import functools
import json
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import ray
from rich.console import Console
from tailsweep.orchestrator.config.search_space import Candidate
from tailsweep.orchestrator.config.sweep import Sweep, to_yaml
from tailsweep.orchestrator.monitoring.console import Progress
from tailsweep.orchestrator.monitoring.wandb_tracker import (
    Tracker,
    flatten,
    run_id,
    sync_command,
    upload_runs,
    uploaded_runs,
)
from tailsweep.orchestrator.planning.preparation import environment, prepare_trials
from tailsweep.orchestrator.planning.ray_session import ray_session, result_of
from tailsweep.orchestrator.planning.resources import placement
from tailsweep.orchestrator.preflight.doctor import refuse_unready
from tailsweep.orchestrator.preflight.needs import needs_of, needs_of_run
from tailsweep.orchestrator.runner.callback import Bookkeeping, epochs_of, settled
from tailsweep.orchestrator.runner.export import Chosen, export_best
from tailsweep.orchestrator.runner.phases import remove_published_features, run_rounds
from tailsweep.orchestrator.runner.tune_run import Playing
from tailsweep.orchestrator.runs.candidates import Records, best_epoch, made_of, record_of
from tailsweep.orchestrator.runs.directory import (
    CHECKPOINTS_FOLDER,
    DATA_FOLDER,
    ENVIRONMENT_FILE,
    SWEEP_FILE,
    WANDB_FOLDER,
    RunDirectory,
    open_run,
    refuse_ways_out,
)
from tailsweep.orchestrator.runs.lock import held
from tailsweep.orchestrator.runs.records import read_records, read_sweep, write_candidates
from tailsweep.orchestrator.runs.report import write_report
from tailsweep.orchestrator.runs.tables import chosen_row, read_test_metrics, write_tables
from tailsweep.orchestrator.search.asha import Rungs, StageASHA
from tailsweep.trainables import report_keys
from tailsweep.trainables.errors import StorageError
from tailsweep.trainables.storage.filesystem import join_location
from tailsweep.trainables.training.checkpoint import checkpoint_name


def run_sweep(
    sweep: Sweep,
    address: str | None,
    console: Console,
    candidates: Sequence[Candidate] | None = None,
    export: bool = True,
    checked: bool = False,
    resume: bool = False,
) -> int:
    """Run a new sweep to its end; returns the exit status: 0 done, 1 interrupted or no candidate was completed.

    Args:
        candidates: in place of those that ``sweep`` would draw.
        export: whether the chosen candidate becomes ``best/`` and is scored on the test rows.
        checked: whether the caller has looked at the cluster already (see ``doctor.py``).
        resume: whether to go on with the run directory where it is there already.

    Raises:
        ValueError: the user's input cannot be used; nothing has been written then.
    """

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    config = sweep.config
    run = RunDirectory(join_location(config.storage, str(config.name)))
    if resume and run.reach() and run.has_begun:
        return resume_sweep(run.location, address, console, export, checked)
    run.refuse_existing(but_one_not_begun=resume)
    records = Records([record_of(candidate) for candidate in candidates or sweep.candidates()])
    say(f"sweep {config.name}: {sweep.num_candidates} candidates")
    trials = [candidate.trial for candidate in records.candidates]
    trials = trials or [trial.model_dump(mode="json") for trial in sweep.representatives()]
    prepared = prepare_trials(trials, config.metric, config.features, say, config.finish)
    for note in (*sweep.notes, *prepared.notes):
        say(f"note: {note}")
    with ray_session(address) as started_here:
        if not checked:
            refuse_unready(needs_of(sweep, trials, prepared), started_here, say)
        run.create(over_one_not_begun=resume)
        with held(run):
            made = environment(prepared, ray.nodes())
            run.write_text(ENVIRONMENT_FILE, json.dumps(made, indent=2) + "\n")
            for key, data in prepared.data.items():
                run.upload(data.folder, f"{DATA_FOLDER}/{key}")
            run.write_text(SWEEP_FILE, to_yaml(sweep))
            # Last: with this file the run directory is one that `resume` can go on with.
            write_candidates(run, records.candidates)
            return _to_the_end(run, sweep, records, made, console, export)


def resume_sweep(
    location: str, address: str | None, console: Console, export: bool = True, checked: bool = False
) -> int:
    """Go on with an interrupted sweep from its own records; returns the exit status as :func:`run_sweep` does.

    Finished candidates stay finished, unfinished ones go on from their last checkpoint, and ASHA's rungs are as they
    were: the history is replayed to a fresh scheduler.
    """
    run = open_run(location)
    refuse_ways_out(run)

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    with held(run):
        records = read_records(run)
        sweep = read_sweep(run)
        made = json.loads(run.read_text(ENVIRONMENT_FILE))
        to_draw = sweep.num_candidates - len(records.entered)
        left = to_draw + sum(candidate.name not in records.outcomes for candidate in records.candidates)
        say(f"sweep {run.name}: {left} of {to_draw + len(records.candidates)} candidates left")
        with ray_session(address) as started_here:
            if left and not checked:
                refuse_unready(needs_of_run(run, sweep, records, made), started_here, say)
            return _to_the_end(run, sweep, records, made, console, export)


def _to_the_end(
    run: RunDirectory, sweep: Sweep, records: Records, made: dict[str, Any], console: Console, export: bool
) -> int:
    """The rounds, then the results; whatever stops them on the way, how to go on is the last that is said."""
    try:
        return _play_and_write(run, sweep, records, made, console, export)
    except (StorageError, KeyboardInterrupt) as error:
        why = str(error) or "interrupted"
        console.print(f"{why}; to go on: {run.resume_command}", highlight=False, markup=False, soft_wrap=True)
        return 1


def _play_and_write(
    run: RunDirectory, sweep: Sweep, records: Records, made: dict[str, Any], console: Console, export: bool
) -> int:
    config = sweep.config
    scheduler = _scheduler(sweep, records)
    epochs = {candidate.name: epochs_of(candidate.trial) for candidate in records.candidates}
    with tempfile.TemporaryDirectory(prefix="tailsweep-") as temporary:
        tracking_folder = run.local or Path(temporary)
        # What a killed process has logged offline on a disk of its own is lost, and logged again.
        logs_anew = run.local is None and config.wandb.mode == "offline"
        uploaded = uploaded_runs(run) if logs_anew else set()
        say = functools.partial(console.print, highlight=False, markup=False, soft_wrap=True)
        tracker = Tracker(config.wandb, run.name, tracking_folder, say)
        progress = Progress(epochs, config.metric, console, sweep.num_candidates)
        bookkeeping = Bookkeeping(run, records, scheduler, config.metric, tracker, progress, config.max_failures)
        playing = Playing(run, sweep, records, made, scheduler, bookkeeping, console)
        lost = {name for name in records.outcomes if logs_anew and run_id(tracker.sweep, name) not in uploaded}
        _settle_what_is_known(records, scheduler, bookkeeping, lost)
        try:
            if not playing.finished:
                run_rounds(playing)
            if bookkeeping.storage_error is not None:
                raise bookkeeping.storage_error
        finally:
            tracker.close()
        rows = write_tables(run, records, config.metric)
        chosen = chosen_row(rows, config.metric)
        if playing.finished:
            remove_published_features(run)
        if playing.finished and chosen is not None:
            _drop_spent_checkpoints(run, records, config.metric)
            exported = read_test_metrics(run) is not None
            if export and not exported:
                _export(playing, chosen["candidate"])
            if export and (not exported or (logs_anew and run_id(tracker.sweep, "sweep") not in uploaded)):
                test = {k: v for k, v in (read_test_metrics(run) or {}).items() if k.startswith(f"{report_keys.TEST}/")}
                settings = flatten(config.model_dump(mode="json"))
                tracker.finish_sweep(settings, {"chosen": chosen["candidate"], **test})
        if run.local is None:
            upload_runs(tracking_folder, run)
    playing.say("\n" + write_report(run, records, config.metric))
    if tracker.mode == "offline":
        copied = "" if run.local is not None else "copy it to a folder here, and "
        folder = run.uri(WANDB_FOLDER) if run.local is not None else WANDB_FOLDER
        playing.say(f"W&B      {run.uri(WANDB_FOLDER)}; to upload: {copied}{sync_command(folder)}")
    if not playing.finished:
        why = bookkeeping.stopped or "interrupted"
        playing.say(f"{why}; to go on: {run.resume_command}")
    return 0 if playing.finished and chosen is not None else 1


def _export(playing: Playing, candidate: str) -> None:
    """Make ``best/`` in a task with a worker's resources: the driver's node may have no accelerator."""
    asked = placement(playing.sweep, report_keys.STAGE_TWO)
    chosen = to_be_a_model(playing.run, playing.sweep, playing.records, playing.environment, candidate)
    task = ray.remote(num_cpus=asked["cpus_per_worker"], num_gpus=asked["gpus_per_worker"])(export_best)
    for step in result_of(task.remote(chosen)):
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
    for stage, asha in ((report_keys.STAGE_ONE, config.asha), (report_keys.STAGE_TWO, config.round_two.asha)):
        max_epochs = max(trial[stage]["epochs"] for trial in trials)
        if asha is not None and max_epochs >= asha.grace_epochs:
            rungs[stage] = Rungs(asha.grace_epochs, max_epochs, asha.reduction_factor, asha.brackets, seed=config.seed)
    if not rungs:
        return None
    scheduler = StageASHA(rungs, config.metric)
    scheduler.replay(records.history)
    return scheduler


def _settle_what_is_known(
    records: Records, scheduler: StageASHA | None, bookkeeping: Bookkeeping, lost: Collection[str]
) -> None:
    """Take up the outcomes there are, and write those that a killed sweep had no time for: its history has them.

    Args:
        lost: candidates whose W&B runs are.
    """
    for candidate in records.candidates:
        if candidate.name in records.outcomes:
            bookkeeping.recall(records.outcomes[candidate.name], track=candidate.name in lost)
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
            kept = checkpoint_name(best[report_keys.STAGE], best[report_keys.EPOCH])
            for checkpoint in run.list(folder):
                if checkpoint.startswith(report_keys.STAGES) and checkpoint != kept:
                    run.delete_folder(f"{folder}/{checkpoint}")
