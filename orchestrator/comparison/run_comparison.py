"""Run a comparison: search each method, train its best settings with every seed, and predict the test examples.

Or search each method with every seed, and predict with the best trial of each search.

Each search and each retraining is an ordinary sweep with a run directory of its own below the comparison's. A resumed
comparison keeps what is finished. No search sees the test examples; its best settings predict them once per seed.
"""

import functools
import io
import logging
import operator
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from rich.console import Console
from tailsweep.orchestrator.comparison.config import SEEDS, Comparison, fold_name
from tailsweep.orchestrator.comparison.records import BaselineFit, ComparisonRecords
from tailsweep.orchestrator.comparison.report import write_comparison_report
from tailsweep.orchestrator.comparison.results import predictions_file, read_comparison, searched_directory
from tailsweep.orchestrator.config.changes import leaves
from tailsweep.orchestrator.config.search_space import Trial
from tailsweep.orchestrator.config.sweep import Sweep
from tailsweep.orchestrator.config.yaml_io import parse_yaml, split_override, write_yaml
from tailsweep.orchestrator.monitoring.log_output import no_repeated_messages
from tailsweep.orchestrator.monitoring.run_log import run_log
from tailsweep.orchestrator.planning.environment import read_environment
from tailsweep.orchestrator.planning.plan import plan_sweep, plan_unprepared
from tailsweep.orchestrator.planning.ray_session import ray_session, result_of
from tailsweep.orchestrator.planning.resources import placement
from tailsweep.orchestrator.preflight.doctor import require_ready
from tailsweep.orchestrator.preflight.needs import Needs, folder_of_runs, needs_of
from tailsweep.orchestrator.runner.refit import sweep_of_trials
from tailsweep.orchestrator.runner.resume import Wanted
from tailsweep.orchestrator.runner.run_sweep import Interrupted, RunOptions, finish_sweep, resume_sweep
from tailsweep.orchestrator.runner.select_model import ModelSelection, trial_model
from tailsweep.orchestrator.runner.trained_models import predict_split
from tailsweep.orchestrator.runs import front
from tailsweep.orchestrator.runs.directory import (
    COMPARISON_FILE,
    METHODS_FOLDER,
    METRICS_FILE,
    RunDirectory,
    RunDirectoryError,
)
from tailsweep.orchestrator.runs.grants import refuse_grants, restated, sign
from tailsweep.orchestrator.runs.lock import run_lock
from tailsweep.orchestrator.runs.records import read_records
from tailsweep.orchestrator.runs.tables import result_rows, select_best
from tailsweep.orchestrator.runs.trials import Records, TrialRecord, TrialState
from tailsweep.trainables import report_keys
from tailsweep.trainables.baselines import fit_baseline
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.data.tokenized import PreparedData, fetch_prepared
from tailsweep.trainables.errors import StorageError
from tailsweep.trainables.storage.cache import default_cache_dir
from tailsweep.trainables.storage.filesystem import join_location

logger = logging.getLogger(__name__)


def run_comparison(comparison: Comparison, address: str | None, console: Console) -> int:
    """Run a new comparison to its end and return the exit status.

    Returns:
        0: done; 1: interrupted, or a method has no result.

    Raises:
        ValueError: The user's input cannot be used. Nothing has been written then.
    """
    run = RunDirectory(comparison.location)
    run.refuse_existing()
    resume_command = _resume_command(run, comparison)
    with run_log() as log:
        logger.info(f"run directory {run.location}; if it is interrupted: {resume_command}")
        logger.info(f"comparison {run.name}: {', '.join(comparison.config.methods)}")
        for note in comparison.notes:
            logger.info(f"note: {note}")
        searches = [comparison.first_search(method) for method in comparison.config.methods]
        with no_repeated_messages():  # refuse what a sweep would refuse before anything is written
            needs = [needs_of(plan_sweep(search)) for search in searches]
        with ray_session(address) as started_here:
            require_ready(_in_one(run, needs), started_here)
            run.create()
            with run_lock(run), log.written_to(run):
                run.write_text(COMPARISON_FILE, write_yaml(comparison.tree()))
                sign(run, COMPARISON_FILE)
                front.tell(run=run.location, resume=resume_command)
                return _finish(ComparisonRecords.open(run, comparison), comparison, console)


def resume_comparison(location: str, address: str | None, console: Console, overrides: Sequence[str] = ()) -> int:
    """Resume an interrupted comparison and return the exit status as :func:`run_comparison` does.

    Args:
        location: the run directory.
        address: of the Ray cluster; None: a Ray started here.
        console: shows progress and results.
        overrides: ``dotted.field=value`` each, of what a run directory cannot grant: said again.

    Raises:
        ValueError: The run directory cannot be used, or asks for what it cannot grant.
    """
    run = RunDirectory(location)
    comparison = read_comparison(run)
    _refuse_changes(run, comparison, overrides)
    resume_command = _resume_command(run, comparison)
    logger.info(f"run directory {run.location}; if it is interrupted: {resume_command}")
    logger.info(f"comparison {run.name}: continuing")
    front.tell(run=run.location, resume=resume_command)
    searches = [comparison.first_search(method) for method in comparison.config.methods]
    needs = [needs_of(plan_unprepared(search)) for search in searches]
    with run_log() as log, run_lock(run), log.written_to(run), ray_session(address) as started_here:
        records = ComparisonRecords.open(run, comparison)
        require_ready(_in_one(run, needs), started_here)
        return _finish(records, comparison, console)


def _refuse_changes(run: RunDirectory, comparison: Comparison, overrides: Sequence[str]) -> None:
    """Refuse what a run directory cannot grant unless it is said again, and other values than it has."""
    settings = comparison.tree()
    values = dict(leaves(settings))
    said = []
    for override in overrides:
        path, text = split_override(override)
        field = ".".join(path)
        if field not in values or values[field] not in (text, parse_yaml(text)):
            raise RunDirectoryError(
                f"--set {override}: a comparison continues with the settings it began with; --set only says again what "
                f"is in {run.uri(COMPARISON_FILE)}"
            )
        said.append(field)
    refuse_grants(run, settings, said, COMPARISON_FILE, run.resume_command)


def _resume_command(run: RunDirectory, comparison: Comparison) -> str:
    """Return the command that resumes a comparison, with what it must say again."""
    return run.resume_command + restated(comparison.tree(), run)


def _in_one(run: RunDirectory, needs: Sequence[Needs]) -> Needs:
    """Return the needs of the sweeps of all methods; they are below the comparison's own folder."""
    return replace(functools.reduce(operator.or_, needs), storage=folder_of_runs(run))


def _finish(records: ComparisonRecords, comparison: Comparison, console: Console) -> int:
    run = records.run
    sweeps: dict[str, Sweep] = {}  # by folder, those that the models are from
    try:
        for fold in comparison.folds:
            for method in comparison.config.methods:
                logger.info(f"\n== {fold_name(method, fold)}")
                for draw in comparison.draws:
                    sweep = _run_method(records, comparison, method, fold, draw, console)
                    if sweep is not None:
                        sweeps[f"{METHODS_FOLDER}/{method}/{sweep.name}"] = sweep
            _fit_baselines(records, comparison, fold)
        records.seal()
        results, text = write_comparison_report(run, comparison)
        if results.model is not None:
            _export(RunDirectory(run.uri(results.model)), sweeps[results.model], console)
    except (Interrupted, StorageError, KeyboardInterrupt) as error:  # also Ctrl-C between two sweeps
        with suppress(StorageError):
            records.seal()
        logger.warning(f"{str(error) or 'interrupted'}; to continue: {_resume_command(run, comparison)}")
        return 1
    print("\n" + text)
    return 0 if len(results.methods) == len(comparison.config.methods) else 1


def _run_method(
    records: ComparisonRecords,
    comparison: Comparison,
    method: str,
    fold: int | None,
    draw: int | None,
    console: Console,
) -> Sweep | None:
    """Search, retrain if all seeds share the search, and predict; returns the sweep whose models predict, if any."""
    search = comparison.search(method, fold, draw)
    searched = finish_sweep(search, None, console)
    chosen = select_best(result_rows(searched, search.config.metric), search.config.metric)
    name = fold_name(method, fold)
    if chosen is None:
        logger.info(f"{name}: no trial was completed, so there is nothing to compare")
        return None
    if draw is not None:
        _predict(records, search, searched, {predictions_file(name, draw): chosen["trial"]})
        return search
    sweep, trials = _retraining(comparison, search, fold, searched.trial(chosen["trial"]))
    retrained = finish_sweep(sweep, trials, console)
    _predict(
        records,
        sweep,
        retrained,
        {predictions_file(name, trial.config["seed"]): trial.name for trial in retrained.trials},
    )
    return sweep


def _retraining(
    comparison: Comparison, search: Sweep, fold: int | None, chosen: TrialRecord
) -> tuple[Sweep, list[Trial]]:
    """Return the sweep that trains the chosen settings once with each seed, without pruning."""
    trial_config = TrialConfig.model_validate(chosen.config)
    seeds = comparison.config.seeds
    trials = [
        Trial(number, f"t{number:03d}", {"seed": seed}, trial_config.model_copy(update={"seed": seed}))
        for number, seed in enumerate(seeds)
    ]
    promote: str | int = "all" if search.two_phase is None else len(seeds)
    changed = {"seed": seeds[0], "promote": promote}
    return sweep_of_trials(search, fold_name(SEEDS, fold), trials, changed), trials


def _export(run: RunDirectory, sweep: Sweep, console: Console) -> None:
    """Export the model of a sweep whose trials are done."""
    if not run.exists(METRICS_FILE):
        resume_sweep(run.location, console, RunOptions(checked=True, announced=False, wanted=Wanted(sweep)))


def _predict(records: ComparisonRecords, sweep: Sweep, trained: Records, trial_of: Mapping[str, str]) -> None:
    """Write each file of predictions that is not there, by the completed trial that it is of."""
    run = RunDirectory(join_location(sweep.config.storage, sweep.name))
    environment = read_environment(run)
    selection = ModelSelection(run, sweep, trained, environment)
    task = ray.remote(**selection.resources)(predict_split)
    asked_for = {}
    for file, trial in trial_of.items():
        if trained.outcomes[trial].state != TrialState.COMPLETED or records.has_predictions(file):
            continue
        model = trial_model(trained, sweep.config.metric, trial)
        source = selection.source(trial)
        request = source.request([model], sweep.config.metric, postprocess=sweep.config.postprocess)
        asked_for[task.remote(request, report_keys.TEST)] = (file, request["data"])
    for reference, (file, data) in asked_for.items():
        predicted = result_of(reference).argmax(axis=1)
        _write_predictions(records, file, predicted, fetch_prepared(data, default_cache_dir()))


def _fit_baselines(records: ComparisonRecords, comparison: Comparison, fold: int | None) -> None:
    """Fit the baselines to the examples of the reference's trials."""
    draw = comparison.draws[0]
    sweep = comparison.search(comparison.reference, fold, draw)
    searched = searched_directory(records.run, comparison.reference, fold, draw)
    environment = read_environment(searched)
    trial_config = TrialConfig.model_validate(read_records(searched).trials[0].config)
    data = fetch_prepared(environment.data_source(searched, next(iter(environment.data))), default_cache_dir())
    asked = placement(sweep, report_keys.STAGE_TWO)
    for name in comparison.config.baselines:
        file = predictions_file(fold_name(name, fold), None)
        if records.has_predictions(file):
            continue
        logger.info(f"baseline {fold_name(name, fold)}")
        began = time.monotonic()
        task = ray.remote(num_cpus=asked.cpus_per_worker, num_gpus=asked.gpus_per_worker)(fit_baseline)
        fitted = result_of(task.remote(name, trial_config.data, trial_config.model, data, sweep.config.metric))
        seconds = time.monotonic() - began
        records.add_baseline(fold_name(name, fold), BaselineFit(fitted.strength, fitted.validation, seconds))
        _write_predictions(records, file, fitted.predicted, data)


def _write_predictions(records: ComparisonRecords, file: str, predicted: np.ndarray, data: PreparedData) -> None:
    names = pa.array(data.label_names)
    table = {"label": names.take(pa.array(data.test.labels)), "prediction": names.take(pa.array(predicted))}
    sink = io.BytesIO()
    pq.write_table(pa.table(table), sink)
    records.write_predictions(file, sink.getvalue())
