"""A comparison's files as one table of methods, in words, Markdown and JSON. Needs no live cluster."""

import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from orchestrator.comparison import METHODS_FOLDER, SEARCH, SEEDS, Comparison, comparison_of, of_fold
from orchestrator.records import best_epoch, read_records
from orchestrator.results import chosen_row, format_cell, result_rows
from orchestrator.run_directory import BEST_FOLDER, COMPARISON_FILE, ENVIRONMENT_FILE, RunDirectory, RunDirectoryError
from orchestrator.significance import Difference, Estimate, differences, score_methods
from orchestrator.sweep_file import parse_yaml
from trainables import keys
from trainables.locations import parent_location

RESULTS_FILE = "comparison.json"
REPORT_FILE = "comparison.md"
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


def report_comparison(location: str) -> str:
    """Report on a comparison, finished, running or dead; needs no cluster."""
    run = RunDirectory(location)
    return write_comparison_report(run, read_comparison(run))[1]


def write_comparison_report(run: RunDirectory, comparison: Comparison) -> tuple[ComparisonResults, str]:
    """Write ``comparison.json`` and ``comparison.md`` from the run directory's files; returns the latter, too."""
    results = read_results(run, comparison)
    text = describe(comparison, results)
    run.write_text(RESULTS_FILE, json.dumps(asdict(results), indent=1) + "\n")
    run.write_text(REPORT_FILE, text + "\n")
    return results, text


def read_results(run: RunDirectory, comparison: Comparison) -> ComparisonResults:
    """All that can be said so far; a method without predictions of every fold is left out."""
    metric = comparison.search(comparison.reference, comparison.folds[0]).config.metric
    made = _environment(run, comparison)
    label_names, class_counts = made["labels"], np.array(made["train_rows"])
    index = {name: number for number, name in enumerate(label_names)}
    labels: np.ndarray | None = None
    predictions: dict[str, list[np.ndarray]] = {}
    found: dict[str, MethodResult] = {}
    for name in (*comparison.config.methods, *comparison.config.baselines):
        fine_tuned = name in comparison.config.methods
        seeds = comparison.config.seeds if fine_tuned else [None]
        read = {seed: _predictions(run, comparison, name, seed, index) for seed in seeds}
        of_seeds = [both for both in read.values() if both is not None]
        if not of_seeds:
            continue
        labels = of_seeds[0][0]
        predictions[name] = [predicted for _, predicted in of_seeds]
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
        both = {name: predictions[name] for name in (chosen, baseline)}
        score = keys.on_split(keys.TEST, _score(metric))
        over = differences(labels, both, baseline, class_counts, label_names, **how)[chosen][score]
    return ComparisonResults(
        metric=_score(metric),
        reference=comparison.reference,
        train_rows=dict(zip(label_names, class_counts.tolist(), strict=True)),
        test_rows=dict(zip(label_names, np.bincount(labels, minlength=len(index)).tolist(), strict=True)),
        methods={name: result for name, result in found.items() if result.fine_tuned},
        baselines={name: result for name, result in found.items() if not result.fine_tuned},
        chosen=chosen,
        best_baseline=baseline,
        over_baseline=over,
    )


def describe(comparison: Comparison, results: ComparisonResults) -> str:
    """The whole report, Markdown."""
    config = comparison.config
    scores = [name for name in keys.SCORES if any(_of(r, name).mean is not None for r in results.all.values())]
    budget = " ".join(f"{value} {unit}" for unit, value in config.budget.model_dump(exclude_none=True).items())
    rows = ", ".join(f"{label} {count}" for label, count in results.train_rows.items())
    parts = [
        f"# {config.name}",
        *(f"**{text}**" for text in _warnings(results)),
        *findings(comparison, results),
        f"Each method was searched with {budget}, its settings chosen by validation rows ({results.metric}), trained "
        f"again with {len(config.seeds)} seeds ({', '.join(map(str, config.seeds))}), and its predictions of the "
        f"{sum(results.test_rows.values()):,} test rows"
        f"{'' if config.folds is None else f' ({config.folds} folds)'} scored. Training rows: {rows}.",
        f"## {results.metric}",
        _table(
            ["method", "validation", "test", f"over {results.reference}", "", "search", "seconds"],
            [_line(name, result, results) for name, result in results.all.items()],
        ),
        f"Test: mean and standard error over the seeds. Over {results.reference}: difference of the means, and its "
        f"95 % interval from {config.resamples:,} resamples of the test rows (paired, seeds averaged).",
        "## Every score",
        _table(
            ["method", *scores],
            [[name, *(_shown(_of(result, score)) for score in scores)] for name, result in results.all.items()],
        ),
        f"## Every score over {results.reference}",
        _table(
            ["method", *scores],
            [
                [name, *(_gap(result.difference.get(keys.on_split(keys.TEST, score))) for score in scores)]
                for name, result in results.all.items()
                if result.difference
            ],
        ),
        "Bold: the 95 % interval leaves out 0.",
        "## F1 of each class",
        _table(
            ["class", "training rows", "test rows", *results.all],
            [
                [
                    label,
                    str(count),
                    str(results.test_rows[label]),
                    *(_shown(result.test[keys.class_f1(keys.TEST, label)]) for result in results.all.values()),
                ]
                for label, count in results.train_rows.items()
            ],
        ),
        "## Chosen settings",
        "\n".join(
            f"- {name}: " + "; ".join(json.dumps(settings) for settings in result.settings)
            for name, result in results.all.items()
        ),
    ]
    return "\n\n".join(parts)


def findings(comparison: Comparison, results: ComparisonResults) -> list[str]:
    """What the numbers say, in words: which differences are more than noise."""
    key = keys.on_split(keys.TEST, results.metric)
    texts = []
    if results.chosen is not None:
        chosen = results.methods[results.chosen]
        texts.append(
            f"By validation rows, {results.chosen} is the method to take ({results.metric} {chosen.validation:.4f}; on "
            f"the test rows {_shown(_of(chosen, results.metric))})."
        )
    gaps = {name: result.difference[key] for name, result in results.all.items() if key in result.difference}
    better = [name for name, gap in gaps.items() if gap.low > 0]
    worse = [name for name, gap in gaps.items() if gap.high < 0]
    noise = [name for name, gap in gaps.items() if gap.within_noise]
    for names, words in ((better, "better than"), (worse, "worse than"), (noise, "within noise of")):
        if names:
            told = ", ".join(f"{name} ({gaps[name].value:+.4f})" for name in names)
            texts.append(f"On the test rows, {words} {results.reference} in {results.metric}: {told}.")
    if results.chosen is not None and comparison.config.folds is None:
        texts.append(
            f"The model: {METHODS_FOLDER}/{results.chosen}/{SEEDS}/{BEST_FOLDER}, its best seed by validation rows."
        )
    asked = len(comparison.config.seeds)
    short = [f"{name} ({r.num_seeds} of {asked})" for name, r in results.methods.items() if r.num_seeds < asked]
    if short:
        texts.append(f"Not every seed was trained to its end: {', '.join(short)}; the means are of those that were.")
    missing = [name for name in comparison.config.methods if name not in results.methods]
    if missing:
        texts.append(f"Without a result, since nothing was trained to its end: {', '.join(missing)}.")
    lonely = [name for name, result in results.methods.items() if result.num_seeds < 2]
    if lonely:
        texts.append(f"Trained with fewer than two seeds, so without a standard error: {', '.join(lonely)}.")
    return texts


def _warnings(results: ComparisonResults) -> list[str]:
    """What a reader must not miss: a baseline of seconds that fine-tuning does not beat."""
    gap, chosen, baseline = results.over_baseline, results.chosen, results.best_baseline
    if gap is None or chosen is None or baseline is None or gap.low > 0:
        return []
    words = "beats" if gap.high < 0 else "is within noise of" if gap.value > 0 else "is at least as good as"
    seconds = results.baselines[baseline].seconds
    return [
        f"{baseline}, a logistic regression that takes {seconds:.0f} s, {words} {chosen}, the fine-tuning chosen: "
        f"{_shown(_of(results.baselines[baseline], results.metric))} against "
        f"{_shown(_of(results.methods[chosen], results.metric))} {results.metric} on the test rows."
    ]


def _line(name: str, result: MethodResult, results: ComparisonResults) -> list[str]:
    difference = result.difference.get(keys.on_split(keys.TEST, results.metric))
    verdict = ""
    if difference is not None:
        verdict = "within noise" if difference.within_noise else "better" if difference.value > 0 else "worse"
    return [
        f"**{name}**" if name == results.chosen else name,
        f"{result.validation:.4f}",
        _shown(_of(result, results.metric)),
        "" if difference is None else f"{difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]",
        verdict,
        ", ".join(f"{count} {state}" for state, count in result.candidates.items()),
        f"{result.seconds:.0f}",
    ]


def _of(result: MethodResult, score: str) -> Estimate:
    return result.test[keys.on_split(keys.TEST, score)]


def _shown(estimate: Estimate) -> str:
    spread = "" if estimate.standard_error is None else f" ± {estimate.standard_error:.4f}"
    return format_cell(estimate.mean) + spread


def _gap(difference: Difference | None) -> str:
    if difference is None:
        return "-"
    return f"{difference.value:+.4f}" if difference.within_noise else f"**{difference.value:+.4f}**"


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


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
    """Labels and training rows of the reference's search, in its first fold."""
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
