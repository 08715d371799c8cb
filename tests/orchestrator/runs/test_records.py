"""What is read back of a run's records, and what is made of them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from tailsweep.orchestrator.config.sweep import Sweep, SweepConfigError, load_sweep, to_yaml
from tailsweep.orchestrator.runs.directory import (
    HISTORY_FOLDER,
    SWEEP_FILE,
    TRIALS_FILE,
    RunDirectory,
    RunDirectoryError,
    open_run,
)
from tailsweep.orchestrator.runs.records import (
    HistoryWriter,
    read_records,
    read_sweep,
    write_drawn,
    write_outcome,
    write_trials,
)
from tailsweep.orchestrator.runs.trials import Outcome, Records, TrialRecord, best_epoch, last_stage

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


@pytest.mark.parametrize("file", [TRIALS_FILE, "state/history/00000000.json", "state/outcomes/t000.json"])
@pytest.mark.parametrize("damage", ["truncated", "altered", "emptied"])
def test_a_damaged_record_is_named_with_a_hint(run: RunDirectory, file: str, damage: str) -> None:
    write_trials(run, [TrialRecord("t000", {"seed": 1}, {})])
    HistoryWriter(run).append({"trial": "t000", "stage": "stage_one", "epoch": 1, "validation/macro_f1": 0.25})
    write_outcome(run, Outcome("t000", "pruned", "after epoch 1", 1.0))
    assert read_records(run).outcomes
    text = run.read_text(file)
    damaged = {"truncated": text[: len(text) // 2], "altered": text.replace("1", "2", 1), "emptied": ""}
    run.write_text(file, damaged[damage])
    with pytest.raises(RunDirectoryError, match=rf"{file} is damaged .*: restore it from a copy"):
        read_records(run)


def test_a_part_of_history_that_was_removed_leaves_the_others_where_they_are(run: RunDirectory) -> None:
    writer = HistoryWriter(run)
    for epoch in (1, 2, 3):
        writer.append({"trial": "t000", "epoch": epoch})
    Path(run.path, "state/history/00000000.json").unlink()
    HistoryWriter(run).append({"trial": "t000", "epoch": 4})
    assert run.list("state/history") == [f"{number:08d}.json" for number in (1, 2, 3)]


TRIALS = [
    TrialRecord("t000", {"stage_one.trainable": {"top_layers": 1}, "stage_one.epochs": 3}, {"seed": 0, "a": [1, None]}),
    TrialRecord("t001", {"stage_one.trainable": "head", "stage_one.epochs": 1}, {"seed": 0, "a": []}),
]
HISTORY = [
    report("t001", "stage_one", 1, 0.1 + 0.2),  # a number that a careless format would change
    report("t000", "stage_one", 1, 1e-17) | {"validation/recall_few": None},
    report("t001", "stage_two", 1, 0.5),
]
OUTCOME = Outcome("t001", "completed", "all its epochs are done", 2.5)


def fill(run: RunDirectory) -> None:
    write_trials(run, TRIALS)
    writer = HistoryWriter(run)
    for row in HISTORY:
        writer.append(row)
    write_outcome(run, OUTCOME)


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


def test_history_stays_in_the_order_recorded_over_many_parts_and_writers(run: RunDirectory) -> None:
    write_trials(run, TRIALS)
    for _ in range(3):  # a sweep and its resumptions
        writer = HistoryWriter(run)
        for _ in range(5):
            writer.append({"trial": "t000", "stage": "stage_one", "number": writer.next_part})
    assert [row["number"] for row in read_records(run).history] == list(range(15))
    assert run.list(HISTORY_FOLDER)[-1] == "00000014.json"


def test_history_of_a_trial_is_its_own_rows_in_order() -> None:
    assert the_records().history_of("t001") == [HISTORY[0], HISTORY[2]]


def test_a_trial_with_a_parent_has_its_stage_one_and_numbers_order_them_all(run: RunDirectory) -> None:
    write_trials(run, TRIALS[:1])
    for name, parent in (("t1000", None), ("t000.10", "t000"), ("t000.2", "t000"), ("t101", None)):
        write_drawn(run, TrialRecord(name, {"x": name}, {}, parent))
    writer = HistoryWriter(run)
    rows = [report("t000", "stage_one", 1, 0.1), report("t000.2", "stage_two", 1, 0.2)]
    rows.append(report("t000.10", "stage_two", 1, 0.3))
    for row in rows:
        writer.append(row)
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
    assert json.loads(run.read_text(TRIALS_FILE))[0]["name"] == "t000"


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
    assert best_epoch(rows, METRIC) is rows[3]
    assert best_epoch(rows[:2], METRIC) is rows[0]
    assert best_epoch([], METRIC) is None


def test_the_earlier_of_equally_good_epochs_is_the_best() -> None:
    rows = [report("t000", "stage_one", epoch, score) for epoch, score in ((1, -0.5), (2, 0.4), (3, 0.4))]
    assert best_epoch(rows, METRIC) is rows[1]


def test_records_on_an_object_store_are_read_back_too(object_store: RunDirectory) -> None:
    object_store.create()
    fill(object_store)
    assert read_records(object_store) == the_records()
