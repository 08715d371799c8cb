"""A run directory's records as tables: one row per candidate, one per report. Needs no live cluster."""

import io
import json
import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.records import Records, best_epoch
from orchestrator.run_directory import BEST_FOLDER, HISTORY_FILE, METRICS_FILE, REPORT_FILE, RESULTS_FILE, RunDirectory
from trainables import keys

Row = dict[str, Any]


def result_rows(records: Records, metric: str) -> list[Row]:
    """One row per candidate, in their order: state, epochs, seconds, best validation scores, swept values.

    ``state`` is ``running`` for a candidate with reports and no outcome, ``pending`` for one without either: in a run
    that died, ``running`` means cut short. A candidate that went on as several gives their rows, whose ``parent`` it
    is, and none of its own; its epochs and seconds of stage one are in each.
    """
    rows = []
    for candidate in sorted(records.candidates, key=lambda candidate: candidate.number):
        history = records.history_of(candidate.name)
        outcome = records.outcomes.get(candidate.name)
        if outcome is not None and outcome.state == "promoted":
            continue
        best = best_epoch(history, metric)
        row: Row = {
            "candidate": candidate.name,
            "parent": candidate.parent,
            "state": outcome.state if outcome else ("running" if history else "pending"),
            "reason": outcome.reason if outcome else None,
            "stage_one_epochs": _epochs_done(history, keys.STAGE_ONE),
            "stage_two_epochs": _epochs_done(history, keys.STAGE_TWO),
            "seconds": outcome.seconds if outcome else sum(report[keys.SECONDS] for report in history),
            "best_stage": best[keys.STAGE] if best else None,
            "best_epoch": best[keys.EPOCH] if best else None,
        }
        if best:
            row |= {key: value for key, value in best.items() if key.startswith(f"{keys.VALIDATION}/")}
        rows.append(row | candidate.values)
    return rows


def _epochs_done(history: Sequence[Row], stage: str) -> float:
    return max((report[keys.EPOCH] for report in history if report[keys.STAGE] == stage), default=0)


def ranking(rows: Sequence[Row], metric: str) -> list[Row]:
    """Best first. Completed candidates stand before all others; ties go to the lower candidate number."""

    def order(row: Row) -> tuple[bool, float]:
        score = row.get(metric)
        return row["state"] != "completed", -score if score is not None else math.inf

    return sorted(rows, key=order)  # stable: equal scores stay in the candidates' order


def chosen_row(rows: Sequence[Row], metric: str) -> Row | None:
    """The candidate the sweep chooses, by validation rows alone; None if none was completed."""
    best = next(iter(ranking(rows, metric)), None)
    return best if best is not None and best["state"] == "completed" else None


def write_tables(run: RunDirectory, records: Records, metric: str) -> list[Row]:
    """(Re)write ``results.parquet`` and ``history.parquet`` from the records; returns the result rows."""
    rows = result_rows(records, metric)
    _write_parquet(run, RESULTS_FILE, rows)
    _write_parquet(run, HISTORY_FILE, records.history)
    return rows


def describe_run(run: RunDirectory, records: Records, rows: Sequence[Row], metric: str) -> str:
    """The ranking, the chosen trial's test metrics, and where everything lies, as text."""
    swept = list(dict.fromkeys(name for candidate in records.candidates for name in candidate.values))
    lines = [format_ranking(rows, metric, swept, limit=20), *failures(rows), ""]
    metrics = read_test_metrics(run)
    chosen = chosen_row(rows, metric)
    if metrics is None and chosen is not None:
        lines.append(f"best by {metric}: {chosen['candidate']}; no model has been made of it")
    elif metrics is None:
        lines.append("no candidate has been chosen, so there is no model")
    else:
        where = f"{metrics['stage']} epoch {keys.shown_epochs(metrics['epoch'])}"
        lines.append(f"chosen by {metric}: {metrics['candidate']}, {where}")
        if any(candidate.trial["data"]["train"].startswith("demo://") for candidate in records.candidates):
            lines.append("its rows are synthetic: these numbers show that the sweep works, not what a method is worth")
        lines += ["", format_test_metrics(metrics), "", f"model    {run.uri(BEST_FOLDER)}"]
    lines.append(f"results  {run.uri(RESULTS_FILE)}, {run.uri(HISTORY_FILE)}, {run.uri(REPORT_FILE)}")
    return "\n".join(lines)


def format_ranking(rows: Sequence[Row], metric: str, swept: Sequence[str], limit: int | None = None) -> str:
    """The ranking as text, a line per candidate."""
    header = ["rank", "candidate", "state", "epochs", metric.split("/", 1)[1], *swept, "seconds"]
    table = [header]
    ranked = ranking(rows, metric)
    for rank, row in enumerate(ranked[:limit], start=1):
        table.append(
            [
                str(rank) if row["state"] == "completed" else "-",
                row["candidate"],
                row["state"],
                "+".join(keys.shown_epochs(row[f"{stage}_epochs"]) for stage in keys.STAGES),
                format_cell(row.get(metric)),
                *(format_cell(row.get(name)) for name in swept),
                f"{row['seconds']:.0f}",
            ]
        )
    text = aligned(table)
    hidden = len(ranked) - len(table) + 1
    return text + (f"\n... and {hidden} more in {RESULTS_FILE}" if hidden > 0 else "")


def format_test_metrics(metrics: dict[str, Any]) -> str:
    """``best/metrics.json`` as text: the scores of the test rows, then one line per class."""
    scores = [["score", "test"]] + [
        [name, format_cell(metrics[key])] for name in keys.SCORES if (key := keys.on_split(keys.TEST, name)) in metrics
    ]
    classes = [["class", "train rows", "test rows", "F1"]] + [
        [
            label,
            str(metrics["train_rows"][label]),
            str(metrics["test_rows"][label]),
            format_cell(metrics[keys.class_f1(keys.TEST, label)]),
        ]
        for label in metrics["labels"]
    ]
    return aligned(scores) + "\n\n" + aligned(classes)


def failures(rows: Sequence[Row]) -> list[str]:
    """A line per failed candidate, with its reason."""
    return [f"{row['candidate']} failed: {row['reason']}" for row in rows if row["state"] == "failed"]


def read_test_metrics(run: RunDirectory) -> dict[str, Any] | None:
    """``best/metrics.json``, or None where no model has been chosen yet."""
    if not run.exists(METRICS_FILE):
        return None
    metrics: dict[str, Any] = json.loads(run.read_text(METRICS_FILE))
    return metrics


def _write_parquet(run: RunDirectory, name: str, rows: Sequence[Row]) -> None:
    """Columns are the union of the rows' keys; a column that mixes types (a swept choice may) is written as text."""
    columns: dict[str, list[Any]] = {key: [] for row in rows for key in row}
    for row in rows:
        for key, values in columns.items():
            values.append(row.get(key))
    arrays = {key: _array(values) for key, values in columns.items()}
    sink = io.BytesIO()
    pq.write_table(pa.table(arrays), sink)
    run.write_bytes(name, sink.getvalue())


def _array(values: list[Any]) -> pa.Array:
    if all(value is None for value in values):
        return pa.array(values, pa.string())  # a column of no type would not go together with another run's
    try:
        if not any(isinstance(value, dict | list) for value in values):
            return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        pass
    return pa.array([None if value is None else json.dumps(value) for value in values])


def format_cell(value: Any) -> str:
    """A value as the tables show it: four decimals, a dash for None."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) >= 0.01 or value == 0 else f"{value:.3g}"
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


def aligned(table: list[list[str]]) -> str:
    """Columns padded to their widest cell; numbers to the right."""
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
