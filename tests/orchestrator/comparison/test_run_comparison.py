"""A whole comparison on a Ray in this process, which is interrupted half-way and resumed."""

import json
import math
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.stats
import yaml
from rich.console import Console
from sklearn.metrics import f1_score
from support.event_files import events, rewrite_events
from support.wandb_files import read_runs
from tailsweep.orchestrator.cli.main import main
from tailsweep.orchestrator.comparison import run_comparison
from tailsweep.orchestrator.comparison.results import read_comparison
from tailsweep.orchestrator.runner import run_sweep
from tailsweep.orchestrator.runs.directory import RunDirectory

pytestmark = [pytest.mark.ray, pytest.mark.xdist_group("ray_phases")]

SEEDS = [3, 4]


@pytest.fixture(scope="module")
def compared(
    local_ray: None, tiny_model: Callable[..., Path], rows_csv: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The run directory: the process got a SIGTERM after the retraining, so between two runs of Tune.

    There is one method, since every Ray Train run takes seconds; the baselines have differences to it.
    """
    folder = tmp_path_factory.mktemp("comparison")
    stage = {"batch_size": 8, "learning_rate": 3e-3, "epochs": 1}
    tree = {
        "data": {"train": str(rows_csv), "max_length": 40, "validation": 0.2, "test": 0.3},
        "model": {"name": str(tiny_model("distilbert"))},
        "methods": {
            "vanilla": {"stage_two": {"learning_rate": {"choice": [3e-3, 1e-3]}}},
        },
        "stage_two": stage,
        "budget": {"seconds": 1},  # which the first trial takes, alone
        "max_concurrent": 1,
        "seeds": SEEDS,
        "resamples": 200,
        "baselines": ["tfidf", "embeddings_balanced"],
        "name": "mine",
    }
    path = folder / "methods.yaml"
    path.write_text(yaml.safe_dump(tree))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_comparison, "_predict", lambda *_: signal.raise_signal(signal.SIGTERM))
        assert main(["compare", str(path), "--storage", str(folder)]) == 1
    run = folder / "mine"
    assert not (run / "predictions").exists()  # it stopped there
    # As if killed a moment earlier: the search's seconds are spent, and what it never started is not written yet.
    rewrite_events(run / "methods/vanilla/search", lambda events: events[:-1])
    before = changed(run)
    assert main(["resume", str(run)]) == 0
    assert {name: changed(run)[name] for name in before} == before  # nothing was trained or predicted again
    return run


def changed(run: Path) -> dict[str, float]:
    """When each record was written: events and predictions."""
    predictions = {str(file.relative_to(run)): file.stat().st_mtime for file in run.glob("predictions/*/*.parquet")}
    written = [(sweep, event) for sweep in run.glob("methods/*/*") for event in events(sweep)]
    return predictions | {f"{sweep.relative_to(run)} {event['number']}": event["time"] for sweep, event in written}


def files_of(run: Path) -> dict[Path, bytes]:
    return {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def results(run: Path) -> dict:  # type: ignore[type-arg]
    return json.loads((run / "comparison.json").read_text())  # type: ignore[no-any-return]


def without_seconds(results: dict) -> dict:  # type: ignore[type-arg]
    """Those of a comparison, without how long its baselines took."""
    for fitted in results["baselines"].values():
        del fitted["seconds"]
    return results


def predicted(run: Path, method: str, name: str) -> tuple[list[str], list[str]]:
    table = pq.read_table(run / "predictions" / method / f"{name}.parquet").to_pydict()
    return table["label"], table["prediction"]


def test_the_search_has_its_budget_and_every_seed_what_it_chose(compared: Path) -> None:
    searched = pq.read_table(compared / "methods/vanilla/search/trials.parquet").to_pylist()
    assert [(row["state"], row["reason"].split(":")[0]) for row in searched] == [
        ("completed", "all its epochs are done"),
        ("pruned", "never started"),
    ]
    tried = json.loads((compared / "methods/vanilla/search/state/trials.json").read_text())["trials"]
    trained = json.loads((compared / "methods/vanilla/seeds/state/trials.json").read_text())["trials"]
    assert [entry["config"] for entry in trained] == [tried[0]["config"] | {"seed": seed} for seed in SEEDS]


def test_scores_are_those_of_the_predictions(compared: Path) -> None:
    compared_results = results(compared)
    tfidf, vanilla = compared_results["baselines"]["tfidf"], compared_results["methods"]["vanilla"]
    f1 = {
        name: f1_score(*predicted(compared, method, name), average="macro")
        for method, name in (("tfidf", "only"), *(("vanilla", f"seed{seed}") for seed in SEEDS))
    }
    by_seed = [f1[f"seed{seed}"] for seed in SEEDS]
    assert vanilla["test"]["test/macro_f1"]["mean"] == pytest.approx(np.mean(by_seed), abs=1e-12)
    assert vanilla["test"]["test/macro_f1"]["standard_error"] == pytest.approx(scipy.stats.sem(by_seed), abs=1e-12)
    assert tfidf["test"]["test/macro_f1"] == {"mean": pytest.approx(f1["only"], abs=1e-12), "standard_error": None}
    gap = tfidf["difference"]["test/macro_f1"]
    assert gap["value"] == pytest.approx(f1["only"] - np.mean(by_seed), abs=1e-12)
    assert gap["low"] <= gap["value"] <= gap["high"]
    half = scipy.stats.t.ppf(0.975, len(SEEDS) - 1) * scipy.stats.sem(by_seed)  # of the one method with seeds
    assert (gap["seeds_low"], gap["seeds_high"]) == pytest.approx((gap["value"] - half, gap["value"] + half), abs=1e-12)


def test_the_model_is_the_chosen_method_s_best_seed_and_predicts_what_was_scored(compared: Path) -> None:
    import transformers

    compared_results = results(compared)
    assert compared_results["chosen"] == "vanilla"
    folder = compared / "methods" / compared_results["chosen"] / "seeds"
    metrics = json.loads((folder / "best/metrics.json").read_text())
    rows = pq.read_table(folder / "trials.parquet").to_pylist()
    best = max(rows, key=lambda row: (row["validation/macro_f1"], -int(row["trial"][1:])))
    assert metrics["trial"] == best["trial"]
    labels, predictions = predicted(compared, compared_results["chosen"], f"seed{best['seed']}")
    assert f1_score(labels, predictions, average="macro") == pytest.approx(metrics["test/macro_f1"], abs=1e-12)
    transformers.AutoModelForSequenceClassification.from_pretrained(folder / "best")
    assert [path.parent.name for path in compared.glob("methods/*/*/best")] == ["seeds"]  # and no other exists


@pytest.mark.thorough
def test_each_seed_has_a_search_and_predicts_with_the_best_of_it(
    local_ray: None, tiny_model: Callable[..., Path], rows_csv: Path, tmp_path: Path
) -> None:
    tree = {
        "data": {"train": str(rows_csv), "max_length": 40, "validation": 0.2, "test": 0.3},
        "model": {"name": str(tiny_model("distilbert"))},
        "methods": {"vanilla": {"stage_two": {"learning_rate": {"loguniform": [1e-3, 1e-2]}}}},
        "stage_two": {"batch_size": 8, "epochs": 1},
        "budget": {"trials": 1},
        "seeds": SEEDS,
        "search_per_seed": True,
        "resamples": 200,
        "baselines": ["tfidf"],
        "name": "mine",
    }
    path = tmp_path / "methods.yaml"
    path.write_text(yaml.safe_dump(tree))
    assert main(["compare", str(path), "--storage", str(tmp_path)]) == 0
    run = tmp_path / "mine"
    trained = {
        seed: json.loads((run / f"methods/vanilla/search-seed{seed}/state/trials.json").read_text())["trials"]
        for seed in SEEDS
    }
    assert [trials[0]["config"]["seed"] for trials in trained.values()] == SEEDS
    vanilla = results(run)["methods"]["vanilla"]
    assert vanilla["settings"] == [trials[0]["values"] for trials in trained.values()]
    assert vanilla["settings"][0] != vanilla["settings"][1]
    assert vanilla["num_seeds"] == len(SEEDS)
    assert vanilla["trials"] == {"completed": len(SEEDS)}
    assert vanilla["stage_two_steps"] == len(SEEDS) * math.ceil(sum(results(run)["train_rows"].values()) / 8)
    f1 = [f1_score(*predicted(run, "vanilla", f"seed{seed}"), average="macro") for seed in SEEDS]
    assert vanilla["test"]["test/macro_f1"]["mean"] == pytest.approx(np.mean(f1), abs=1e-12)
    best = max(SEEDS, key=lambda seed: vanilla["validation_by_seed"][str(seed)])
    assert results(run)["model"] == f"methods/vanilla/search-seed{best}"
    assert (run / results(run)["model"] / "best/metrics.json").is_file()
    before = changed(run)
    assert main(["resume", str(run)]) == 0
    assert changed(run) == before


def test_a_search_that_is_interrupted_before_it_begins_is_not_finished(
    compared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = read_comparison(RunDirectory(str(shutil.copytree(compared, tmp_path / "mine"))))
    shutil.rmtree(tmp_path / "mine/methods")
    monkeypatch.setattr(run_sweep, "run_sweep", lambda *_, **__: 1)
    with pytest.raises(run_sweep.Interrupted, match="methods/vanilla/search is not finished"):
        run_sweep.finish_sweep(comparison.search("vanilla", None), None, Console())


def test_wandb_has_one_group_per_method(compared: Path) -> None:
    runs = [read_runs(compared / "methods/vanilla" / kind / "wandb") for kind in ("search", "seeds")]
    assert {run.group for group in runs for run in group.values()} == {"mine-vanilla"}
    assert not set(runs[0]) & set(runs[1])
    said = (compared / "log.jsonl").read_text()
    assert f"to upload: wandb sync {compared}/methods/vanilla/seeds/wandb" in said


def test_report_makes_the_same_again_from_the_files_alone(compared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (compared / "comparison.md").read_text()
    (compared / "comparison.md").unlink()
    assert main(["report", str(compared)]) == 0
    assert capsys.readouterr().out == text == (compared / "comparison.md").read_text()


MADE_AGAIN = ("comparison.json", "comparison.md", "trials.parquet", "history.parquet", "report.html")


@pytest.mark.slow
def test_report_names_each_file_that_is_missing_or_does_without_it(
    compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = (compared / "comparison.md").read_text()
    for file in sorted(files_of(compared)):
        run = shutil.copytree(compared, tmp_path / "mine", symlinks=True)
        (run / file).unlink()
        status = main(["report", str(run)])
        said = capsys.readouterr()
        if status == 0:
            assert said.out == expected, file
            assert file.parts[0] != "predictions", file
        else:
            assert status == 2, (file, said.err)
            assert file.name in said.err or "missing" in said.err, (file, said.err)
            assert file.name not in MADE_AGAIN, file
        assert "Traceback" not in said.err, file
        shutil.rmtree(run)


@pytest.mark.slow
def test_resume_names_each_own_file_that_is_missing_or_makes_the_same_again(
    compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = without_seconds(results(compared))
    for file in (file for file in sorted(files_of(compared)) if file.parts[0] != "methods"):
        run = shutil.copytree(compared, tmp_path / "mine", symlinks=True)
        (run / file).unlink()
        before = files_of(run)
        status = main(["resume", str(run)])
        said = capsys.readouterr()
        assert "Traceback" not in said.err, file
        if status == 0:
            assert without_seconds(results(run)) == expected, file
            assert (run / file).exists() or file.parts[0] == "state", file
        else:
            assert status == 2, (file, said.err)
            assert file.name in said.err or "missing" in said.err, (file, said.err)
            assert not set(before) - set(files_of(run)), file
        shutil.rmtree(run)


def test_predictions_that_were_altered_are_named(
    compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(compared, tmp_path / "mine", symlinks=True)
    file = run / "predictions/vanilla/seed3.parquet"
    shutil.copy(run / "predictions/vanilla/seed4.parquet", file)
    assert main(["report", str(run)]) == 2
    assert f"{file} is not as it was written: remove it, and" in capsys.readouterr().err


def test_a_comparison_whose_file_has_changed_is_refused(
    compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(compared, tmp_path / "mine", symlinks=True)
    settings = yaml.safe_load((run / "comparison.yaml").read_text())
    (run / "comparison.yaml").write_text(yaml.safe_dump(settings | {"seeds": [3]}))
    paths = [f"data.train={settings['data']['train']}", f"model.name={settings['model']['name']}"]
    again = [argument for path in paths for argument in ("--set", path)]  # the signature is of another file
    for command in (["report", str(run)], ["resume", str(run), *again]):
        assert main(command) == 2
        assert "comparison.yaml is not as it was when the comparison began" in capsys.readouterr().err
