"""A comparison whose test examples are the folds of one file in turn, on a Ray in this process."""

import csv
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest
import yaml
from sklearn.metrics import f1_score
from tailsweep.orchestrator.cli.main import main

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.xdist_group("ray_phases")]

METHODS = ("lp_ft", "two_stage")


def _features() -> set[str]:
    return {path.parent.name for path in Path(os.environ["TAILSWEEP_CACHE"]).glob("features/*/meta.json")}


class Crossed(NamedTuple):
    run: Path
    features: set[str]  # the keys of those that it has made


@pytest.fixture(scope="module")
def crossed(
    local_ray: None,
    tiny_model: Callable[..., Path],
    rows_csv: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Crossed:
    """Both methods train only the head in stage one, so that its features are cached."""
    folder = tmp_path_factory.mktemp("cross-validation")
    tree = {
        "data": {"train": str(rows_csv), "max_length": 40, "validation": 0.2},
        "model": {"name": str(tiny_model("distilbert", 0.0))},
        "methods": list(METHODS),
        "stage_one": {"trainable": "head", "batch_size": 8, "learning_rate": 3e-3, "epochs": 1},
        "stage_two": {"batch_size": 8, "learning_rate": 3e-3, "epochs": 1},
        "budget": {"trials": 1},
        "max_concurrent": 1,
        "folds": 2,
        "seeds": [7],
        "resamples": 200,
        "baselines": ["tfidf"],
        "name": "crossed",
    }
    path = folder / "methods.yaml"
    path.write_text(yaml.safe_dump(tree))
    before = _features()
    assert main(["compare", str(path), "--storage", str(folder)]) == 0
    return Crossed(folder / "crossed", _features() - before)


def _predicted(run: Path, name: str) -> tuple[list[str], list[str]]:
    """Labels and predictions of both folds."""
    labels, predictions = [], []
    for fold in range(2):
        (file,) = run.glob(f"predictions/{name}-fold{fold}/*.parquet")
        table = pq.read_table(file).to_pydict()
        labels += table["label"]
        predictions += table["prediction"]
    return labels, predictions


@pytest.mark.parametrize("name", [*METHODS, "tfidf"])
def test_every_row_is_predicted_once_and_scored_with_all_others(crossed: Crossed, rows_csv: Path, name: str) -> None:
    labels, predictions = _predicted(crossed.run, name)
    with rows_csv.open(newline="") as rows:
        assert Counter(labels) == Counter(row["label"] for row in csv.DictReader(rows))
    reported = json.loads((crossed.run / "comparison.json").read_text())
    scored = (reported["methods"] | reported["baselines"])[name]["test"]["test/macro_f1"]["mean"]
    assert scored == pytest.approx(f1_score(labels, predictions, average="macro"), abs=1e-12)


def test_methods_share_the_features_of_a_fold(crossed: Crossed) -> None:
    folders = [crossed.run / f"methods/{name}" for name in METHODS]
    searches = [folder / f"search-fold{fold}/trials.parquet" for folder in folders for fold in range(2)]
    assert [pq.read_table(search)["state"].to_pylist() for search in searches] == [["completed"]] * 4
    assert len(crossed.features) == 2


def test_the_report_says_the_folds_and_no_model_is_made(crossed: Crossed) -> None:
    report = (crossed.run / "comparison.md").read_text()
    assert "2 folds, each searched by itself" in report
    assert "Training examples of the first fold: " in report
    assert not list(crossed.run.glob("methods/*/*/best"))
