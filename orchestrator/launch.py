"""Runs a sweep from its configuration to its results: checks first, then the rounds, then the chosen model."""

import functools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from rich.console import Console

from orchestrator.bookkeeping import Bookkeeping, settled
from orchestrator.config import Sweep, SweepConfig, to_yaml
from orchestrator.export import export_best
from orchestrator.feature_cache import Entry, publish_features
from orchestrator.preparation import environment, prepare_trials
from orchestrator.progress import Progress
from orchestrator.promotion import stage_one_end, stage_one_ranking
from orchestrator.ray_session import ray_session, trial_slots
from orchestrator.records import (
    CHECKPOINTS_FOLDER,
    DATA_FOLDER,
    ENVIRONMENT_FILE,
    FEATURES_FOLDER,
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
from orchestrator.rounds import Round, run_round
from orchestrator.scheduler import Rungs, StageOneASHA
from orchestrator.tracking import Tracker, flatten, sync_command
from trainables import keys
from trainables.checkpoint import checkpoint_name
from trainables.features import FeaturePlan
from trainables.ray_trial import FeatureSource, Placement, WorkerConfig


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
    prepared = prepare_trials(records.candidates, config.metric, config.features, say)
    for note in (*sweep.notes, *prepared.notes):
        say(f"note: {note}")
    with ray_session(address):
        for stage in keys.STAGES:
            trial_slots(_placement(config, stage), stage)
        run.create()
        made_of = environment(prepared, ray.nodes())
        run.write_text(ENVIRONMENT_FILE, json.dumps(made_of, indent=2) + "\n")
        for key, data in prepared.by_key.items():
            run.upload(data.folder, f"{DATA_FOLDER}/{key}")
        run.write_text(SWEEP_FILE, to_yaml(sweep))
        # Last: with this file the run directory is one that `resume` can go on with.
        write_candidates(run, records.candidates)
        return _to_the_end(run, config, records, made_of, console)


def resume_sweep(location: str, address: str | None, console: Console) -> int:
    """Go on with an interrupted sweep from its own records; returns the exit status as :func:`run_sweep` does.

    Finished candidates stay finished, unfinished ones go on from their last checkpoint, and ASHA's rungs are as they
    were: the history is replayed to a fresh scheduler.
    """
    run = open_run(location)
    records = read_records(run)
    config = read_sweep(run).config
    made_of = json.loads(run.read_text(ENVIRONMENT_FILE))
    left = len(records.candidates) - len(records.outcomes)
    _sayer(console)(f"sweep {run.name}: {left} of {len(records.candidates)} candidates left")
    with ray_session(address):
        return _to_the_end(run, config, records, made_of, console)


def _to_the_end(
    run: RunDirectory, config: SweepConfig, records: Records, made_of: dict[str, Any], console: Console
) -> int:
    """The rounds, then the results.

    Args:
        made_of: ``environment.json``, which says what rows and features every candidate is made of.
    """
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
                _run_rounds(run, config, records, made_of, scheduler, bookkeeping, console)
        finally:
            tracker.close()
        rows = write_tables(run, records, config.metric)
        chosen = chosen_row(rows, config.metric)
        if records.finished:
            run.delete_folder(FEATURES_FOLDER)
        if records.finished and chosen is not None:
            _drop_spent_checkpoints(run, records, config.metric)
            if read_test_metrics(run) is None:
                _export(run, config, records, made_of["data_of"], chosen["candidate"])
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


def _run_rounds(
    run: RunDirectory,
    config: SweepConfig,
    records: Records,
    made_of: dict[str, Any],
    scheduler: StageOneASHA | None,
    bookkeeping: Bookkeeping,
    console: Console,
) -> None:
    """Inline, one round of both stages; in a tournament, a round for each stage and promotion between them.

    Returns early, with candidates that have not ended, where Tune was interrupted.
    """
    say = _sayer(console)
    first, second = (_placement(config, stage) for stage in keys.STAGES)
    slots = {stage: trial_slots(_placement(config, stage), stage) for stage in keys.STAGES}
    inline = config.promote == "all"
    began = time.monotonic()
    sources = publish_features(
        run,
        _features_needed(records, made_of),
        second if inline else first,
        slots[keys.STAGE_TWO if inline else keys.STAGE_ONE],
        config.features.dir,
        console,
    )
    if sources:
        say(f"features ready after {time.monotonic() - began:.0f} s")

    def play(a_round: Round, names: list[str], placement: Placement, at_once: int) -> None:
        if config.max_concurrent != "auto":
            at_once = min(at_once, config.max_concurrent)
        workers = {
            name: _worker_config(run, config, candidate, made_of, sources)
            for candidate in records.candidates
            if (name := candidate.name) in names
        }
        heard = {name: [(row[keys.STAGE], row[keys.EPOCH]) for row in records.history_of(name)] for name in names}
        run_round(a_round, run, workers, heard, placement, at_once, scheduler, bookkeeping)

    if inline:
        play("both_stages", _unfinished(records), second, slots[keys.STAGE_TWO])
        return
    began = time.monotonic()
    entered = [name for name in _unfinished(records) if stage_one_end(records, name) is None]
    warm = [name for name in entered if name in made_of["features_of"]]
    play("stage_one_warm", warm, first, slots[keys.STAGE_ONE])
    play("stage_one_run", [name for name in entered if name not in warm], first, slots[keys.STAGE_ONE])
    if any(stage_one_end(records, name) is None for name in _unfinished(records)):
        return
    assert config.promote != "all"
    _promote(records, config.promote, config.metric, bookkeeping)
    promoted = _unfinished(records)
    if entered:
        say(f"round one: {len(entered)} candidates in {time.monotonic() - began:.0f} s")
    say(f"promoted: {', '.join(promoted)}")
    began = time.monotonic()
    play("both_stages", promoted, second, slots[keys.STAGE_TWO])
    say(f"round two: {len(promoted)} candidates in {time.monotonic() - began:.0f} s")


def _promote(records: Records, promote: int, metric: str, bookkeeping: Bookkeeping) -> None:
    """End every candidate that is not among the best of the first round."""
    ranking = stage_one_ranking(records, metric)
    for rank, name in enumerate(ranking[promote:], start=promote + 1):
        if name not in records.outcomes:
            reason = f"rank {rank} of {len(ranking)} by {metric} after stage one; the best {promote} go on"
            bookkeeping.end(name, "not_promoted", reason)


def _features_needed(records: Records, made_of: dict[str, Any]) -> list[Entry]:
    """Of the candidates that have stage one before them."""
    entries: dict[str, Entry] = {}
    for candidate in records.candidates:
        key = made_of["features_of"].get(candidate.name)
        ended = candidate.name in records.outcomes or stage_one_end(records, candidate.name) is not None
        if key is not None and not ended and key not in entries:
            plan = FeaturePlan.load(made_of["features"][key])
            entries[key] = Entry(plan, candidate, made_of["data_of"][candidate.name])
    return list(entries.values())


def _worker_config(
    run: RunDirectory,
    config: SweepConfig,
    candidate: CandidateRecord,
    made_of: dict[str, Any],
    sources: dict[str, FeatureSource],
) -> WorkerConfig:
    folder = f"{CHECKPOINTS_FOLDER}/{candidate.name}"
    checkpoints = [] if config.promote == "all" else [c for c in run.list(folder) if c.startswith(keys.STAGE_ONE)]
    data_key = made_of["data_of"][candidate.name]
    return WorkerConfig(
        trial=candidate.trial,
        metric=config.metric,
        data_key=data_key,
        published_data=run.uri(f"{DATA_FOLDER}/{data_key}"),
        features=sources.get(made_of["features_of"].get(candidate.name, "")),
        start=run.uri(f"{folder}/{checkpoints[-1]}") if checkpoints else None,
    )


def _unfinished(records: Records) -> list[str]:
    return [candidate.name for candidate in records.candidates if candidate.name not in records.outcomes]


def _export(run: RunDirectory, config: SweepConfig, records: Records, key_of: dict[str, str], candidate: str) -> None:
    """Make ``best/`` in a task with a worker's resources: the driver's node may have no accelerator."""
    placement = _placement(config, keys.STAGE_TWO)
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
    """Keep of every completed candidate the epoch it is judged by, of those pruned or not promoted nothing."""
    for name, outcome in records.outcomes.items():
        folder = f"{CHECKPOINTS_FOLDER}/{name}"
        if outcome.state in {"pruned", "not_promoted"}:
            run.delete_folder(folder)
        elif outcome.state == "completed":
            best = best_epoch(records.history_of(name), metric)
            assert best is not None, "a completed candidate has reported"
            kept = checkpoint_name(best[keys.STAGE], best[keys.EPOCH])
            for checkpoint in run.list(folder):
                if checkpoint.startswith(keys.STAGES) and checkpoint != kept:
                    run.delete_folder(f"{folder}/{checkpoint}")


def _placement(config: SweepConfig, stage: str) -> Placement:
    asked = getattr(config.resources, stage)
    return Placement(
        workers=asked.workers, cpus_per_worker=asked.cpus_per_worker, gpus_per_worker=asked.gpus_per_worker
    )


def _sayer(console: Console) -> Callable[[str], Any]:
    return functools.partial(console.print, highlight=False, markup=False, soft_wrap=True)
