"""Report a comparison's results in words, Markdown and JSON: the method to use, and the differences that are noise."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict

from tailsweep.orchestrator.comparison.config import Comparison
from tailsweep.orchestrator.comparison.results import ComparisonResults, MethodResult, read_comparison, read_results
from tailsweep.orchestrator.comparison.significance import Difference, Estimate
from tailsweep.orchestrator.runs.directory import BEST_FOLDER, RunDirectory
from tailsweep.orchestrator.runs.text import format_cell
from tailsweep.trainables import report_keys
from tailsweep.trainables.errors import StorageError

logger = logging.getLogger(__name__)

RESULTS_FILE = "comparison.json"
REPORT_FILE = "comparison.md"
LEAST_SHARE = 0.005  # of the draws, for a choice to be named
ONE_SEED = "with one seed each, whose spread is not known"
VERDICTS = {  # of a difference, with its sentence
    "better": "better than {reference} in {metric}",
    "worse": "worse than {reference} in {metric}",
    "better with these seeds": "better than {reference} in {metric} " + ONE_SEED,
    "worse with these seeds": "worse than {reference} in {metric} " + ONE_SEED,
    "not told apart": "not to be told apart from {reference} in {metric}",
}


def report_comparison(location: str) -> str:
    """Return the report on a finished, running or failed comparison, without a cluster."""
    run = RunDirectory(location)
    comparison = read_comparison(run)
    try:
        return write_comparison_report(run, comparison)[1]
    except StorageError as error:  # of somebody else, or on a disk that is read-only: it can be read all the same
        logger.warning(f"no report was written: {error}")
        return describe(comparison, read_results(run, comparison))


def write_comparison_report(run: RunDirectory, comparison: Comparison) -> tuple[ComparisonResults, str]:
    """Write ``comparison.json`` and ``comparison.md`` from the run directory's files; return results and text."""
    results = read_results(run, comparison)
    text = describe(comparison, results)
    run.write_text(RESULTS_FILE, json.dumps(asdict(results), indent=1) + "\n")
    run.write_text(REPORT_FILE, text + "\n")
    return results, text


def describe(comparison: Comparison, results: ComparisonResults) -> str:
    """Return the whole report as Markdown."""
    parts = [
        f"# {comparison.config.name}",
        *(f"**{text}**" for text in _warnings(comparison, results)),
        *findings(comparison, results),
        _procedure(comparison, results),
        *(f"On the examples: {note}." for note in results.notes),
        *_summary(comparison, results),
        *_score_tables(results),
        *_class_table(results),
        "## Chosen settings",
        "\n".join(
            f"- {name}: " + "; ".join(json.dumps(settings) for settings in result.settings)
            for name, result in results.all.items()
        ),
    ]
    return "\n\n".join(parts)


def _procedure(comparison: Comparison, results: ComparisonResults) -> str:
    config = comparison.config
    budget = " ".join(f"{value} {unit}" for unit, value in config.budget.model_dump(exclude_none=True).items())
    counts = ", ".join(f"{label} {count}" for label, count in results.train_rows.items())
    return (
        f"Each method was searched with {budget}, its settings chosen by validation examples ({results.metric}), "
        f"{_seeds(comparison)}, and its predictions of "
        f"the {sum(results.test_rows.values()):,} test examples"
        f"{'' if config.folds is None else f' ({config.folds} folds, each searched by itself)'} scored. "
        f"Training examples{'' if config.folds is None else ' of the first fold'}: {counts}."
    )


def _seeds(comparison: Comparison) -> str:
    seeds = comparison.config.seeds
    again = "with a search of its own for each of" if comparison.config.search_per_seed else "trained again with"
    return f"{again} {len(seeds)} seeds ({', '.join(map(str, seeds))})"


def _summary(comparison: Comparison, results: ComparisonResults) -> list[str]:
    """Return the table of the metric, and how to read it."""
    return [
        f"## {results.metric}",
        _table(
            [
                "method",
                "validation",
                "test",
                f"over {results.reference}",
                "P(better)",
                "",
                "P(best)",
                "search",
                "settings of stage two",
                "steps of stage two",
                "seconds",
            ],
            [_line(name, result, results) for name, result in results.all.items()],
        ),
        f"Test: mean and standard error over the seeds. Over {results.reference}: difference of the means, its 95 % "
        "interval and the probability that it is above 0, over other test examples and "
        + (
            "other seeds, with the search of each. "
            if comparison.config.search_per_seed
            else "other seeds of the chosen settings; another search is not in them. "
        )
        + f"Examples: {comparison.config.resamples:,} resamples (paired, seeds "
        "averaged). Seeds: Student's t, with a variance pooled over the methods. Better and worse: at 5 % for all "
        "methods together (Holm). P(best): how often a method or baseline has the largest test score over the same "
        "draws. comparison.json has the intervals over examples and over seeds by themselves.",
    ]


def _score_tables(results: ComparisonResults) -> list[str]:
    """Return the tables of every score, and of every difference to the reference."""
    methods = results.all.items()
    scores = [
        name for name in report_keys.SCORES if any(_test_score(result, name).mean is not None for _, result in methods)
    ]
    keys = [report_keys.on_split(report_keys.TEST, score) for score in scores]
    return [
        "## Every score",
        _table(
            ["method", *scores],
            [[name, *(_shown(_test_score(result, score)) for score in scores)] for name, result in methods],
        ),
        f"## Every score over {results.reference}",
        _table(
            ["method", *scores],
            [
                [name, *(_gap(result.difference.get(key)) for key in keys)]
                for name, result in methods
                if result.difference
            ],
        ),
        "Bold: better or worse at 5 %, for all methods together.",
    ]


def _class_table(results: ComparisonResults) -> list[str]:
    def scores_of(label: str) -> list[str]:
        key = report_keys.class_f1(report_keys.TEST, label)
        return [_shown(result.test[key]) for result in results.all.values()]

    return [
        "## F1 of each class",
        _table(
            ["class", "training examples", "test examples", *results.all],
            [
                [label, str(count), str(results.test_rows[label]), *scores_of(label)]
                for label, count in results.train_rows.items()
            ],
        ),
    ]


def findings(comparison: Comparison, results: ComparisonResults) -> list[str]:
    """Return in words which differences are more than noise."""
    key = report_keys.on_split(report_keys.TEST, results.metric)
    texts = []
    if results.chosen is not None:
        chosen = results.methods[results.chosen]
        texts.append(
            f"By validation examples, {results.chosen} is the method to use ({results.metric} {chosen.validation:.4f}; "
            f"on the test examples {_shown(_test_score(chosen, results.metric))})."
        )
    texts += _choice(results)
    gaps = {name: result.difference[key] for name, result in results.all.items() if key in result.difference}
    for verdict, sentence in VERDICTS.items():
        names = ", ".join(f"{name} ({gap.value:+.4f})" for name, gap in gaps.items() if gap.verdict == verdict)
        if names:
            words = sentence.format(reference=results.reference, metric=results.metric)
            texts.append(f"On the test examples, {words}: {names}.")
    if results.model is not None:
        texts.append(
            f"The model: {results.model}/{BEST_FOLDER}, chosen by validation examples: one "
            + ("trial's of that search" if comparison.config.search_per_seed else "seed's")
            + ", or the mean of several."
        )
    asked = len(comparison.config.seeds)
    short = [f"{name} ({r.num_seeds} of {asked})" for name, r in results.methods.items() if r.num_seeds < asked]
    if short:
        texts.append(f"Not every seed was trained to its end: {', '.join(short)}; the means cover those that were.")
    missing = [name for name in comparison.config.methods if name not in results.methods]
    if missing:
        texts.append(f"Without a result, since nothing was trained to its end: {', '.join(missing)}.")
    lonely = [name for name, result in results.methods.items() if result.num_seeds < 2]
    if lonely:
        texts.append(
            "Trained with fewer than two seeds, so without a standard error or an interval over the seeds: "
            f"{', '.join(lonely)}."
        )
    return texts


def _warnings(comparison: Comparison, results: ComparisonResults) -> list[str]:
    """Return the warning about a baseline that fine-tuning does not beat."""
    gap, chosen, baseline = results.over_baseline, results.chosen, results.best_baseline
    if gap is None or chosen is None or baseline is None or gap.low > 0:
        return []
    words = "beats" if gap.high < 0 else "cannot be told apart from" if gap.value > 0 else "is at least as good as"
    seconds = results.baselines[baseline].seconds
    text = (
        f"{baseline}, a linear classifier that takes {seconds:.0f} s, {words} {chosen}, the best fine-tuning method: "
        f"{_shown(_test_score(results.baselines[baseline], results.metric))} against "
        f"{_shown(_test_score(results.methods[chosen], results.metric))} {results.metric} on the test examples."
    )
    if not baseline.startswith("embeddings"):  # it may win by reading more, which a larger max_length would fix
        read = comparison.first_search(chosen).representative_trials()[0].data
        text += f" It reads texts whole, where {chosen} reads at most their first {read.max_length} tokens."
    return [text]


def _choice(results: ComparisonResults) -> list[str]:
    """Return what choosing a method by validation examples gains, where there are several."""
    choice = results.choice
    if choice is None:
        return []
    often = ", ".join(f"{name} ({share:.0%})" for name, share in choice.shares.items() if share >= LEAST_SHARE)
    return [
        f"To choose by validation examples gains {choice.value:+.4f} {_interval(choice.low, choice.high)} over "
        f"{results.reference} on the test examples. With other seeds the choice is {often}."
    ]


def _line(name: str, result: MethodResult, results: ComparisonResults) -> list[str]:
    difference = result.difference.get(report_keys.on_split(report_keys.TEST, results.metric))
    return [
        f"**{name}**" if name == results.chosen else name,
        f"{result.validation:.4f}",
        _shown(_test_score(result, results.metric)),
        "" if difference is None else f"{difference.value:+.4f} {_interval(difference.low, difference.high)}",
        "" if difference is None else f"{difference.p_better:.3f}",
        "" if difference is None else difference.verdict,
        f"{result.p_best.get(report_keys.on_split(report_keys.TEST, results.metric), 0):.2f}",
        ", ".join(f"{count} {state}" for state, count in result.trials.items()),
        str(result.stage_two_settings or "") if result.fine_tuned else "",
        f"{result.stage_two_steps:,}" if result.stage_two_steps else "",
        f"{result.seconds:.0f}",
    ]


def _interval(low: float, high: float) -> str:
    return f"[{low:+.4f}, {high:+.4f}]"


def _test_score(result: MethodResult, score: str) -> Estimate:
    return result.test[report_keys.on_split(report_keys.TEST, score)]


def _shown(estimate: Estimate) -> str:
    spread = "" if estimate.standard_error is None else f" ± {estimate.standard_error:.4f}"
    return format_cell(estimate.mean) + spread


def _gap(difference: Difference | None) -> str:
    if difference is None:
        return "-"
    shown = f"{difference.value:+.4f}"
    return f"**{shown}**" if difference.verdict in ("better", "worse") else shown


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
