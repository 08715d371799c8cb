"""Records as tables: states, ranking, Parquet and text; and `report`, which needs nothing but a run's files."""

import errno
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tailsweep.orchestrator.cli.main import main
from tailsweep.orchestrator.config.changes import settings_digest
from tailsweep.orchestrator.config.errors import printable
from tailsweep.orchestrator.config.sweep import load_sweep, to_yaml
from tailsweep.orchestrator.runs.directory import ENVIRONMENT_FILE, METRICS_FILE, SWEEP_FILE, RunDirectory
from tailsweep.orchestrator.runs.records import RecordWriter, read_records, with_checksum, write_trials
from tailsweep.orchestrator.runs.report import hints, report, write_report
from tailsweep.orchestrator.runs.tables import ranking, result_rows, select_best, write_tables
from tailsweep.orchestrator.runs.text import (
    describe_run,
    failures,
    format_baselines,
    format_ranking,
    format_test_metrics,
)
from tailsweep.orchestrator.runs.trials import Outcome, Records, TrialRecord

METRIC = "validation/macro_f1"


def trial(name: str, train: str = "rows.csv", **values: Any) -> TrialRecord:
    return TrialRecord(
        name, {key.replace("__", "."): value for key, value in values.items()}, {"data": {"train": train}}
    )


def epoch(name: str, stage: str, number: float, score: float, **more: Any) -> dict[str, Any]:
    row = {"trial": name, "stage": stage, "epoch": number, "train/loss": 0.5, METRIC: score, "seconds": 2.0}
    return row | ({"stage_one_epoch": number} if stage == "stage_one" else {}) | more


def five_states() -> Records:
    """t000 completed, t001 pruned (its score is the highest), t002 running, t003 pending, t004 failed."""
    return Records(
        [trial(f"t{number:03d}", stage_one__learning_rate=10.0**-number) for number in range(5)],
        [
            epoch("t000", "stage_one", 1, 0.6, **{"validation/recall_few": None}),
            epoch("t001", "stage_one", 1, 0.9),
            epoch("t002", "stage_one", 1, 0.3),
            epoch("t000", "stage_two", 1, 0.5, **{"validation/recall_few": 0.25}),
            epoch("t002", "stage_one", 2, 0.2),
            epoch("t000", "stage_two", 2, 0.4, **{"validation/recall_few": 0.5}),
        ],
        {
            "t000": Outcome("t000", "completed", "all its epochs are done", 12.5),
            "t001": Outcome("t001", "pruned", "below the rung", 3.25),
            "t004": Outcome("t004", "failed", "TrainingDiverged: the loss is nan", 1.0),
        },
    )


def test_every_state_is_told_apart() -> None:
    rows = result_rows(five_states(), METRIC)
    assert [row["trial"] for row in rows] == ["t000", "t001", "t002", "t003", "t004"]
    assert [row["state"] for row in rows] == ["completed", "pruned", "running", "pending", "failed"]
    assert [row["reason"] for row in rows] == [
        "all its epochs are done",
        "below the rung",
        None,
        None,
        "TrainingDiverged: the loss is nan",
    ]
    assert [(row["stage_one_epochs"], row["stage_two_epochs"]) for row in rows] == [
        (1, 2),
        (1, 0),
        (2, 0),
        (0, 0),
        (0, 0),
    ]
    # Of an unfinished trial, the seconds of its reports: 2 + 2.
    assert [row["seconds"] for row in rows] == [12.5, 3.25, 4.0, 0, 1.0]
    assert [row["parent"] for row in rows] == [None] * 5
    assert [row["stage_one.learning_rate"] for row in rows] == [1.0, 0.1, 0.01, 0.001, 0.0001]


def test_a_trial_that_continued_as_several_gives_their_rows_at_its_place() -> None:
    names = {"t000": None, "t001": None, "t000.1": "t000", "t000.2": "t000"}
    records = Records(
        [TrialRecord(name, {"x": name}, {"data": {"train": "rows.csv"}}, parent) for name, parent in names.items()],
        [
            epoch("t000", "stage_one", 1, 0.6),
            epoch("t001", "stage_one", 1, 0.1),
            epoch("t000.2", "stage_two", 1, 0.8),
            epoch("t000.1", "stage_two", 1, 0.7),
        ],
        {
            "t000": Outcome("t000", "promoted", "continues as t000.1, t000.2", 3.0),
            "t001": Outcome("t001", "not_promoted", "rank 2", 2.0),
            "t000.2": Outcome("t000.2", "completed", "all its epochs are done", 9.0),
        },
    )
    rows = result_rows(records, METRIC)
    assert [(row["trial"], row["parent"], row["state"]) for row in rows] == [
        ("t000.1", "t000", "running"),
        ("t000.2", "t000", "completed"),
        ("t001", None, "not_promoted"),
    ]
    assert [(row["stage_one_epochs"], row["stage_two_epochs"], row[METRIC]) for row in rows] == [
        (1, 1, 0.7),
        (1, 1, 0.8),
        (1, 0, 0.1),
    ]
    # What a trial took of its parent's stage one counts: 2 + 2 seconds of reports, and 9 as its outcome says.
    assert [row["seconds"] for row in rows] == [4.0, 9.0, 2.0]


def test_a_row_holds_every_validation_score_of_the_epoch_it_is_judged_by() -> None:
    completed, _, running, pending, _ = result_rows(five_states(), METRIC)
    assert (completed["best_stage"], completed["best_epoch"]) == ("stage_two", 1)
    assert {key: value for key, value in completed.items() if key.startswith("validation/")} == {
        METRIC: 0.5,
        "validation/recall_few": 0.25,
    }
    assert "train/loss" not in completed
    assert (running["best_stage"], running["best_epoch"], running[METRIC]) == ("stage_one", 1, 0.3)
    assert (pending["best_stage"], pending["best_epoch"]) == (None, None)
    assert METRIC not in pending


def test_completed_trials_stand_first_and_those_without_a_score_last() -> None:
    rows = result_rows(five_states(), METRIC)
    assert [row["trial"] for row in ranking(rows, METRIC)] == ["t000", "t001", "t002", "t003", "t004"]
    assert [row["trial"] for row in ranking(rows[::-1], METRIC)] == ["t000", "t001", "t002", "t004", "t003"]


def test_a_tie_goes_to_the_lower_trial_number() -> None:
    names = ["t000", "t001", "t002", "t003"]
    records = Records(
        [trial(name) for name in names],
        [epoch(name, "stage_two", 1, score) for name, score in zip(names, [0.1, 0.7, 0.7, 0.7], strict=True)],
        {name: Outcome(name, "completed", "", 1.0) for name in names},
    )
    rows = result_rows(records, METRIC)
    assert [row["trial"] for row in ranking(rows, METRIC)] == ["t001", "t002", "t003", "t000"]
    chosen = select_best(rows, METRIC)
    assert chosen is not None
    assert chosen["trial"] == "t001"


def test_a_pruned_trial_is_never_chosen_whatever_its_score() -> None:
    rows = result_rows(five_states(), METRIC)
    chosen = select_best(rows, METRIC)
    assert chosen is not None
    assert chosen["trial"] == "t000"
    assert select_best([row for row in rows if row["state"] != "completed"], METRIC) is None
    assert select_best([], METRIC) is None


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(str(tmp_path / "small"))
    run.create()
    return run


def test_results_and_history_are_written_as_parquet(run: RunDirectory) -> None:
    records = five_states()
    rows = write_tables(run, records, METRIC)
    assert rows == result_rows(records, METRIC)
    results = pq.read_table(f"{run.path}/trials.parquet")
    assert {field.name: str(field.type) for field in results.schema} == {
        "trial": "string",
        "parent": "string",
        "state": "string",
        "reason": "string",
        "stage_one_epochs": "int64",
        "stage_two_epochs": "int64",
        "seconds": "double",
        "best_stage": "string",
        "best_epoch": "int64",
        METRIC: "double",
        "validation/recall_few": "double",
        "stage_one.learning_rate": "double",
    }
    assert results[METRIC].to_pylist() == [0.5, 0.9, 0.3, None, None]
    assert results["validation/recall_few"].to_pylist() == [0.25, None, None, None, None]
    history = pq.read_table(f"{run.path}/history.parquet")
    assert history.column_names == [
        "trial", "stage", "epoch", "train/loss", METRIC, "seconds", "stage_one_epoch", "validation/recall_few",
    ]  # fmt: skip
    empty = dict.fromkeys(history.column_names)
    assert history.to_pylist() == [empty | row for row in records.history]
    assert [str(history.schema.field(name).type) for name in ("epoch", "stage_one_epoch")] == ["int64", "int64"]


def test_epochs_within_an_epoch_are_fractions_in_every_table(run: RunDirectory) -> None:
    """t000 is judged by the first half of stage two, t001 was stopped at a third of stage one."""
    history = [epoch("t000", "stage_one", number, 0.5) for number in (1 / 3, 2 / 3, 1)]
    history += [epoch("t001", "stage_one", 1 / 3, 0.1)]
    history += [epoch("t000", "stage_two", number, score) for number, score in ((0.5, 0.7), (1, 0.6))]
    records = Records([trial("t000"), trial("t001")], history, {"t000": Outcome("t000", "completed", "", 1.0)})
    rows = write_tables(run, records, METRIC)
    assert [(row["stage_one_epochs"], row["stage_two_epochs"]) for row in rows] == [(1, 1), (1 / 3, 0)]
    assert (rows[0]["best_stage"], rows[0]["best_epoch"]) == ("stage_two", 0.5)
    results, written = (pq.read_table(f"{run.path}/{name}.parquet") for name in ("trials", "history"))
    kinds = {name: str(results.schema.field(name).type) for name in ("stage_one_epochs", "stage_two_epochs")}
    assert kinds == {"stage_one_epochs": "double", "stage_two_epochs": "int64"}
    assert [str(written.schema.field(name).type) for name in ("epoch", "stage_one_epoch")] == ["double", "double"]
    assert written["epoch"].to_pylist() == [1 / 3, 2 / 3, 1, 1 / 3, 0.5, 1]
    assert [line.split()[3] for line in format_ranking(rows, METRIC, []).splitlines()[2:]] == ["1+1", "0.333+0"]
    run.write_text(METRICS_FILE, json.dumps(METRICS | {"epoch": 7 / 3}))
    assert "t000, stage_two epoch 2.333\n" in describe_run(run, records, rows, METRIC)


@pytest.mark.parametrize(
    ("values", "kind", "column"),
    [
        ([3, 1], pa.int64(), [3, 1]),
        ([1e-5, 1], pa.float64(), [1e-5, 1.0]),
        (["head", "all"], pa.string(), ["head", "all"]),
        ([True, False], pa.bool_(), [True, False]),
        ([None, 0.5], pa.float64(), [None, 0.5]),
        # What has no type in common is JSON, every value of it:
        (["head", {"top_layers": 1}], pa.string(), ['"head"', '{"top_layers": 1}']),
        ([None, {"top_layers": 1}], pa.string(), [None, '{"top_layers": 1}']),
        (["native", 3], pa.string(), ['"native"', "3"]),
        ([True, 2], pa.string(), ["true", "2"]),
        ([["a", "b"], None], pa.string(), ['["a", "b"]', None]),
    ],
)
def test_swept_values_of_any_kind_make_a_column(
    run: RunDirectory, values: list[Any], kind: pa.DataType, column: list[Any]
) -> None:
    records = Records([trial(f"t{number:03d}", swept=value) for number, value in enumerate(values)], [])
    write_tables(run, records, METRIC)
    written = pq.read_table(f"{run.path}/trials.parquet")["swept"]
    assert written.type == kind
    assert written.to_pylist() == column


def test_tables_are_written_before_the_first_report_too(run: RunDirectory) -> None:
    write_tables(run, Records([trial("t000")], []), METRIC)
    assert pq.read_table(f"{run.path}/trials.parquet")["state"].to_pylist() == ["pending"]
    assert pq.read_table(f"{run.path}/history.parquet").num_rows == 0


def test_the_ranking_as_text() -> None:
    rows = result_rows(five_states(), METRIC)
    rows[0]["stage_one.trainable"] = {"top_layers": 1}
    assert format_ranking(rows, METRIC, ["stage_one.learning_rate", "stage_one.trainable"]).splitlines() == [
        "rank  trial  state      epochs  macro_f1  stage_one.learning_rate  stage_one.trainable  seconds",
        "----  -----  ---------  ------  --------  -----------------------  -------------------  -------",
        '   1  t000   completed     1+2    0.5000                   1.0000  {"top_layers": 1}         12',
        "   -  t001   pruned        1+0    0.9000                   0.1000                    -        3",
        "   -  t002   running       2+0    0.3000                   0.0100                    -        4",
        "   -  t003   pending       0+0         -                    0.001                    -        0",
        "   -  t004   failed        0+0         -                   0.0001                    -        1",
    ]


def test_a_long_ranking_is_shortened_and_says_so() -> None:
    rows = result_rows(five_states(), METRIC)
    lines = format_ranking(rows, METRIC, [], limit=2).splitlines()
    assert len(lines) == 5
    assert lines[-1] == "... and 3 more in trials.parquet"
    assert "more" not in format_ranking(rows, METRIC, [], limit=5)


METRICS = {
    "trial": "t000",
    "stage": "stage_two",
    "epoch": 1,
    "test/macro_f1": 0.75,
    "test/accuracy": 0.0,
    "test/mcc": -0.125,
    "test/recall_few": None,
    "test/f1/absorption": 0.5,
    "test/f1/other": None,
    "labels": ["absorption", "other"],
    "train_rows": {"absorption": 63, "other": 1504},
    "test_rows": {"absorption": 19, "other": 0},
}


def test_test_metrics_as_text() -> None:
    assert format_test_metrics(METRICS).splitlines() == [
        "score       test",
        "----------  -------",
        "macro_f1     0.7500",
        "accuracy     0.0000",
        "mcc         -0.1250",
        "recall_few        -",
        "",
        "class       train rows  test rows  F1",
        "----------  ----------  ---------  ------",
        "absorption          63         19  0.5000",
        "other             1504          0       -",
    ]


def test_a_model_is_set_against_baselines_and_a_better_one_is_named() -> None:
    fitted = {"strength": 1.0, "validation/macro_f1": 0.5, "test/macro_f1": 0.625, "seconds": 2.4}
    metrics = METRICS | {"validation": {METRIC: 0.6}, "baselines": {"tfidf": fitted, "svm_balanced": fitted}}
    (table,) = format_baselines(metrics, METRIC)
    assert table.splitlines() == [
        "baseline      validation  test    seconds",
        "------------  ----------  ------  -------",
        "this model        0.6000  0.7500        -",
        "tfidf             0.5000  0.6250        2",
        "svm_balanced      0.5000  0.6250        2",
    ]
    better = metrics | {"baselines": {"tfidf": fitted, "svm_balanced": fitted | {METRIC: 0.6}}}
    assert format_baselines(better, METRIC)[1].startswith(
        "svm_balanced, a linear classifier of 2 s, is at least as good"
    )


def test_each_failure_is_reported_with_its_reason() -> None:
    assert failures(result_rows(five_states(), METRIC)) == ["t004 failed: TrainingDiverged: the loss is nan"]


def test_a_run_without_a_model_says_so(run: RunDirectory) -> None:
    records = five_states()
    text = describe_run(run, records, result_rows(records, METRIC), METRIC)
    assert f"best by {METRIC}: t000; no model has been made of it" in text
    assert "t004 failed: TrainingDiverged" in text
    unfinished = [row | {"state": "running"} for row in result_rows(records, METRIC)]
    assert "no trial has been chosen, so there is no model" in describe_run(run, records, unfinished, METRIC)
    assert text.endswith(f"results  {run.path}/trials.parquet, {run.path}/history.parquet, {run.path}/report.html")


def test_synthetic_rows_are_named_where_their_scores_are_shown(run: RunDirectory) -> None:
    run.write_text(METRICS_FILE, json.dumps(METRICS))
    for train, said in (("demo://drug-labels", True), ("rows.csv", False)):
        records = Records([trial("t000", train=train)], [])
        text = describe_run(run, records, result_rows(records, METRIC), METRIC)
        assert ("its rows are synthetic" in text) == said
        assert "chosen by validation/macro_f1: t000, stage_two epoch 1" in text
        assert f"model    {run.path}/best" in text
        assert format_test_metrics(METRICS) in text


@pytest.fixture
def died(tmp_path: Path, run: RunDirectory) -> RunDirectory:
    """A run directory as a killed sweep leaves it: no tables, one trial cut short."""
    path = tmp_path / "small.yaml"
    path.write_text(
        "{name: small, num_trials: 2, data: {train: rows.csv}, stage_one: {learning_rate: {loguniform: [1e-5, 1e-2]}}}"
    )
    sweep = load_sweep(path)
    run.write_text(SWEEP_FILE, to_yaml(sweep))
    run.write_text(ENVIRONMENT_FILE, json.dumps(with_checksum({"settings_digest": settings_digest(sweep)})))
    drawn = sweep.trials()
    write_trials(run, [TrialRecord(c.name, dict(c.values), c.config.model_dump(mode="json")) for c in drawn])
    writer = RecordWriter(run)
    for name, score in (("t000", 0.25), ("t001", 0.5)):
        writer.report(epoch(name, "stage_one", 1, score))
    writer.end_trials([Outcome("t000", "pruned", "below", 4.0, num_reports=1)])
    return run


def test_report_tells_of_a_run_that_died_and_makes_its_tables(died: RunDirectory) -> None:
    lines = report(died.location).splitlines()
    assert [line.split()[:5] for line in lines[2:4]] == [
        ["-", "t001", "running", "1+0", "0.5000"],
        ["-", "t000", "pruned", "1+0", "0.2500"],
    ]
    assert pq.read_table(f"{died.path}/trials.parquet")["state"].to_pylist() == ["pruned", "running"]
    assert pq.read_table(f"{died.path}/history.parquet").num_rows == 2


def test_report_needs_no_ray_and_no_torch(died: RunDirectory) -> None:
    """Two thirds of a ``tailsweep report`` would else be spent on imports."""
    program = (
        "import sys; from tailsweep.orchestrator.cli.main import main; status = main(sys.argv[1:]); "
        "print(sorted({'ray', 'torch', 'transformers', 'wandb'} & set(sys.modules))); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "report", died.location], capture_output=True, text=True, check=True
    )
    *printed, loaded = done.stdout.splitlines()
    assert "\n".join(printed) == report(died.location)
    assert loaded == "[]"


@pytest.mark.parametrize("missing", [METRIC, "seconds", "epoch"])
def test_a_report_without_what_trials_are_judged_by_is_named(
    died: RunDirectory, missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    row = epoch("t001", "stage_one", 2, 0.5)
    del row[missing]
    RecordWriter(died, read_records(died).log_end).report(row)
    assert main(["report", died.location]) == 2
    said = capsys.readouterr().err
    assert f"have a report of t001 with {missing}: null, which must be a number" in said


@pytest.mark.parametrize("text", ["", "{", "[]", '{"trial": "t000"}'])
def test_damaged_test_metrics_are_named_with_what_makes_them_again(
    died: RunDirectory, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    died.write_text(METRICS_FILE, text)
    assert main(["report", died.location]) == 2
    assert f"{METRICS_FILE} is damaged" in capsys.readouterr().err


def test_a_run_on_a_disk_that_is_read_only_is_reported_at_once(
    died: RunDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = report(died.location)
    before = sorted((path, path.stat().st_mtime_ns) for path in Path(died.path).rglob("*"))

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(RunDirectory, "_write", refuse)
    began = time.monotonic()
    assert report(died.location) == expected
    assert time.monotonic() - began < 5
    assert "no tables were written: storage refused" in caplog.text
    assert sorted((path, path.stat().st_mtime_ns) for path in Path(died.path).rglob("*")) == before


def test_a_score_that_no_report_defines_is_a_column_of_numbers(died: RunDirectory) -> None:
    RecordWriter(died, read_records(died).log_end).report(
        epoch("t001", "stage_one", 2, 0.75) | {"validation/recall_few": None}
    )
    write_tables(died, read_records(died), METRIC)
    for table in ("trials", "history"):
        assert pq.read_table(f"{died.path}/{table}.parquet").schema.field("validation/recall_few").type == "double"


def test_a_label_cannot_steer_the_terminal() -> None:
    nasty = "a\x1b[2J\x07\u202e\nb"
    label = nasty.replace("\n", "")
    metrics = {"labels": [label], "train_rows": {label: 1}, "test_rows": {label: 1}, f"test/f1/{label}": 1.0}
    text = format_test_metrics(metrics)
    assert not any(ord(character) < 32 and character != "\n" for character in text)
    assert "a\\x1b[2J\\x07\\u202eb" in text
    assert printable(nasty) == "a\\x1b[2J\\x07\\u202e\nb"
    assert printable("Überschrift 药品 \N{SNOWMAN}") == "Überschrift 药品 \N{SNOWMAN}"


@pytest.mark.parametrize(("budget", "more"), [("epochs: 3", "epochs"), ("steps: 90, epochs: {grid: [2, 3]}", "steps")])
def test_a_choice_at_an_edge_and_a_rising_score_are_hinted_at(budget: str, more: str, tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path / "edge"))
    run.create()
    path = tmp_path / "edge.yaml"
    path.write_text(
        "{name: edge, method: vanilla, search: grid, asha: null, data: {train: rows.csv}, "
        f"stage_two: {{learning_rate: {{grid: [1.0e-4, 2.0e-4]}}, {budget}, batch_size: {{grid: [8]}}}}}}"
    )
    sweep = load_sweep(path)
    records = Records([TrialRecord(c.name, dict(c.values), c.config.model_dump(mode="json")) for c in sweep.trials()])
    for trial in records.trials:
        name, epochs = trial.name, trial.config["stage_two"]["epochs"]
        last = 0.45 if trial == records.trials[-1] else 0.4
        for number, score in enumerate((*(0.3, 0.4)[: epochs - 1], last), start=1):
            records.add_report(epoch(name, "stage_two", number, score))
        records.outcomes[name] = Outcome(name, "completed", "", 1.0)
    said = hints(sweep, records, result_rows(records, METRIC))
    assert said == [
        "stage_two.learning_rate 0.0002 is the largest that was tried: larger ones may do better",
        f"validation/macro_f1 was still rising in the last epoch of stage two: more {more} may do better",
    ]
    assert write_report(run, records, sweep).count("\nhint     ") == 2
    assert not hints(sweep, Records(records.trials), [])
