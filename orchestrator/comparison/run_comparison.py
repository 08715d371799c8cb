"""Run a comparison: search each method, train its best settings with every seed, and predict the test examples.

Each search and each retraining is an ordinary sweep with a run directory of its own below the comparison's. A resumed
comparison keeps what is finished. No search sees the test examples; its best settings predict them once per seed.
"""

import functools
import io
import logging
import operator
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from rich.console import Console
from tailsweep.orchestrator.comparison.config import SEARCH, SEEDS, Comparison, fold_name
from tailsweep.orchestrator.comparison.records import BaselineFit, ComparisonRecords
from tailsweep.orchestrator.comparison.report import write_comparison_report
from tailsweep.orchestrator.comparison.results import predictions_file, read_comparison, sweep_directory
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
        searches = [comparison.search(method, comparison.folds[0]) for method in comparison.config.methods]
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
    searches = [comparison.search(method, comparison.folds[0]) for method in comparison.config.methods]
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
    retrained: dict[str, Sweep | None] = {}
    try:
        for fold in comparison.folds:
            for method in comparison.config.methods:
                logger.info(f"\n== {fold_name(method, fold)}")
                retrained[method] = _run_method(records, comparison, method, fold, console)
            _fit_baselines(records, comparison, fold)
        records.seal()
        results, text = write_comparison_report(run, comparison)
        if results.chosen is not None and comparison.config.folds is None:
            _export(run, results.chosen, retrained[results.chosen], console)
    except (Interrupted, StorageError, KeyboardInterrupt) as error:  # also Ctrl-C between two sweeps
        with suppress(StorageError):
            records.seal()
        logger.warning(f"{str(error) or 'interrupted'}; to continue: {_resume_command(run, comparison)}")
        return 1
    print("\n" + text)
    return 0 if len(results.methods) == len(comparison.config.methods) else 1


def _run_method(
    records: ComparisonRecords, comparison: Comparison, method: str, fold: int | None, console: Console
) -> Sweep | None:
    """Search, retrain and predict; returns the retraining, or None if there is nothing to retrain."""
    search = comparison.search(method, fold)
    searched = finish_sweep(search, None, console)
    chosen = select_best(result_rows(searched, search.config.metric), search.config.metric)
    if chosen is None:
        logger.info(f"{fold_name(method, fold)}: no trial was completed, so there is nothing to compare")
        return None
    sweep, trials = _retraining(comparison, search, fold, searched.trial(chosen["trial"]))
    retrained = finish_sweep(sweep, trials, console)
    _predict(records, sweep, retrained, fold_name(method, fold))
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


def _export(run: RunDirectory, method: str, sweep: Sweep | None, console: Console) -> None:
    """Export the model of the best method, of one seed or several, in the folder of its retraining."""
    retraining = sweep_directory(run, method, SEEDS, None)
    if not retraining.exists(METRICS_FILE):
        resume_sweep(retraining.location, console, RunOptions(checked=True, announced=False, wanted=Wanted(sweep)))


def _predict(records: ComparisonRecords, sweep: Sweep, retrained: Records, name: str) -> None:
    """Write the predictions of every completely trained seed that has none."""
    retraining = RunDirectory(join_location(sweep.config.storage, sweep.name))
    environment = read_environment(retraining)
    selection = ModelSelection(retraining, sweep, retrained, environment)
    task = ray.remote(**selection.resources)(predict_split)
    asked_for = {}
    for trial in retrained.trials:
        file = predictions_file(name, trial.config["seed"])
        if retrained.outcomes[trial.name].state != TrialState.COMPLETED or records.has_predictions(file):
            continue
        model = trial_model(retrained, sweep.config.metric, trial.name)
        source = selection.source(trial.name)
        request = source.request([model], sweep.config.metric, postprocess=sweep.config.postprocess)
        asked_for[task.remote(request, report_keys.TEST)] = (file, request["data"])
    for reference, (file, data) in asked_for.items():
        predicted = result_of(reference).argmax(axis=1)
        _write_predictions(records, file, predicted, fetch_prepared(data, default_cache_dir()))


def _fit_baselines(records: ComparisonRecords, comparison: Comparison, fold: int | None) -> None:
    """Fit the baselines to the examples of the reference's trials."""
    sweep = comparison.search(comparison.reference, fold)
    searched = sweep_directory(records.run, comparison.reference, SEARCH, fold)
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
