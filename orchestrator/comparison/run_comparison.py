"""Runs a comparison: a search for every method, its chosen settings with every seed, their predictions of test rows.

Each search and each retraining is an ordinary sweep with a run directory of its own below the comparison's; what is
finished stays finished when a comparison is gone on with. No search sees the test rows; what it chose predicts them
once per seed.
"""

import functools
import io
import json
import operator
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from rich.console import Console
from tailsweep.orchestrator.comparison.baselines import fit_baseline
from tailsweep.orchestrator.comparison.config import SEARCH, SEEDS, Comparison, of_fold
from tailsweep.orchestrator.comparison.report import write_comparison_report
from tailsweep.orchestrator.comparison.results import (
    BASELINES_FOLDER,
    predictions_file,
    read_comparison,
    sweep_directory,
)
from tailsweep.orchestrator.config.schema import RoundTwoConfig
from tailsweep.orchestrator.config.search_space import Candidate
from tailsweep.orchestrator.config.sweep import Sweep
from tailsweep.orchestrator.config.yaml_io import write_yaml
from tailsweep.orchestrator.planning.preparation import prepare_trials
from tailsweep.orchestrator.planning.ray_session import ray_session, result_of
from tailsweep.orchestrator.planning.resources import placement
from tailsweep.orchestrator.preflight.doctor import refuse_unready
from tailsweep.orchestrator.preflight.needs import Needs, folder_of_runs, needs_of
from tailsweep.orchestrator.runner.export import predict_test, rows_of_run
from tailsweep.orchestrator.runner.run_sweep import resume_sweep, run_sweep, to_be_a_model
from tailsweep.orchestrator.runs.candidates import CandidateRecord, Records
from tailsweep.orchestrator.runs.directory import (
    CANDIDATES_FILE,
    COMPARISON_FILE,
    ENVIRONMENT_FILE,
    METRICS_FILE,
    RunDirectory,
)
from tailsweep.orchestrator.runs.lock import held
from tailsweep.orchestrator.runs.records import read_records, read_sweep
from tailsweep.orchestrator.runs.tables import chosen_row, result_rows
from tailsweep.trainables import report_keys
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.data.tokenized import PreparedData
from tailsweep.trainables.errors import StorageError
from tailsweep.trainables.storage.filesystem import join_location


class Interrupted(Exception):
    """A sweep of the comparison was not brought to its end."""


def run_comparison(comparison: Comparison, address: str | None, console: Console) -> int:
    """Run a new comparison to its end; returns the exit status: 0 done, 1 interrupted or a method has no result.

    Raises:
        ValueError: the user's input cannot be used; nothing has been written then.
    """
    run = RunDirectory(comparison.location)
    run.refuse_existing()
    _say(console, f"comparison {run.name}: {', '.join(comparison.config.methods)}")
    for note in comparison.notes:
        _say(console, f"note: {note}")
    said: set[str] = set()

    def say_once(text: str) -> None:
        if text not in said:
            said.add(text)
            _say(console, text)

    needs = []
    for method in comparison.config.methods:  # what a sweep would refuse is refused before anything is written
        sweep = comparison.search(method, comparison.folds[0])
        trials = [c.trial for c in sweep.candidates()] or sweep.representatives()
        dumps = [trial.model_dump(mode="json") for trial in trials]
        prepared = prepare_trials(dumps, sweep.config.metric, sweep.config.features, say_once, sweep.config.finish)
        needs.append(needs_of(sweep, dumps, prepared))
    with ray_session(address) as started_here:
        refuse_unready(_in_one(run, needs), started_here, say_once)
        run.create()
        with held(run):
            run.write_text(COMPARISON_FILE, write_yaml(comparison.tree()))
            return _to_the_end(run, comparison, console)


def resume_comparison(location: str, address: str | None, console: Console) -> int:
    """Go on with an interrupted comparison; returns the exit status as :func:`run_comparison` does."""
    run = RunDirectory(location)
    comparison = read_comparison(run)
    _say(console, f"comparison {run.name}: going on")
    needs = [needs_of(comparison.search(method, comparison.folds[0]), [], None) for method in comparison.config.methods]
    with held(run), ray_session(address) as started_here:
        refuse_unready(_in_one(run, needs), started_here, lambda text: _say(console, text))
        return _to_the_end(run, comparison, console)


def _in_one(run: RunDirectory, needs: Sequence[Needs]) -> Needs:
    """What the sweeps of all methods need; they lie below the comparison's own folder."""
    return replace(functools.reduce(operator.or_, needs), storage=folder_of_runs(run))


def _to_the_end(run: RunDirectory, comparison: Comparison, console: Console) -> int:
    try:
        for fold in comparison.folds:
            for method in comparison.config.methods:
                _say(console, f"\n== {of_fold(method, fold)}")
                _play_method(run, comparison, method, fold, console)
            _fit_baselines(run, comparison, fold, console)
        results, text = write_comparison_report(run, comparison)
        if results.chosen is not None and comparison.config.folds is None:
            _export(run, results.chosen, console)
    except (Interrupted, StorageError, KeyboardInterrupt) as error:  # by Ctrl-C between two sweeps, too
        _say(console, f"{str(error) or 'interrupted'}; to go on: {run.resume_command}")
        return 1
    _say(console, "\n" + text)
    return 0 if len(results.methods) == len(comparison.config.methods) else 1


def _play_method(run: RunDirectory, comparison: Comparison, method: str, fold: int | None, console: Console) -> None:
    """Search, retrain, predict."""
    search = comparison.search(method, fold)
    found = _bring_to_its_end(search, None, console)
    chosen = chosen_row(result_rows(found, search.config.metric), search.config.metric)
    if chosen is None:
        _say(console, f"{of_fold(method, fold)}: no candidate was completed, so there is nothing to compare")
        return
    sweep, candidates = _retraining(comparison, search, fold, found.candidate(chosen["candidate"]))
    records = _bring_to_its_end(sweep, candidates, console)
    _predict(run, sweep, records, of_fold(method, fold))


def _retraining(
    comparison: Comparison, search: Sweep, fold: int | None, chosen: CandidateRecord
) -> tuple[Sweep, list[Candidate]]:
    """The sweep that trains the chosen settings once with each seed, pruning nothing."""
    trial = TrialConfig.model_validate(chosen.trial)
    seeds = comparison.config.seeds
    candidates = [
        Candidate(number, f"c{number:03d}", {"seed": seed}, trial.model_copy(update={"seed": seed}))
        for number, seed in enumerate(seeds)
    ]
    sections = trial.model_dump(mode="json", include={"data", "model", *report_keys.STAGES})
    config = search.config.model_copy(
        update={
            **sections,
            "name": of_fold(SEEDS, fold),
            "seed": seeds[0],
            "num_candidates": len(seeds),
            "search": "random",
            "points": [],
            "max_seconds": None,
            "asha": None,
            "promote": "all" if search.config.promote == "all" else len(seeds),
            "round_two": RoundTwoConfig(),
        }
    )
    return Sweep(config, notes=[]), candidates


def _bring_to_its_end(sweep: Sweep, candidates: Sequence[Candidate] | None, console: Console) -> Records:
    run = RunDirectory(join_location(sweep.config.storage, str(sweep.config.name)))
    if not run.exists(CANDIDATES_FILE):
        run.delete_folder("")  # of a sweep that was cut short before it began
        run_sweep(sweep, None, console, candidates, export=False, checked=True)
    elif not _at_its_end(run):
        resume_sweep(run.location, None, console, export=False, checked=True)
    if not _at_its_end(run):
        raise Interrupted(f"{run.location} is not at its end")
    return read_records(run)


def _at_its_end(run: RunDirectory) -> bool:
    if not run.has_begun:  # it was interrupted before
        return False
    records = read_records(run)
    return records.finished and len(records.entered) == read_sweep(run).num_candidates


def _export(run: RunDirectory, method: str, console: Console) -> None:
    """The method to take becomes a model: its best seed by validation rows, in the folder of its retraining."""
    of_seeds = sweep_directory(run, method, SEEDS, None)
    if not of_seeds.exists(METRICS_FILE):
        resume_sweep(of_seeds.location, None, console, checked=True)


def _predict(run: RunDirectory, sweep: Sweep, records: Records, name: str) -> None:
    """Write the predictions of every seed that was trained to its end and has none."""
    of_seeds = RunDirectory(join_location(sweep.config.storage, str(sweep.config.name)))
    made = json.loads(of_seeds.read_text(ENVIRONMENT_FILE))
    asked = placement(sweep, report_keys.STAGE_TWO)
    task = ray.remote(num_cpus=asked["cpus_per_worker"], num_gpus=asked["gpus_per_worker"])(predict_test)
    asked_for = {}
    for candidate in records.candidates:
        file = predictions_file(name, candidate.trial["seed"])
        if records.outcomes[candidate.name].state != "completed" or run.exists(file):
            continue
        chosen = to_be_a_model(of_seeds, sweep, records, made, candidate.name)
        asked_for[task.remote(chosen)] = (file, chosen["data_key"])
    for reference, (file, data_key) in asked_for.items():
        _write_predictions(run, file, result_of(reference), rows_of_run(of_seeds, data_key))


def _fit_baselines(run: RunDirectory, comparison: Comparison, fold: int | None, console: Console) -> None:
    """Fit the baselines to the rows of the reference's trials."""
    sweep = comparison.search(comparison.reference, fold)
    searched = sweep_directory(run, comparison.reference, SEARCH, fold)
    data_key = next(iter(json.loads(searched.read_text(ENVIRONMENT_FILE))["data"]))
    trial = TrialConfig.model_validate(read_records(searched).candidates[0].trial)
    data = rows_of_run(searched, data_key)
    asked = placement(sweep, report_keys.STAGE_TWO)
    for name in comparison.config.baselines:
        file = predictions_file(of_fold(name, fold), None)
        if run.exists(file):
            continue
        _say(console, f"baseline {of_fold(name, fold)}")
        began = time.monotonic()
        task = ray.remote(num_cpus=asked["cpus_per_worker"], num_gpus=asked["gpus_per_worker"])(fit_baseline)
        fitted = result_of(task.remote(name, trial.data, trial.model, data, sweep.config.metric))
        said = {
            "strength": fitted.strength,
            sweep.config.metric: fitted.validation,
            "seconds": time.monotonic() - began,
        }
        run.write_text(f"{BASELINES_FOLDER}/{of_fold(name, fold)}.json", json.dumps(said) + "\n")
        _write_predictions(run, file, fitted.predicted, data)


def _write_predictions(run: RunDirectory, file: str, predicted: Any, data: PreparedData) -> None:
    names = pa.array(data.label_names)
    table = {"label": names.take(pa.array(data.test.labels)), "prediction": names.take(pa.array(predicted))}
    sink = io.BytesIO()
    pq.write_table(pa.table(table), sink)
    run.write_bytes(file, sink.getvalue())


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
