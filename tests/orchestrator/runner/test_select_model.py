"""What a sweep ends with, on a Ray in this process: several methods, and a choice among all that they trained."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import f1_score
from tailsweep.orchestrator.cli.main import main
from tailsweep.orchestrator.runs.report import report
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
