"""A comparison's files as what came out for each method. Needs no live cluster; in words: comparison_report.py."""

import io
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from tailsweep.orchestrator.comparison.config import METHODS_FOLDER, SEARCH, SEEDS, Comparison, comparison_of, of_fold
from tailsweep.orchestrator.comparison.statistics import Difference, Estimate, Predictions, differences, score_methods
from tailsweep.orchestrator.config.yaml_io import parse_yaml
from tailsweep.orchestrator.runs.candidates import best_epoch
from tailsweep.orchestrator.runs.directory import COMPARISON_FILE, ENVIRONMENT_FILE, RunDirectory, RunDirectoryError
from tailsweep.orchestrator.runs.records import read_records
from tailsweep.orchestrator.runs.tables import chosen_row, result_rows
from tailsweep.trainables import report_keys
from tailsweep.trainables.storage.filesystem import parent_location

PREDICTIONS_FOLDER = "predictions"
BASELINES_FOLDER = "baselines"
BOOTSTRAP_SEED = 0


@dataclass
class MethodResult:
    """What came out for one method or baseline."""

    fine_tuned: bool  # else a baseline
    validation: float  # the metric it would be chosen by, mean over seeds and folds
    num_seeds: int  # trained to their end; of a baseline 1
    seconds: float  # of its search and its retrainings, summed over candidates
    candidates: dict[str, int]  # of the search, by how they ended
    settings: list[dict[str, Any]]  # chosen, one for each fold
    test: dict[str, Estimate]
    difference: dict[str, Difference] = field(default_factory=dict)  # to the reference


@dataclass
class ComparisonResults:
    metric: str  # a score, without its split
    reference: str
    train_rows: dict[str, int]  # by class
    test_rows: dict[str, int]
    notes: list[str]  # what befell the rows on their way to the models: cut at so many tokens, say
    methods: dict[str, MethodResult]  # in their order in the file
    baselines: dict[str, MethodResult]
    chosen: str | None  # the method that validation rows say is best
    best_baseline: str | None  # by validation rows, too
    over_baseline: Difference | None  # the chosen method's lead over it on the test rows

    @property
    def all(self) -> dict[str, MethodResult]:
        return self.methods | self.baselines


def sweep_directory(run: RunDirectory, method: str, part: str, fold: int | None) -> RunDirectory:
    """Where a method's search lies, or its retraining: ``part`` is SEARCH or SEEDS."""
    return RunDirectory(run.uri(f"{METHODS_FOLDER}/{method}/{of_fold(part, fold)}"))


def predictions_file(name: str, seed: int | None) -> str:
    """Of the test rows: their labels and predictions, by name; ``seed`` None: of a baseline."""
    return f"{PREDICTIONS_FOLDER}/{name}/{'only' if seed is None else f'seed{seed}'}.parquet"


def read_comparison(run: RunDirectory) -> Comparison:
    """The comparison of a run directory, wherever that lies now."""
    tree = parse_yaml(run.read_text(COMPARISON_FILE))
    storage = parent_location(run.location)
    return comparison_of(tree | {"name": run.name, "storage": storage}, run.uri(COMPARISON_FILE))


def read_results(run: RunDirectory, comparison: Comparison) -> ComparisonResults:
    """All that can be said so far; a method without predictions of every fold is left out."""
    metric = comparison.search(comparison.reference, comparison.folds[0]).config.metric
    made = _environment(run, comparison)
    label_names, class_counts = made["labels"], np.array(made["train_rows"])
    index = {name: number for number, name in enumerate(label_names)}
    labels: np.ndarray | None = None
    predictions: dict[str, Predictions] = {}
    found: dict[str, MethodResult] = {}
    for name in (*comparison.config.methods, *comparison.config.baselines):
        fine_tuned = name in comparison.config.methods
        seeds = comparison.config.seeds if fine_tuned else [None]
        of_seeds = {
            seed: both for seed in seeds if (both := _predictions(run, comparison, name, seed, index)) is not None
        }
        if not of_seeds:
            continue
        labels = next(iter(of_seeds.values()))[0]
        predictions[name] = {seed: predicted for seed, (_, predicted) in of_seeds.items()}
        found[name] = (
            _method_result(run, comparison, name, metric, len(of_seeds))
            if fine_tuned
            else _baseline_result(run, comparison, name, metric)
        )
    if labels is None:
        raise RunDirectoryError(
            f"{run.location} holds no method at its end yet: go on with it by `{run.resume_command}`"
        )
    for name, test in score_methods(labels, predictions, class_counts, label_names).items():
        found[name].test = test
    how = {"resamples": comparison.config.resamples, "seed": BOOTSTRAP_SEED}
    if comparison.reference in predictions:
        of_reference = differences(labels, predictions, comparison.reference, class_counts, label_names, **how)
        for name, difference in of_reference.items():
            found[name].difference = difference
    chosen, baseline = _best(found, True), _best(found, False)
    over = None
    if chosen is not None and baseline is not None:
        the_two = {name: predictions[name] for name in (chosen, baseline)}
        score = report_keys.on_split(report_keys.TEST, _score(metric))
        over = differences(labels, the_two, baseline, class_counts, label_names, **how)[chosen][score]
    return ComparisonResults(
        metric=_score(metric),
        reference=comparison.reference,
        train_rows=dict(zip(label_names, class_counts.tolist(), strict=True)),
        test_rows=dict(zip(label_names, np.bincount(labels, minlength=len(index)).tolist(), strict=True)),
        notes=made["notes"],
        methods={name: result for name, result in found.items() if result.fine_tuned},
        baselines={name: result for name, result in found.items() if not result.fine_tuned},
        chosen=chosen,
        best_baseline=baseline,
        over_baseline=over,
    )


def _predictions(
    run: RunDirectory, comparison: Comparison, name: str, seed: int | None, index: dict[str, int]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Labels and predictions of all folds' test rows, in turn; None where some are missing."""
    both: list[list[np.ndarray]] = [[], []]
    for fold in comparison.folds:
        file = predictions_file(of_fold(name, fold), seed)
        if not run.exists(file):
            return None
        table = pq.read_table(io.BytesIO(run.read_bytes(file)))
        for part, column in zip(both, ("label", "prediction"), strict=True):
            part.append(np.array([index[one] for one in table[column].to_pylist()]))
    labels, predicted = map(np.concatenate, both)
    return labels, predicted


def _method_result(run: RunDirectory, comparison: Comparison, method: str, metric: str, num_seeds: int) -> MethodResult:
    validation, seconds, settings, states = [], 0.0, [], Counter[str]()
    for fold in comparison.folds:
        search, of_seeds = (read_records(sweep_directory(run, method, part, fold)) for part in (SEARCH, SEEDS))
        rows = result_rows(search, metric)
        chosen = chosen_row(rows, metric)
        assert chosen is not None, "it was trained again"
        settings.append(search.candidate(chosen["candidate"]).values)
        states.update(row["state"] for row in rows)
        for records in (search, of_seeds):
            seconds += sum(outcome.seconds for outcome in records.outcomes.values())
        for name, outcome in of_seeds.outcomes.items():
            best = best_epoch(of_seeds.history_of(name), metric)
            if outcome.state == "completed" and best is not None:
                validation.append(best[metric])
    return MethodResult(True, float(np.mean(validation)), num_seeds, seconds, dict(states), settings, test={})


def _baseline_result(run: RunDirectory, comparison: Comparison, name: str, metric: str) -> MethodResult:
    read = [json.loads(run.read_text(f"{BASELINES_FOLDER}/{of_fold(name, fold)}.json")) for fold in comparison.folds]
    validation = float(np.mean([one[metric] for one in read]))
    settings = [{"C": one["strength"]} for one in read]
    return MethodResult(False, validation, 1, sum(one["seconds"] for one in read), {}, settings, test={})


def _environment(run: RunDirectory, comparison: Comparison) -> dict[str, Any]:
    """Labels, training rows and notes of the reference's search, in its first fold."""
    search = sweep_directory(run, comparison.reference, SEARCH, comparison.folds[0])
    made = json.loads(search.read_text(ENVIRONMENT_FILE))
    of_rows: dict[str, Any] = next(iter(made["data"].values()))
    return of_rows


def _best(found: dict[str, MethodResult], fine_tuned: bool) -> str | None:
    """By validation rows; ties go to the earlier one."""
    some = {name: result.validation for name, result in found.items() if result.fine_tuned == fine_tuned}
    return max(some, key=lambda name: some[name]) if some else None


def _score(metric: str) -> str:
    return metric.split("/", 1)[1]
