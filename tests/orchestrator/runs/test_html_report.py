"""report.html: well-formed, complete, and nothing in it that a name could smuggle in."""

import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest
from tailsweep.orchestrator.runs.html_report import _ticks, draw_curves, render_page
from tailsweep.orchestrator.runs.tables import result_rows
from tailsweep.orchestrator.runs.trials import Outcome, Records, TrialRecord
from tailsweep.trainables import report_keys

METRIC = "validation/macro_f1"
NASTY = "<script>alert('x')</script>"


def records() -> Records:
    """t000 goes through both stages (2 + 1 epochs), t001 is pruned after one, t002 has not begun."""
    trial_config = {"data": {"train": "rows.csv"}, "stage_one": {"epochs": 2}, "stage_two": {"epochs": 1}}
    history = [
        _report("t000", "stage_one", 1, 0.2),
        _report("t001", "stage_one", 1, 0.1),
        _report("t000", "stage_one", 2, 0.3),
        _report("t000", "stage_two", 1, 0.6),
    ]
    outcomes = {
        "t000": Outcome("t000", "completed", "all its epochs are done", 12.0),
        "t001": Outcome("t001", "pruned", f"below the rung {NASTY}", 3.0),
    }
    trials = [TrialRecord(f"t00{n}", {"stage_one.learning_rate": 10.0**-n}, trial_config) for n in range(3)]
    return Records(trials, history, outcomes)


def test_the_curves_have_a_line_per_trial_with_reports_and_a_point_per_report():
    drawn = _parse(draw_curves(records(), result_rows(records(), METRIC), METRIC, ["t000"]))
    lines = [line.get("points").split() for line in drawn.findall(".//{*}polyline")]
    assert sorted(map(len, lines)) == [1, 3]
    assert len(drawn.findall(".//{*}circle")) == 4
    # t000 rises: further right and, since SVG counts downwards, smaller y.
    (rising,) = [line for line in lines if len(line) == 3]
    across, down = zip(*(map(float, point.split(",")) for point in rising), strict=True)
    assert list(across) == sorted(across)
    assert list(down) == sorted(down, reverse=True)


def test_a_report_lies_in_the_middle_of_the_span_that_it_ends():
    """Two epochs of stage one, evaluated twice each, and one of stage two: 788 / 3 across each, from 56."""
    halves = [_report("t000", "stage_one", epoch, 0.2) for epoch in (0.5, 1, 1.5, 2)]
    reports = Records(records().trials, [*halves, _report("t000", "stage_two", 1, 0.6)])
    drawn = _parse(draw_curves(reports, result_rows(reports, METRIC), METRIC, []))
    (line,) = drawn.findall(".//{*}polyline")
    across = [float(point.split(",")[0]) for point in line.get("points").split()]
    epoch = 788 / 3
    assert across == pytest.approx([56 + epoch * place for place in (0.25, 0.75, 1.25, 1.75, 2.5)], abs=0.06)


def test_the_page_shows_what_the_records_hold_and_escapes_it():
    metrics = {
        "trial": "t000", "stage": "stage_two", "epoch": 1, "labels": [NASTY, "b"], "train_rows": {NASTY: 5, "b": 9},
        "test_rows": {NASTY: 1, "b": 2}, "test/macro_f1": 0.51239, f"test/f1/{NASTY}": None, "test/f1/b": 0.75,
    }  # fmt: skip
    page = render_page("demo", records(), result_rows(records(), METRIC), METRIC, metrics)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    for shown in ("t000", "t001", "t002", "0.5124", "0.7500", "completed", "pruned", "pending", "stage_two epoch 1"):
        assert shown in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", ""), "the page must stand alone"


def test_a_sweep_without_reports_has_a_page_too():
    empty = Records(records().trials, [])
    page = render_page("demo", empty, result_rows(empty, METRIC), METRIC, None)
    assert "No trial has been chosen." in page
    assert "No reports yet." in page


def _report(trial: str, stage: str, epoch: float, score: float) -> dict[str, Any]:
    return {
        "trial": trial,
        report_keys.STAGE: stage,
        report_keys.EPOCH: epoch,
        METRIC: score,
        report_keys.SECONDS: 1.0,
    }


def _parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def test_a_long_training_is_drawn_with_few_ticks_and_points():
    trial_config = {"data": {"train": "x"}, "stage_one": {"epochs": 10**6}, "stage_two": {"epochs": 7}}
    history = [_report("t000", "stage_one", epoch, 0.5) for epoch in range(1, 5001)]
    many = Records([TrialRecord("t000", {}, trial_config)], history)
    drawn = draw_curves(many, result_rows(many, METRIC), METRIC, [])
    assert len(drawn) < 100_000
    named = [text.text for text in _parse(drawn).findall(".//{*}text")]
    assert {"100000", "1000000", "1", "7"} <= set(named)


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [(0, []), (1, [1]), (15, [*range(1, 16)]), (16, [*range(2, 17, 2)]), (100, [*range(10, 101, 10)])],
)
def test_ticks_are_few_and_round(epochs: int, expected: list[int]):
    assert list(_ticks(epochs)) == expected
