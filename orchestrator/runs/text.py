"""A run's results as text for a terminal."""

import json
from collections.abc import Sequence

from tailsweep.orchestrator.config.errors import printable
from tailsweep.orchestrator.config.methods import METHOD
from tailsweep.orchestrator.runs.directory import (
    BEST_FOLDER,
    HISTORY_FILE,
    REPORT_FILE,
    TRIALS_TABLE,
    RunDirectory,
)
from tailsweep.orchestrator.runs.tables import ranking, read_test_metrics, select_best
from tailsweep.orchestrator.runs.trials import Records, Row, TrialState
from tailsweep.trainables import report_keys


def describe_run(
    run: RunDirectory, records: Records, rows: Sequence[Row], metric: str, hints: Sequence[str] = ()
) -> str:
    """Describe the ranking, the chosen trial's test metrics, and where the files are.

    Args:
        run: The run directory.
        records: Its trials.
        rows: The same as rows of a table.
        metric: The score that trials are ranked by.
        hints: Lines on what to try next.
    """
    swept = list(dict.fromkeys(name for trial in records.trials for name in trial.values))
    lines = [format_ranking(rows, metric, swept, limit=20), *failures(rows), ""]
    if methods := method_rows(records, rows, metric):
        table = [list(METHOD_HEADER), *([format_cell(cell) for cell in row] for row in methods)]
        lines += [aligned(table), ""]
    metrics = read_test_metrics(run)
    chosen = select_best(rows, metric)
    if metrics is None and chosen is not None:
        lines.append(f"best by {metric}: {chosen['trial']}; no model has been made of it")
    elif metrics is None:
        lines.append("no trial has been chosen, so there is no model")
    else:
        lines.append(f"chosen by {metric}: {describe_choice(metrics)}")
        if any(trial.config["data"]["train"].startswith("demo://") for trial in records.trials):
            lines.append("its rows are synthetic: these numbers show that the sweep works, not what a method is worth")
        if metrics.get("selection"):
            lines += ["", *format_selection(metrics)]
        lines += ["", format_test_metrics(metrics)]
        if metrics.get("baselines"):
            lines += ["", *format_baselines(metrics, metric)]
        lines += ["", f"model    {run.uri(BEST_FOLDER)}"]
    lines += [f"hint     {hint}" for hint in hints]
    lines.append(f"results  {run.uri(TRIALS_TABLE)}, {run.uri(HISTORY_FILE)}, {run.uri(REPORT_FILE)}")
    return "\n".join(lines)


def format_ranking(rows: Sequence[Row], metric: str, swept: Sequence[str], limit: int | None = None) -> str:
    """Return the ranking as text, a line per trial."""
    header = ["rank", "trial", "state", "epochs", metric.split("/", 1)[1], *swept, "seconds"]
    table = [header]
    ranked = ranking(rows, metric)
    for rank, row in enumerate(ranked[:limit], start=1):
        table.append(
            [
                str(rank) if row["state"] == TrialState.COMPLETED else "-",
                row["trial"],
                row["state"],
                "+".join(report_keys.shown_epochs(row[f"{stage}_epochs"]) for stage in report_keys.STAGES),
                format_cell(row.get(metric)),
                *(format_cell(row.get(name)) for name in swept),
                f"{row['seconds']:.0f}",
            ]
        )
    text = aligned(table)
    hidden = len(ranked) - len(table) + 1
    return text + (f"\n... and {hidden} more in {TRIALS_TABLE}" if hidden > 0 else "")


def format_test_metrics(metrics: Row) -> str:
    """Return ``best/metrics.json`` as text: the scores of the test examples, then one line per class."""
    scores = [["score", "test"]] + [
        [name, format_cell(metrics[key])]
        for name in report_keys.SCORES
        if (key := report_keys.on_split(report_keys.TEST, name)) in metrics
    ]
    classes = [["class", "train rows", "test rows", "F1"]] + [
        [
            printable(label),
            str(metrics["train_rows"][label]),
            str(metrics["test_rows"][label]),
            format_cell(metrics[report_keys.class_f1(report_keys.TEST, label)]),
        ]
        for label in metrics["labels"]
    ]
    return aligned(scores) + "\n\n" + aligned(classes)


def describe_choice(metrics: Row) -> str:
    """Return what the model of ``best/metrics.json`` is: a trial and its epoch, a baseline, or an ensemble."""
    members = metrics.get("members", [{"kind": "trial"}])  # versions without a choice wrote none
    if [member["kind"] for member in members] == ["trial"]:
        model = f"{metrics['trial']}, {metrics['stage']} epoch {report_keys.shown_epochs(metrics['epoch'])}"
    elif len(members) == 1:
        model = f"{metrics['model']}, a linear classifier"
    else:
        parts = ", ".join(f"{member['weight']:.2f} {_member_name(member)}" for member in members)
        model = f"{metrics['model']}: {parts}"
    if (decision := metrics.get("decision")) is not None:
        model += f"; logits adjusted by tau {decision['tau']:g}"
    if (refit := metrics.get("refit")) is not None:
        model += f"; trained again on {refit['examples']:,} training and validation examples"
    return model


def _member_name(member: Row) -> str:
    name = str(member["name"])
    return f"{name} stage one" if member.get("stage") == report_keys.STAGE_ONE else name


SELECTION_HEADER = ("kind", "out of fold", "difference", "standard error", "", "models")


def selection_rows(metrics: Row) -> list[list[object]]:
    """Return of each kind of model that was compared its score, the difference to the chosen one, and what it is."""
    return [
        [
            _kind_of_model(judged),
            judged["score"],
            None if judged["chosen"] else judged["difference"],
            None if judged["chosen"] else judged["standard_error"],
            "chosen" if judged["chosen"] else "",
            ", ".join(judged["weights"]),
        ]
        for judged in metrics["selection"]
    ]


def _kind_of_model(judged: Row) -> str:
    kind = judged["kind"] if judged["kind"] == "ensemble" else f"best {judged['kind']}"
    tau = judged.get("tau")  # earlier versions adjusted none
    return f"{kind}, logits adjusted by tau {tau:g}" if tau else kind


def selection_remark(metrics: Row) -> str | None:
    """Return which kinds cannot be told apart from the chosen one by the validation examples; None if all can."""
    close = [
        judged["kind"]
        for judged in metrics["selection"]
        if not judged["chosen"] and abs(judged["difference"]) <= judged["standard_error"]
    ]
    if not close:
        return None
    return f"not told apart from the chosen one by the validation examples: the best {' and the best '.join(close)}"


def format_selection(metrics: Row) -> list[str]:
    """Return the kinds of model that were compared, from ``best/metrics.json``."""
    table = [list(SELECTION_HEADER), *([format_cell(cell) for cell in row] for row in selection_rows(metrics))]
    remark = selection_remark(metrics)
    return [aligned(table), *([remark] if remark is not None else [])]


def format_baselines(metrics: Row, metric: str) -> list[str]:
    """Return the scores of the baselines of ``best/metrics.json``, and a line if the model is no better."""
    table = [["baseline", "validation", "test", "seconds"]]
    for name, *scores, seconds in baseline_rows(metrics, metric):
        table.append([name, *map(format_cell, scores), "-" if seconds is None else f"{seconds:.0f}"])
    lines = [aligned(table)]
    if (warning := beaten_by(metrics, metric)) is not None:
        lines.append(warning)
    return lines


def baseline_rows(metrics: Row, metric: str) -> list[tuple[str, float | None, float | None, float | None]]:
    """Return name, validation score, test score and seconds of the model and of each baseline."""
    test = report_keys.on_split(report_keys.TEST, metric.split("/", 1)[1])
    name = "this model, by all folds" if "folds" in metrics else "this model"
    rows = [(name, metrics["validation"].get(metric), metrics.get(test), None)]
    return rows + [(name, row[metric], row[test], row["seconds"]) for name, row in metrics["baselines"].items()]


def beaten_by(metrics: Row, metric: str) -> str | None:
    """Return a sentence on the baseline that is at least as good as the model by the validation examples."""
    if metrics.get("selection"):  # the baselines were among the models that were compared, or left out on purpose
        return None
    (_, own, *_), *baselines = baseline_rows(metrics, metric)
    name, score, _, seconds = max(baselines, key=lambda row: row[1] or 0)
    if own is None or score is None or seconds is None or score < own:
        return None
    return (
        f"{name}, a linear classifier of {seconds:.0f} s, is at least as good by the validation examples: use it, or "
        "give the sweep more trials, more epochs or longer texts (data.max_length)"
    )


METHOD_HEADER = ("method", "best", "validation", "completed", "trials", "training seconds")


def method_rows(records: Records, rows: Sequence[Row], metric: str) -> list[list[object]]:
    """Return of each method its best trial and score, and what it took; none of a sweep of one method.

    Args:
        records: of the run.
        rows: of the trials, as ``tables.result_rows`` returns them.
        metric: the score.
    """
    table = []
    seconds: dict[object, float] = {}  # a stage one that several trials continue counts once
    for report in records.history:
        method = records.trial(report["trial"]).values.get(METHOD)
        seconds[method] = seconds.get(method, 0.0) + report[report_keys.SECONDS]
    for method in dict.fromkeys(row[METHOD] for row in rows if METHOD in row):
        own = [row for row in rows if row[METHOD] == method]
        best = select_best(own, metric)
        table.append(
            [
                method,
                best["trial"] if best is not None else None,
                best[metric] if best is not None else None,
                sum(row["state"] == TrialState.COMPLETED for row in own),
                len(own),
                round(seconds.get(method, 0.0)),
            ]
        )
    return table


def failures(rows: Sequence[Row]) -> list[str]:
    """Return a line per failed trial, with its reason."""
    return [f"{row['trial']} failed: {printable(row['reason'])}" for row in rows if row["state"] == TrialState.FAILED]


def format_cell(value: object) -> str:
    """Return a value as the tables show it: four decimals, a dash for None."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) >= 0.01 or value == 0 else f"{value:.3g}"
    return json.dumps(value) if isinstance(value, dict | list) else printable(str(value))


def aligned(table: list[list[str]]) -> str:
    """Pad the columns to their widest cell, numbers to the right."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = []
    for number, row in enumerate(table):
        cells = [
            cell.rjust(width) if number and cell[:1] in "0123456789-" else cell.ljust(width)
            for cell, width in zip(row, widths, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
        if number == 0:
            lines.append("  ".join("-" * width for width in widths))
    return "\n".join(lines)
