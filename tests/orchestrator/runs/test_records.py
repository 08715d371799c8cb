"""What is read back of a run's records, and what is made of them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from tailsweep.orchestrator.config.sweep import Sweep, SweepConfigError, load_sweep, to_yaml
from tailsweep.orchestrator.runs.directory import (
    SWEEP_FILE,
    TRIALS_FILE,
    RunDirectory,
    RunDirectoryError,
    open_run,
)
from tailsweep.orchestrator.runs.records import (
    RecordWriter,
    read_records,
    read_sweep,
    write_trials,
)
from tailsweep.orchestrator.runs.trials import Outcome, Records, TrialRecord, judged_report, last_stage

METRIC = "validation/macro_f1"


def a_sweep(folder: Path) -> Sweep:
    path = folder / "small.yaml"
    path.write_text(
        "{name: small, num_trials: 3, data: {train: rows.csv}, "
        "stage_one: {learning_rate: {loguniform: [1e-5, 1e-2]}, trainable: {choice: [head, {top_layers: 1}]}}}"
    )
    return load_sweep(path)


def report(trial: str, stage: str, epoch: int, score: float) -> dict[str, Any]:
    return {"trial": trial, "stage": stage, "epoch": epoch, METRIC: score, "seconds": 1.25}


@pytest.mark.parametrize("damage", ["truncated", "altered", "emptied"])
def test_damage_to_the_list_of_trials_is_named_with_a_hint(run: RunDirectory, damage: str) -> None:
    write_trials(run, [TrialRecord("t000", {"seed": 1}, {}), TrialRecord("t001", {"seed": 2}, {})])
    assert len(read_records(run).trials) == 2
    text = run.read_text(TRIALS_FILE)
    damaged = {"truncated": text[: len(text) // 2], "altered": text.replace("1", "3", 1), "emptied": ""}
    run.write_text(TRIALS_FILE, damaged[damage])
    with pytest.raises(RunDirectoryError, match=rf"{TRIALS_FILE} is damaged .*: restore the run directory from a copy"):
        read_records(run)


def test_a_trial_taken_out_of_the_list_is_noticed(run: RunDirectory) -> None:
    write_trials(run, TRIALS)
    listed = json.loads(run.read_text(TRIALS_FILE))
    del listed["trials"][0]
    run.write_text(TRIALS_FILE, json.dumps(listed))
    with pytest.raises(RunDirectoryError, match="its checksum is of other content"):
        read_records(run)


def test_an_outcome_counts_the_reports_of_its_trial(run: RunDirectory) -> None:
    write_trials(run, TRIALS)
    writer = RecordWriter(run)
    writer.report(HISTORY[0])
    writer.end_trials([dataclasses.replace(OUTCOME, num_reports=2)])
    with pytest.raises(RunDirectoryError, match="have 1 reports of t001, but it ended with 2"):
        read_records(run)


def test_records_of_a_trial_that_is_not_listed_are_refused(run: RunDirectory) -> None:
    write_trials(run, TRIALS[1:])
    RecordWriter(run).report(HISTORY[1])
    with pytest.raises(RunDirectoryError, match="are of a trial t000 that they do not list"):
        read_records(run)


TRIALS = [
    TrialRecord("t000", {"stage_one.trainable": {"top_layers": 1}, "stage_one.epochs": 3}, {"seed": 0, "a": [1, None]}),
    TrialRecord("t001", {"stage_one.trainable": "head", "stage_one.epochs": 1}, {"seed": 0, "a": []}),
]
HISTORY = [
    report("t001", "stage_one", 1, 0.1 + 0.2),  # a number that a careless format would change
    report("t000", "stage_one", 1, 1e-17) | {"validation/recall_few": None},
    report("t001", "stage_two", 1, 0.5),
]
OUTCOME = Outcome("t001", "completed", "all its epochs are done", 2.5, num_reports=2)


def fill(run: RunDirectory) -> None:
    write_trials(run, TRIALS)
    writer = RecordWriter(run)
    for row in HISTORY:
        writer.report(row)
    writer.end_trials([OUTCOME])


def the_records() -> Records:
    return Records(TRIALS, HISTORY, {"t001": OUTCOME})


def test_records_are_read_back_as_they_were_written(run: RunDirectory) -> None:
    fill(run)
    assert read_records(run) == the_records()


def test_a_sweep_is_finished_when_every_trial_has_an_outcome() -> None:
    read = the_records()
    assert not read.finished
    read.outcomes["t000"] = dataclasses.replace(OUTCOME, trial="t000", state="failed")
    assert read.finished


def test_history_stays_in_the_order_recorded_over_many_writers(run: RunDirectory) -> None:
    write_trials(run, TRIALS)
    for _ in range(3):  # a sweep and its resumptions
        writer = RecordWriter(run, read_records(run).log_end)
        for _ in range(5):
            writer.report(report("t000", "stage_one", 1, 0.5) | {"number": writer.log.end.number})
    assert [row["number"] for row in read_records(run).history] == list(range(15))


def test_history_of_a_trial_is_its_own_rows_in_order() -> None:
    assert the_records().history_of("t001") == [HISTORY[0], HISTORY[2]]


def test_a_trial_with_a_parent_has_its_stage_one_and_numbers_order_them_all(run: RunDirectory) -> None:
    write_trials(run, TRIALS[:1])
    writer = RecordWriter(run)
    for name, parent in (("t1000", None), ("t000.10", "t000"), ("t000.2", "t000"), ("t101", None)):
        writer.draw(TrialRecord(name, {"x": name}, {}, parent))
    rows = [report("t000", "stage_one", 1, 0.1), report("t000.2", "stage_two", 1, 0.2)]
    rows.append(report("t000.10", "stage_two", 1, 0.3))
    for row in rows:
        writer.report(row)
    read = read_records(run)
    assert [trial.name for trial in read.trials] == ["t000", "t101", "t1000", "t000.2", "t000.10"]
    assert [trial.name for trial in read.root_trials] == ["t000", "t101", "t1000"]
    assert read.trial("t000.2").parent == "t000"
    assert read.history_of("t000") == rows[:1]
    assert read.history_of("t000.2") == rows[:2]
    assert read.history_of("t000.10") == [rows[0], rows[2]]


def test_a_run_is_one_as_soon_as_its_trials_are_written(run: RunDirectory, tmp_path: Path) -> None:
    run.write_text(SWEEP_FILE, "x")
    with pytest.raises(RunDirectoryError):
        open_run(run.location)
    write_trials(run, TRIALS)
    assert open_run(run.location).path == run.path
    assert json.loads(run.read_text(TRIALS_FILE))["trials"][0]["name"] == "t000"


def test_the_resolved_sweep_is_read_back_equal(run: RunDirectory, tmp_path: Path) -> None:
    sweep = a_sweep(tmp_path)
    run.write_text(SWEEP_FILE, to_yaml(sweep))
    read = read_sweep(run)
    assert read.config == sweep.config
    assert read.trials() == sweep.trials()


def test_a_resolved_sweep_that_somebody_broke_is_named_with_its_issue(run: RunDirectory, tmp_path: Path) -> None:
    run.write_text(SWEEP_FILE, to_yaml(a_sweep(tmp_path)).replace("metric: ", "metrik: "))
    with pytest.raises(SweepConfigError, match='metrik: unknown field; did you mean "metric"') as raised:
        read_sweep(run)
    assert raised.value.source == run.uri(SWEEP_FILE)
    run.write_text(SWEEP_FILE, "name: [")
    with pytest.raises(SweepConfigError, match="line 1"):
        read_sweep(run)


@pytest.mark.parametrize(("epochs", "last"), [((3, 2), "stage_two"), ((3, 0), "stage_one"), ((0, 1), "stage_two")])
def test_a_trial_is_complete_with_stage_two_where_there_is_one(epochs: tuple[int, int], last: str) -> None:
    assert last_stage({"stage_one": {"epochs": epochs[0]}, "stage_two": {"epochs": epochs[1]}}) == last


def test_a_trial_is_judged_by_the_best_epoch_of_its_last_stage() -> None:
    rows = [
        report("t000", "stage_one", 1, 0.9),
        report("t000", "stage_one", 2, 0.8),
        report("t000", "stage_two", 1, 0.2),
        report("t000", "stage_two", 2, 0.3),
        report("t000", "stage_two", 3, 0.1),
    ]
    assert judged_report({}, rows, METRIC) is rows[3]
    assert judged_report({}, rows[:2], METRIC) is rows[0]
    assert judged_report({}, [], METRIC) is None


def test_a_stage_that_keeps_its_last_epoch_is_judged_by_it() -> None:
    rows = [report("t000", "stage_two", epoch, score) for epoch, score in ((1, 0.2), (2, 0.3), (3, 0.1))]
    last = {"stage_one": {"keep": "best"}, "stage_two": {"keep": "last"}}
    assert judged_report(last, rows, METRIC) is rows[2]
    assert judged_report(last, rows[:2], METRIC) is rows[1], "a trial that is running"
    assert judged_report({"stage_two": {"keep": "last", "patience": 2}}, rows, METRIC) is rows[1]
    assert judged_report({"stage_one": {"keep": "last"}}, rows, METRIC) is rows[1]


def test_the_earlier_of_equally_good_epochs_is_the_best() -> None:
    rows = [report("t000", "stage_one", epoch, score) for epoch, score in ((1, -0.5), (2, 0.4), (3, 0.4))]
    assert judged_report({}, rows, METRIC) is rows[1]


def test_records_on_an_object_store_are_read_back_too(object_store: RunDirectory) -> None:
    object_store.create()
    fill(object_store)
    assert read_records(object_store) == the_records()
