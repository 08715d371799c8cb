"""Read the results of each method from a comparison's files. Needs no cluster; ``report.py`` puts them into words."""

import io
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow.parquet as pq
from tailsweep.orchestrator.comparison.config import SEEDS, Comparison, comparison_of, fold_name, search_name
from tailsweep.orchestrator.comparison.records import ComparisonRecords
from tailsweep.orchestrator.comparison.significance import (
    Choice,
    Difference,
    Estimate,
    Predictions,
    ResampledScores,
    ScoredExamples,
    resample,
    score_methods,
)
from tailsweep.orchestrator.config.errors import SweepConfigError
from tailsweep.orchestrator.config.tree import Tree
from tailsweep.orchestrator.config.yaml_io import parse_yaml
from tailsweep.orchestrator.planning.environment import DataSummary, read_environment
from tailsweep.orchestrator.runs.directory import COMPARISON_FILE, METHODS_FOLDER, RunDirectory, RunDirectoryError
from tailsweep.orchestrator.runs.records import read_records
from tailsweep.orchestrator.runs.tables import result_rows, select_best
from tailsweep.orchestrator.runs.trials import Records, TrialRecord, TrialState
from tailsweep.trainables import report_keys
from tailsweep.trainables.storage.filesystem import parent_location

PREDICTIONS_FOLDER = "predictions"
BOOTSTRAP_SEED = 0


@dataclass
class MethodResult:
    """The results of one method or baseline."""

    fine_tuned: bool  # else a baseline
    validation: float  # the metric of the selection, mean over seeds and folds
    num_seeds: int  # trained to their end; 1 for a baseline
    seconds: float  # of its search and its retraining, summed over trials
    trials: dict[str, int]  # of the search, by how they ended
    settings: list[Tree]  # selected, for each fold and each search in it
    test: dict[str, Estimate]
    difference: dict[str, Difference] = field(default_factory=dict)  # to the reference, by test score
    p_best: dict[str, float] = field(default_factory=dict)  # of all methods and baselines, likewise
    stage_two_settings: int = 0  # of the search, that reached stage two
    stage_two_steps: int = 0  # of the optimizer, that the search took with them
    validation_by_seed: dict[int, float] = field(default_factory=dict)  # mean over folds; empty for a baseline


@dataclass
class ComparisonResults:
    """The results of all methods and baselines."""

    metric: str  # a score, without its split
    reference: str
    train_rows: dict[str, int]  # by class
    test_rows: dict[str, int]
    notes: list[str]  # on the preparation of the examples, such as truncated texts
    methods: dict[str, MethodResult]  # in their order in the file
    baselines: dict[str, MethodResult]
    chosen: str | None  # the best method by validation examples
    best_baseline: str | None  # by validation examples, too
    over_baseline: Difference | None  # the chosen method's lead over it on the test examples
    model: str | None = None  # the folder of the sweep with the chosen method's model; None with folds
    choice: Choice | None = None  # what choosing by validation examples gains over the reference

    @property
    def all(self) -> dict[str, MethodResult]:
        """Return methods, then baselines."""
        return self.methods | self.baselines


def searched_directory(run: RunDirectory, method: str, fold: int | None, draw: int | None) -> RunDirectory:
    """Return the run directory of a method's search."""
    return RunDirectory(run.uri(f"{METHODS_FOLDER}/{method}/{search_name(fold, draw)}"))


def retrained_directory(run: RunDirectory, method: str, fold: int | None) -> RunDirectory:
    """Return the run directory of the retraining of what a method's search chose."""
    return RunDirectory(run.uri(f"{METHODS_FOLDER}/{method}/{fold_name(SEEDS, fold)}"))


def model_folder(comparison: Comparison, method: str, validation_by_seed: Mapping[int, float]) -> str:
    """Return the folder of the sweep that has a method's model: its retraining, or the search with the best trial."""
    part = SEEDS
    if comparison.config.search_per_seed:
        part = search_name(None, max(validation_by_seed, key=lambda seed: validation_by_seed[seed]))
    return f"{METHODS_FOLDER}/{method}/{part}"


def predictions_file(name: str, seed: int | None) -> str:
    """Return the file with labels and predictions of the test examples; ``seed`` is None for a baseline."""
    return f"{PREDICTIONS_FOLDER}/{name}/{'only' if seed is None else f'seed{seed}'}.parquet"


def read_comparison(run: RunDirectory) -> Comparison:
    """Read the comparison of a run directory, wherever that is now."""
    run.reject_unsafe_files()
    run.check_format()
    tree = parse_yaml(run.read_text(COMPARISON_FILE))
    if not isinstance(tree, dict):
        raise SweepConfigError(run.uri(COMPARISON_FILE), ["must be a mapping"])
    storage = parent_location(run.location)
    return comparison_of(tree | {"name": run.name, "storage": storage}, run.uri(COMPARISON_FILE))


def read_results(run: RunDirectory, comparison: Comparison) -> ComparisonResults:
    """Read the results so far; a method without predictions of every fold is left out.

    Raises:
        RunDirectoryError: Something that was written is missing or altered.
    """
    records = ComparisonRecords.read(run, comparison)
    metric = comparison.first_search(comparison.reference).config.metric
    summary = _data_summary(run, comparison)
    label_names, class_counts = summary.labels, np.array(summary.train_rows)
    index = {name: number for number, name in enumerate(label_names)}
    labels: np.ndarray | None = None
    predictions: dict[str, Predictions] = {}
    results: dict[str, MethodResult] = {}
    for name in (*comparison.config.methods, *comparison.config.baselines):
        fine_tuned = name in comparison.config.methods
        seeds = comparison.config.seeds if fine_tuned else [None]
        by_seed = {
            seed: both for seed in seeds if (both := _predictions(records, comparison, name, seed, index)) is not None
        }
        if not by_seed:
            continue
        labels = next(iter(by_seed.values()))[0]
        predictions[name] = {seed: predicted for seed, (_, predicted) in by_seed.items()}
        results[name] = (
            _method_result(run, comparison, name, metric, list(predictions[name]))
            if fine_tuned
            else _baseline_result(records, comparison, name)
        )
    if labels is None:
        raise RunDirectoryError(f"{run.location} has no completed method yet: resume it with `{run.resume_command}`")
    examples = ScoredExamples(labels, class_counts, label_names)
    for name, test in score_methods(examples, predictions).items():
        results[name].test = test
    resampled = resample(examples, predictions, comparison.config.resamples, BOOTSTRAP_SEED)
    for name, shares in resampled.p_best().items():
        results[name].p_best = shares
    if comparison.reference in predictions:
        for name, differences in resampled.differences(comparison.reference).items():
            results[name].difference = differences
    chosen, baseline = _best(results, True), _best(results, False)
    over = None
    if chosen is not None and baseline is not None:
        score = report_keys.on_split(report_keys.TEST, _score(metric))
        over = resampled.differences(baseline)[chosen][score]
    methods = {name: result for name, result in results.items() if result.fine_tuned}
    model = None
    if chosen is not None and comparison.config.folds is None:
        model = model_folder(comparison, chosen, methods[chosen].validation_by_seed)
    return ComparisonResults(
        metric=_score(metric),
        reference=comparison.reference,
        train_rows=dict(zip(label_names, class_counts.tolist(), strict=True)),
        test_rows=dict(zip(label_names, np.bincount(labels, minlength=len(index)).tolist(), strict=True)),
        notes=list(summary.notes),
        methods=methods,
        baselines={name: result for name, result in results.items() if not result.fine_tuned},
        chosen=chosen,
        best_baseline=baseline,
        over_baseline=over,
        model=model,
        choice=_choice(resampled, methods, comparison.reference, _score(metric)),
    )


def _predictions(
    records: ComparisonRecords, comparison: Comparison, name: str, seed: int | None, index: dict[str, int]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return labels and predictions of all folds' test examples, in turn; None if some are missing."""
    both: list[list[np.ndarray]] = [[], []]
    for fold in comparison.folds:
        content = records.read_predictions(predictions_file(fold_name(name, fold), seed))
        if content is None:
            return None
        table = pq.read_table(io.BytesIO(content))
        for part, column in zip(both, ("label", "prediction"), strict=True):
            part.append(np.array([index[label] for label in table[column].to_pylist()]))
    labels, predicted = map(np.concatenate, both)
    return labels, predicted


def _method_result(
    run: RunDirectory, comparison: Comparison, method: str, metric: str, seeds: Sequence[int | None]
) -> MethodResult:
    """Return what a method reached with the seeds that have predictions."""
    validation: dict[int, list[float]] = defaultdict(list)
    seconds, settings, states, in_stage_two, steps = 0.0, [], Counter[str](), 0, 0
    draws = seeds if comparison.config.search_per_seed else [None]
    for fold, draw in itertools.product(comparison.folds, draws):
        search = read_records(searched_directory(run, method, fold, draw))
        rows = result_rows(search, metric)
        chosen = select_best(rows, metric)
        states.update(row["state"] for row in rows)
        in_stage_two += sum(row[f"{report_keys.STAGE_TWO}_epochs"] > 0 for row in rows)
        steps += sum(_stage_two_steps(search, trial) for trial in search.trials)
        seconds += sum(outcome.seconds for outcome in search.outcomes.values())
        assert chosen is not None, "only a completed trial predicts"
        settings.append(search.trial(chosen["trial"]).values)
        if draw is not None:
            validation[draw].append(chosen[metric])
            continue
        retraining = read_records(retrained_directory(run, method, fold))
        seconds += sum(outcome.seconds for outcome in retraining.outcomes.values())
        for name, outcome in retraining.outcomes.items():
            best = retraining.judged(name, metric)
            if outcome.state == TrialState.COMPLETED and best is not None:
                validation[retraining.trial(name).config["seed"]].append(best[metric])
    by_seed = {seed: float(np.mean(values)) for seed, values in validation.items()}
    return MethodResult(
        True,
        float(np.mean(list(by_seed.values()))),
        len(seeds),
        seconds,
        dict(states),
        settings,
        test={},
        stage_two_settings=in_stage_two,
        stage_two_steps=steps,
        validation_by_seed=by_seed,
    )


def _stage_two_steps(search: Records, trial: TrialRecord) -> int:
    batch_size = trial.config[report_keys.STAGE_TWO]["batch_size"]
    reports = search.history_of(trial.name)
    return sum(
        math.ceil(report[report_keys.ROWS] / batch_size)
        for report in reports
        if report[report_keys.STAGE] == report_keys.STAGE_TWO
    )


def _choice(
    resampled: ResampledScores, methods: Mapping[str, MethodResult], reference: str, score: str
) -> Choice | None:
    """Return what choosing among several methods gains over the reference, if that is one of them."""
    if reference not in methods or len(methods) < 2:
        return None
    validation = {name: np.array(list(result.validation_by_seed.values())) for name, result in methods.items()}
    return resampled.choice(validation, reference, report_keys.on_split(report_keys.TEST, score))


def _baseline_result(records: ComparisonRecords, comparison: Comparison, name: str) -> MethodResult:
    folds = [records.baselines[fold_name(name, fold)] for fold in comparison.folds]
    validation = float(np.mean([fold.validation for fold in folds]))
    settings: list[Tree] = [{"C": fold.strength} for fold in folds]
    return MethodResult(False, validation, 1, sum(fold.seconds for fold in folds), {}, settings, test={})


def _data_summary(run: RunDirectory, comparison: Comparison) -> DataSummary:
    """Return labels, class counts and notes of the reference's first search."""
    search = searched_directory(run, comparison.reference, comparison.folds[0], comparison.draws[0])
    return next(iter(read_environment(search).data.values()))


def _best(results: dict[str, MethodResult], fine_tuned: bool) -> str | None:
    """Return the best method or baseline by validation examples; of equals, the first."""
    some = {name: result.validation for name, result in results.items() if result.fine_tuned == fine_tuned}
    return max(some, key=lambda name: some[name]) if some else None


def _score(metric: str) -> str:
    return metric.split("/", 1)[1]
