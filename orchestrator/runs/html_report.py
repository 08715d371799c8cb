"""A run's records as one self-contained HTML page: no script, no network, every number from the run's own files."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from tailsweep.orchestrator.runs.tables import chosen_trials, ranking
from tailsweep.orchestrator.runs.text import (
    METHOD_HEADER,
    SELECTION_HEADER,
    baseline_rows,
    beaten_by,
    describe_choice,
    format_cell,
    method_rows,
    selection_remark,
    selection_rows,
)
from tailsweep.orchestrator.runs.trials import Records, Row, TrialState
from tailsweep.trainables import report_keys

WIDTH, HEIGHT = 860, 360  # of the drawing, in its own units
MAX_TICKS = 15  # named epochs of a stage
MAX_POINTS = 400  # of a trial
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 28, 44  # margins around the axes
COLORS = {
    "chosen": "#d9480f",
    TrialState.COMPLETED: "#1c7ed6",
    TrialState.PRUNED: "#adb5bd",
    TrialState.NOT_PROMOTED: "#b197fc",
    TrialState.FAILED: "#e03131",
    TrialState.RUNNING: "#868e96",
}

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 900px; margin: 2em auto; padding: 0 1em; color: #212529; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2em .8em .2em 0; text-align: left; border-bottom: 1px solid #dee2e6; vertical-align: top; }
.wide { overflow-x: auto; } svg { max-width: 100%; height: auto; } .note { color: #5c636a; }
"""


def render_page(
    name: str,
    records: Records,
    rows: Sequence[Row],
    metric: str,
    test_metrics: Row | None,
) -> str:
    """Render the page: the best trial and its test scores, the learning curves, the ranking.

    Args:
        name: The name of the sweep.
        records: The records of the run.
        rows: The rows of ``tables.result_rows``.
        metric: The key the trials are ranked by.
        test_metrics: ``best/metrics.json``; None if nothing has been chosen yet.
    """
    chosen = chosen_trials(test_metrics)
    swept = list(dict.fromkeys(key for trial in records.trials for key in trial.values))
    parts = [f"<h1>{escape(name)}</h1>"]
    if any(trial.config["data"]["train"].startswith("demo://") for trial in records.trials):
        parts.append('<p class="note">The rows are synthetic: these scores say nothing about real ones.</p>')
    if test_metrics is None:
        parts.append("<p>No trial has been chosen.</p>")
    else:
        parts.append(
            f"<p>Chosen by {escape(metric)}: <b>{escape(describe_choice(test_metrics))}</b>. The test rows were scored "
            "once, for this model only.</p>"
        )
        if test_metrics.get("selection"):
            parts.append(_table(SELECTION_HEADER, selection_rows(test_metrics)))
            if (remark := selection_remark(test_metrics)) is not None:
                parts.append(f'<p class="note">{escape(remark)}</p>')
        parts.append(_table(["score", "test", ""], _score_rows(test_metrics)))
        parts.append(_table(["class", "train rows", "test rows", "F1"], _class_rows(test_metrics)))
        if test_metrics.get("baselines"):
            baselines = [list(row) for row in baseline_rows(test_metrics, metric)]
            parts.append(_table(["baseline", "validation", "test", "seconds"], baselines))
            if (warning := beaten_by(test_metrics, metric)) is not None:
                parts.append(f'<p class="note">{escape(warning)}</p>')
    if methods := method_rows(records, rows, metric):
        parts.append(f"<h2>Methods</h2>\n{_table(METHOD_HEADER, methods)}")
    parts.append(f"<h2>The course of every trial</h2>\n{draw_curves(records, rows, metric, chosen)}")
    header = ["trial", "state", "epochs", metric.split("/", 1)[1], *swept, "seconds", "reason"]
    ranked = [
        [
            row["trial"],
            row["state"],
            " + ".join(report_keys.shown_epochs(row[f"{stage}_epochs"]) for stage in report_keys.STAGES),
            row.get(metric),
            *(row.get(key) for key in swept),
            round(row["seconds"]),
            row["reason"],
        ]
        for row in ranking(rows, metric)
    ]
    parts.append(f'<h2>Ranking</h2>\n<div class="wide">{_table(header, ranked)}</div>')
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{escape(name)}</title>\n'
        f"<style>{STYLE}</style>\n{body}\n</html>\n"
    )


@dataclass(frozen=True)
class _Plot:
    """The coordinates of the curves."""

    epochs: Mapping[str, int]  # of each stage, the most of any trial
    spans: Mapping[str, float]  # epochs from one report of a stage to the next, the least
    low: float  # the scores at the bottom and at the top
    high: float

    def x(self, stage: str, epoch: float) -> float:
        """Return where a report is drawn: in the middle of the span before it."""
        before = self.epochs[report_keys.STAGE_ONE] if stage == report_keys.STAGE_TWO else 0
        place = epoch + before - self.spans[stage] / 2
        return round(LEFT + (WIDTH - LEFT - RIGHT) * place / max(sum(self.epochs.values()), 1), 1)

    def y(self, score: float) -> float:
        """Return where a score is drawn."""
        height = (HEIGHT - TOP - BOTTOM) * (self.high - score) / (self.high - self.low)
        return round(TOP + height, 1)


def draw_curves(records: Records, rows: Sequence[Row], metric: str, chosen: Collection[str]) -> str:
    """Draw an SVG of ``metric`` over the epochs of stage one, then of stage two: a line per trial, its end marked."""
    epochs: dict[str, int] = {
        stage: max((c.config[stage]["epochs"] for c in records.trials), default=0) for stage in report_keys.STAGES
    }
    spans: dict[str, float] = {
        stage: min(
            (report[report_keys.EPOCH] % 1 or 1 for report in records.history if report[report_keys.STAGE] == stage),
            default=1,
        )
        for stage in report_keys.STAGES
    }
    scores: list[float] = [report[metric] for report in records.history]
    if not scores:
        return "<p>No reports yet.</p>"
    low, high = min(scores), max(scores)
    low, high = low - 0.05 * (high - low or 1), high + 0.05 * (high - low or 1)
    plot = _Plot(epochs, spans, low, high)
    drawn = _axes(plot, metric)
    states: dict[str, str] = {row["trial"]: row["state"] for row in rows}
    # The best trial last, over the others.
    for name in sorted(states, key=lambda name: (name in chosen, states[name] == TrialState.COMPLETED)):
        state = states[name]
        history = records.history_of(name)
        if not history:
            continue
        points = [
            (plot.x(report[report_keys.STAGE], report[report_keys.EPOCH]), plot.y(report[metric]))
            for report in _few(history)
        ]
        kind = "chosen" if name in chosen else state
        color, width = COLORS[kind], 3 if kind == "chosen" else 1.6
        line = " ".join(f"{across},{down}" for across, down in points)
        title = escape(f"{name}, {state}: {history[-1][metric]:.4f}")
        drawn.append(
            f'<g fill="none" stroke="{color}" stroke-width="{width}"><title>{title}</title>'
            f'<polyline points="{line}"/></g>'
        )
        drawn += [f'<circle cx="{across}" cy="{down}" r="{width + 0.8}" fill="{color}"/>' for across, down in points]
    shown = [kind for kind in COLORS if kind == "chosen" or kind in states.values()]
    for number, kind in enumerate(shown):
        across = LEFT + 12 + 110 * number
        drawn.append(f'<rect x="{across}" y="8" width="14" height="4" fill="{COLORS[kind]}"/>')
        drawn.append(f'<text x="{across + 20}" y="14">{kind.replace("_", " ")}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="#495057">\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>\n' + "\n".join(drawn) + "\n</svg>"
    )


def _axes(plot: _Plot, metric: str) -> list[str]:
    """Draw five levels of the score, a tick per epoch, and the boundary between the stages."""
    drawn = []
    epochs, spans, x = plot.epochs, plot.spans, plot.x
    for level in (plot.low + (plot.high - plot.low) * step / 4 for step in range(5)):
        drawn.append(f'<path d="M{LEFT} {plot.y(level)}H{WIDTH - RIGHT}" stroke="#e9ecef"/>')
        drawn.append(f'<text x="{LEFT - 8}" y="{plot.y(level) + 4}" text-anchor="end">{level:.2f}</text>')
    for stage in report_keys.STAGES:
        for epoch in _ticks(epochs[stage]):
            across = x(stage, epoch)
            drawn.append(f'<text x="{across}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{epoch}</text>')
        if epochs[stage]:
            middle = (x(stage, spans[stage]) + x(stage, epochs[stage])) / 2
            name = escape(stage.replace("_", " "))
            drawn.append(
                f'<text x="{middle}" y="{HEIGHT - BOTTOM + 34}" text-anchor="middle" font-weight="bold">{name}</text>'
            )
    if all(epochs.values()):
        boundary = (
            x(report_keys.STAGE_ONE, epochs[report_keys.STAGE_ONE])
            + x(report_keys.STAGE_TWO, spans[report_keys.STAGE_TWO])
        ) / 2
        drawn.append(f'<path d="M{boundary} {TOP}V{HEIGHT - BOTTOM}" stroke="#868e96" stroke-dasharray="4 3"/>')
    drawn.append(f'<text x="{WIDTH - RIGHT}" y="14" text-anchor="end">{escape(metric)}</text>')
    return drawn


def _few(history: Sequence[Row]) -> list[Row]:
    """Return at most MAX_POINTS reports, the last among them."""
    step = -(-len(history) // MAX_POINTS)
    return list(history[::-1][::step][::-1]) if history else []


def _ticks(epochs: int) -> Sequence[int]:
    """Return at most MAX_TICKS epochs to name, at a round distance from each other."""
    steps = (factor * 10**power for power in itertools.count() for factor in (1, 2, 5))
    step = next(step for step in steps if epochs <= step * MAX_TICKS)
    return range(step, epochs + 1, step)


def _score_rows(metrics: Row) -> list[list[object]]:
    names = [
        (name, meaning)
        for name, meaning in report_keys.SCORES.items()
        if report_keys.on_split(report_keys.TEST, name) in metrics
    ]
    return [[name, metrics[report_keys.on_split(report_keys.TEST, name)], meaning] for name, meaning in names]


def _class_rows(metrics: Row) -> list[list[object]]:
    return [
        [
            label,
            metrics["train_rows"][label],
            metrics["test_rows"][label],
            metrics[report_keys.class_f1(report_keys.TEST, label)],
        ]
        for label in metrics["labels"]
    ]


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{escape(format_cell(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table>\n<tr>{head}</tr>\n{body}\n</table>"
