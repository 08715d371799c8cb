"""What a sweep ends with, on a Ray in this process: several methods, and a choice among all that they trained."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import concatenate_datasets
from sklearn.metrics import f1_score
from tailsweep.orchestrator.cli.main import main
from tailsweep.orchestrator.config.yaml_io import parse_yaml
from tailsweep.orchestrator.runs.directory import RunDirectory
from tailsweep.orchestrator.runs.records import read_records
from tailsweep.orchestrator.runs.report import report
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.data.splits import load_splits
from tailsweep.trainables.text_classifiers import open_text_classifier

pytestmark = [pytest.mark.ray, pytest.mark.xdist_group("ray_sweeps")]

METRIC = "validation/macro_f1"
RATES = {"choice": [3e-3, 1e-3, 1e-7]}


@pytest.fixture(scope="module")
def several(local_ray: None, small_sweep: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a sweep of two methods: three trials in stage one of the first, three of the other."""
    storage = tmp_path_factory.mktemp("runs")
    stage = {"trainable": "all", "learning_rate": RATES, "epochs": 2, "batch_size": 4}
    sweep = small_sweep(
        method={"two_stage": {"stage_one": stage}, "vanilla": {"stage_one": {"epochs": 0}}},
        search="random",
        num_trials=6,
        asha=None,
        promote=1,
        stage_two_search={"settings": 2},
        stage_one={},
        stage_two={"learning_rate": RATES, "epochs": 2, "batch_size": 4},
        selection={},
    )
    assert main(["run", str(sweep), "--storage", str(storage), "--set", "name=several"]) == 0
    return storage / "several"


def metrics_of(run: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((run / "best/metrics.json").read_text())
    return read


def test_methods_take_turns_and_each_with_a_stage_one_promotes_its_own_best(several: Path) -> None:
    rows = {row["trial"]: row for row in pq.read_table(several / "trials.parquet").to_pylist()}
    methods = {name: row["method"] for name, row in rows.items() if row["parent"] is None}
    assert {name for name, method in methods.items() if method == "vanilla"} == {"t001", "t003", "t005"}
    assert all(rows[name]["state"] == "completed" for name in ("t001", "t003", "t005"))
    assert all(rows[name]["stage_one_epochs"] == 0 for name in ("t001", "t003", "t005"))
    promoted = [row for row in rows.values() if row["parent"] is not None]
    assert [(row["method"], row["state"]) for row in promoted] == [("two_stage", "completed")] * 2
    assert len({row["stage_two.learning_rate"] for row in promoted}) == 2
    not_promoted = [row["reason"] for row in rows.values() if row["state"] == "not_promoted"]
    assert len(not_promoted) == 2
    assert all("of 3 of two_stage by" in reason for reason in not_promoted)


def test_the_report_says_what_each_method_reached_and_what_was_compared(several: Path) -> None:
    text = report(str(several))
    lines = [line.split() for line in text.splitlines()]
    (vanilla,) = [line for line in lines if line[:1] == ["vanilla"]]
    rows = pq.read_table(several / "trials.parquet").to_pylist()
    best = max(row[METRIC] for row in rows if row["method"] == "vanilla")
    assert vanilla[2:5] == [f"{best:.4f}", "3", "3"]
    assert [line[:2] for line in lines if line[:1] in (["best"], ["ensemble"]) and "," not in line[1]]
    page = (several / "report.html").read_text()
    assert "<h2>Methods</h2>" in page
    assert "out of fold" in page


def test_every_kind_of_model_was_compared_on_the_same_rows(several: Path) -> None:
    metrics = metrics_of(several)
    assert [judged["kind"] for judged in metrics["selection"]] == ["baseline", "trial", "ensemble"]
    table = pq.read_table(several / "predictions/validation.parquet")
    names = table.column_names[1:]
    assert {"tfidf_balanced", "svm_balanced", "t001", "t003", "t005"} <= set(names)
    assert sum(name.endswith(" stage one") for name in names) == 1, "both promoted trials have the same stage one"
    labels = table["label"].to_pylist()
    history = pq.read_table(several / "history.parquet").to_pylist()
    for name in ("t001", "t003"):
        predicted = np.array(table[name].to_pylist()).argmax(axis=1)
        said = [metrics["labels"][index] for index in predicted]
        score = f1_score(labels, said, average="macro", labels=sorted(set(labels)), zero_division=0)
        assert score == pytest.approx([row for row in history if row["trial"] == name][-1][METRIC])
    probabilities = np.array([table[name].to_pylist() for name in names])
    assert np.allclose(probabilities.sum(axis=2), 1, atol=1e-5)


def test_best_predicts_what_its_metrics_say(several: Path, rows_csv: Path, tmp_path: Path) -> None:
    metrics, best = metrics_of(several), several / "best"
    members = metrics["members"]
    assert sum(member["weight"] for member in members) == pytest.approx(1)
    classifier = open_text_classifier(best)
    assert list(classifier.class_names) == metrics["labels"]
    output = tmp_path / "predicted.csv"
    assert main(["predict", str(best), str(rows_csv), "--output", str(output)]) == 0
    assert output.read_text().count("\n") == rows_csv.read_text().count("\n")
    assert {path.relative_to(best).as_posix() for path in best.rglob("*") if path.is_file()} == {
        *metrics["files"],
        "metrics.json",
    }


def test_the_same_model_is_chosen_again_and_no_other_file_is_left(
    several: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = metrics_of(several)
    shutil.rmtree(several / "best")
    assert main(["resume", str(several)]) == 0
    again = metrics_of(several)
    for metrics in (before, again):
        for scores in metrics["baselines"].values():
            del scores["seconds"]
        del metrics["files"]  # a pipeline's file holds the numbers that Python gives to objects
    assert before == again
    capsys.readouterr()
    written = (several / "best/metrics.json").stat().st_mtime_ns
    assert main(["resume", str(several)]) == 0
    assert (several / "best/metrics.json").stat().st_mtime_ns == written, "what is whole is not made again"


ALONE = ["max_members=1", "baselines=false", "stage_one=false", "decision=none"]


def refitted(several: Path, storage: Path, *selection: str) -> Path:
    """Return a copy of the finished sweep, resumed with another choice of its model."""
    run = storage / "several"
    shutil.copytree(several, run)
    changes = [argument for setting in selection for argument in ("--set", f"selection.{setting}")]
    assert main(["resume", str(run), *changes]) == 0
    return run


@pytest.mark.usefixtures("local_ray")
def test_a_refit_equals_a_trial_that_begins_with_all_of_the_examples(
    several: Path, small_sweep: Callable[..., Path], tmp_path: Path
) -> None:
    run = refitted(several, tmp_path / "refitted", "refit=true", *ALONE)
    metrics = metrics_of(run)
    (member,) = metrics["members"]
    trial = read_records(RunDirectory(str(several))).trial(member["name"])
    config = trial.config
    splits = load_splits(TrialConfig.model_validate(config).data)
    parts = {"both": [splits.train, splits.validation], "validation": [splits.validation], "test": [splits.test]}
    files = {}
    for name, part in parts.items():
        table = concatenate_datasets(part).to_pandas()
        table["label"] = [splits.label_names[label] for label in table["label"]]
        files[name] = tmp_path / f"{name}.parquet"
        table.to_parquet(files[name])
    assert metrics["refit"] == {"examples": len(splits.train) + len(splits.validation)}
    assert sum(metrics["train_rows"].values()) == metrics["refit"]["examples"]

    data = config["data"] | {
        "train": str(files["both"]),
        "validation": str(files["validation"]),
        "test": str(files["test"]),
        "audit": {"max_leaked_fraction": 1},
    }
    alone = small_sweep(
        method=trial.values["method"],
        num_trials=1,
        asha=None,
        promote="all",
        baselines=[],
        selection={name: parse_yaml(value) for name, _, value in (each.partition("=") for each in ALONE)},
        **{section: config[section] for section in ("model", "stage_one", "stage_two")},
        data={name: value for name, value in data.items() if name != "fold"},
    )
    assert main(["run", str(alone), "--storage", str(tmp_path), "--set", "name=alone"]) == 0
    texts = ["first text", "another", "three tablets"]
    (again, expected) = (open_text_classifier(path / "best").probabilities(texts) for path in (run, tmp_path / "alone"))
    assert np.allclose(again, expected, atol=1e-6)
    assert not np.allclose(again, open_text_classifier(several / "best").probabilities(texts), atol=1e-3)
    assert metrics["test/macro_f1"] == pytest.approx(metrics_of(tmp_path / "alone")["test/macro_f1"])

    assert (metrics["times_scored"], metrics_of(tmp_path / "alone")["times_scored"]) == (2, 1)
    cards = [(path / "best/README.md").read_text().replace("\n", " ") for path in (run, tmp_path / "alone")]
    assert "the test rows were scored with 2 models in turn" in cards[0]
    assert "the test rows were scored once, with this model only" in cards[1]


@pytest.mark.usefixtures("local_ray")
def test_every_member_is_trained_again_once(several: Path, tmp_path: Path) -> None:
    run = refitted(several, tmp_path, "refit=true", "baselines=false", "max_members=3")
    after = metrics_of(run)
    assert len(after["members"]) == 3, "this is a test of an ensemble"
    assert {member["name"] for member in after["members"]} <= {"t000.1", "t000.2", "t001", "t003", "t005"} | {
        row["trial"] for row in pq.read_table(several / "trials.parquet").to_pylist()
    }
    assert "trained again on" in report(str(run))
    trained = pq.read_table(run / "refit/history.parquet").to_pylist()
    shutil.rmtree(run / "best")
    assert main(["resume", str(run)]) == 0
    assert pq.read_table(run / "refit/history.parquet").to_pylist() == trained
    assert {key: value for key, value in metrics_of(run).items() if key.startswith("test/")} == {
        key: value for key, value in after.items() if key.startswith("test/")
    }


@pytest.mark.usefixtures("local_ray")
def test_folds_judge_the_best_half_by_every_labelled_example(several: Path, tmp_path: Path) -> None:
    run = refitted(several, tmp_path, "folds=2", "max_members=2")
    validation, folds = (pq.read_table(run / f"predictions/{name}.parquet") for name in ("validation", "folds"))
    metrics, labels = metrics_of(run), folds["label"].to_pylist()
    assert len(labels) == metrics["refit"]["examples"] > 2 * len(validation)
    finalists = folds.column_names[1:]
    assert len(finalists) == 2
    trained = pq.read_table(run / "folds/trials.parquet").to_pylist() if (run / "folds").exists() else []
    baselines = {"tfidf_balanced", "svm_balanced"} & set(finalists)
    assert len(trained) == 2 * (2 - len(baselines))
    (judged,) = [kind for kind in metrics["selection"] if kind["chosen"]]
    assert set(judged["weights"]) <= set(finalists)
    probabilities = sum(weight * np.array(folds[name].to_pylist()) for name, weight in judged["weights"].items())
    shares = np.array([metrics["train_rows"][label] for label in metrics["labels"]]) / metrics["refit"]["examples"]
    predicted = (np.log(probabilities) - judged["tau"] * np.log(shares)).argmax(axis=1)
    said = [metrics["labels"][index] for index in predicted]
    assert metrics["validation"][METRIC] == pytest.approx(f1_score(labels, said, average="macro"))
    for name in finalists:
        seen = validation[name].to_pylist()
        assert seen != folds[name].to_pylist()[-len(seen) :], "it was trained again"
