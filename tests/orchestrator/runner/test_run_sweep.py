"""Whole sweeps on a Ray in this process: pruning, failing, choosing, several workers."""

import contextlib
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file
from sklearn.metrics import f1_score
from support.sweep_without_ray import assert_same, without_ray
from support.wandb_files import read_runs
from tailsweep.orchestrator.cli.main import main
from tailsweep.trainables import report_keys

pytestmark = [pytest.mark.ray, pytest.mark.xdist_group("ray_sweeps")]

METRIC = "validation/macro_f1"


def test_every_trial_ends_as_it_must(finished: Path):
    rows = {row["trial"]: row for row in pq.read_table(finished / "trials.parquet").to_pylist()}
    assert {name: row["state"] for name, row in rows.items()} == {
        "t000": "completed",
        "t001": "pruned",
        "t002": "failed",
    }
    assert (rows["t000"]["stage_one_epochs"], rows["t000"]["stage_two_epochs"]) == (2, 2)
    assert (rows["t001"]["stage_one_epochs"], rows["t001"]["stage_two_epochs"]) == (2, 0)
    assert "rung 0 asked for" in rows["t001"]["reason"]
    assert "stage_one epoch 1" in rows["t002"]["reason"]
    assert "learning_rate 1e+30" in rows["t002"]["reason"]
    assert rows["t001"]["stage_one.learning_rate"] == 1e-7


def test_one_process_trains_them_all(finished: Path, workers_of_finished: set[int]):
    """One after another, though one is pruned and one fails."""
    assert len(workers_of_finished) == 1
    assert not (finished / "state/slots").exists()


def test_history_holds_each_epoch_once_and_stage_two_of_survivors_only(finished: Path):
    history = pq.read_table(finished / "history.parquet").to_pylist()
    assert [(row["trial"], row[report_keys.STAGE], row[report_keys.EPOCH]) for row in history] == [
        ("t000", "stage_one", 1),
        ("t000", "stage_one", 2),
        ("t000", "stage_two", 1),
        ("t000", "stage_two", 2),
        ("t001", "stage_one", 1),
        ("t001", "stage_one", 2),
    ]


def test_the_exported_model_scores_in_plain_transformers_what_its_metrics_say(finished: Path):
    import torch
    import transformers
    from tailsweep.trainables.config.trial import TrialConfig
    from tailsweep.trainables.data.splits import load_splits

    metrics = json.loads((finished / "best/metrics.json").read_text())
    trial_config = json.loads((finished / "state/trials.json").read_text())["trials"][0]["config"]
    test = load_splits(TrialConfig.model_validate(trial_config).data).test
    model = transformers.AutoModelForSequenceClassification.from_pretrained(finished / "best").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(finished / "best")
    with torch.no_grad():
        predicted = [
            int(model(**tokenizer(text, truncation=True, return_tensors="pt")).logits.argmax()) for text in test["text"]
        ]
    assert metrics["trial"] == "t000"
    assert list(metrics["baselines"]) == ["tfidf_balanced", "svm_balanced"]
    assert f1_score(test["label"], predicted, average="macro") == pytest.approx(metrics["test/macro_f1"], abs=1e-9)
    classify = transformers.pipeline("text-classification", str(finished / "best"))
    assert classify(test["text"][0])[0]["label"] in metrics["labels"]


def test_wandb_holds_what_was_reported(finished: Path):
    runs = read_runs(finished / "wandb")
    history = pq.read_table(finished / "history.parquet").to_pylist()
    also = (report_keys.EPOCH, report_keys.EXECUTION, report_keys.SECONDS)
    assert set(runs) == {"first-t000", "first-t001", "first-t002", "first-sweep"}
    for trial, state in {"t000": "completed", "t001": "pruned", "t002": "failed"}.items():
        run = runs[f"first-{trial}"]
        reports = [row for row in history if row["trial"] == trial]
        assert run.steps == list(range(len(reports)))
        assert run.summary["state"] == state
        for logged, reported in zip(run.history, reports, strict=True):
            stage = reported[report_keys.STAGE]
            values = {key: value for key, value in logged.items() if not key.startswith("_")}
            kept = {key: value for key, value in reported.items() if "/" in key or key in also}
            assert values == {f"{stage}/{key}": value for key, value in kept.items() if value is not None}
    assert runs["first-sweep"].summary["chosen"] == "t000"


def test_only_the_chosen_epochs_checkpoint_is_kept(finished: Path):
    checkpoints = finished / "state/checkpoints"
    row = pq.read_table(finished / "trials.parquet").to_pylist()[0]
    kept = [path.name for path in (checkpoints / "t000").iterdir() if path.is_dir()]
    assert kept == [f"{row['best_stage']}_epoch_{row['best_epoch']:03d}"]
    assert not (checkpoints / "t001").exists()


def test_report_says_it_again_and_an_existing_run_is_refused(
    finished: Path, small_sweep: Callable[..., Path], capsys: pytest.CaptureFixture[str]
):
    before = (finished / "trials.parquet").read_bytes()
    assert main(["report", str(finished)]) == 0
    shown = capsys.readouterr().out
    assert "t000" in shown
    assert "macro_f1" in shown
    assert (finished / "trials.parquet").read_bytes() == before
    assert main(["run", str(small_sweep()), "--storage", str(finished.parent), "--set", "name=first"]) == 2
    assert "tailsweep resume" in capsys.readouterr().err


def test_single_phase_mode_gives_what_the_trial_gives_without_ray(finished: Path):
    history = pq.read_table(finished / "history.parquet").to_pylist()
    assert_same([row for row in history if row["trial"] == "t000"], without_ray(finished, "t000")[0], 1e-6)


def test_a_two_phase_gives_what_the_trial_gives_without_ray(
    finished: Path, tiny_model: Callable[..., Path], small_sweep: Callable[..., Path]
):
    """Its stage one trains in another kind of process, on cached features, reports within its epochs and ends early, on
    which two processes and the promotion between them have to agree; stage two continues from there. An adaptive search
    draws the trials: a point that is given, and one of its own."""
    sweep = small_sweep(
        model={"name": str(tiny_model("bert", 0.1))},
        search="optuna",
        num_trials=2,
        initial_points=[{"stage_one": {"learning_rate": 1e-3}}],
        promote=1,
        asha=None,
        stage_one={
            "trainable": {"top_layers": 1},
            "learning_rate": {"loguniform": [1e-5, 1e-2]},
            "epochs": 6,
            "evaluations_per_epoch": 2,
            "patience": 1,
            "batch_size": 8,
        },
        stage_two={"learning_rate": 1e-3, "epochs": 1, "batch_size": 8},
    )
    assert main(["run", str(sweep), "--storage", str(finished.parent), "--set", "name=two_phase"]) == 0
    rows = pq.read_table(finished.parent / "two_phase/trials.parquet").to_pylist()
    assert sorted(row["state"] for row in rows) == ["completed", "not_promoted"]
    assert rows[0]["stage_one.learning_rate"] == 1e-3
    assert rows[1]["stage_one.learning_rate"] != 1e-3
    (chosen,) = [row["trial"] for row in rows if row["state"] == "completed"]
    history = pq.read_table(finished.parent / "two_phase/history.parquet").to_pylist()
    history = [row for row in history if row["trial"] == chosen]
    *stage_one, stage_two = history
    assert [row[report_keys.EPOCH] for row in stage_one] == [(number + 1) / 2 for number in range(len(stage_one))]
    assert 2 <= len(stage_one) < 12
    scores = [row[METRIC] for row in stage_one]
    assert scores[-1] <= max(scores[:-1])
    assert all(later > earlier for earlier, later in pairwise(scores[:-1]))
    assert (stage_two[report_keys.STAGE], stage_two[report_keys.EPOCH]) == ("stage_two", 1)
    assert history[0][report_keys.EXECUTION] == "cached tokens entering layer 3, packed"
    reports, parameters = without_ray(finished.parent / "two_phase", chosen)
    assert_same(history, reports, 1e-6)
    exported = load_file(finished.parent / "two_phase/best/model.safetensors")
    assert exported.keys() == parameters.keys()
    for parameter, value in parameters.items():
        assert (exported[parameter] - value).abs().max() <= 1e-6, parameter


def test_resources_no_node_can_give_are_refused_before_anything_is_written(
    finished: Path, small_sweep: Callable[..., Path], capsys: pytest.CaptureFixture[str]
):
    sweep = small_sweep(resources={"stage_two": {"workers": 5, "cpus_per_worker": 1}})
    assert main(["run", str(sweep), "--storage", str(finished.parent), "--set", "name=greedy"]) == 2
    assert "asks for 5 worker(s) of 1 CPU" in capsys.readouterr().err
    assert not (finished.parent / "greedy").exists()


def test_a_ray_started_here_listens_on_this_machine_alone(finished: Path):
    """Dashboard, GCS, raylet, agents, driver and workers: whoever reaches Ray's ports can run programs."""
    driver, listening = psutil.Process(), set()
    for process in [driver, *driver.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):  # an idle worker may end meanwhile, and listens no more
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    listening.add((process.name(), connection.laddr.ip.removeprefix("::ffff:")))
    names = " ".join(name for name, _ in listening)
    assert all(part in names for part in ("gcs_server", "raylet", "DashboardAgent", "RuntimeEnvAgent")), names
    assert {address for _, address in listening} == {"127.0.0.1"}, listening


@pytest.mark.slow
def test_a_method_without_a_stage_one_is_pruned_halfway_through_its_only_stage(
    local_ray: None, small_sweep: Callable[..., Path], tmp_path: Path
):
    """The first trial is the good one, and has more epochs: it is asked halfway through its own."""
    asha = {"grace_fraction": 0.5, "reduction_factor": 2}
    sweep = small_sweep(
        method="vanilla",
        search="random",
        num_trials=2,
        asha=None,
        initial_points=[
            {"stage_two": {"learning_rate": 3e-3, "epochs": 4}},
            {"stage_two": {"learning_rate": 1e-7, "epochs": 2}},
        ],
        stage_one={"epochs": 0},
        stage_two={"learning_rate": {"choice": [3e-3, 1e-7]}, "epochs": {"choice": [4, 2]}, "batch_size": 4},
        stage_two_search={"asha": asha},
    )
    assert main(["run", str(sweep), "--storage", str(tmp_path), "--set", "name=halfway"]) == 0
    rows = pq.read_table(tmp_path / "halfway/trials.parquet").to_pylist()
    ends = {row["trial"]: (row["state"], row["stage_two_epochs"]) for row in rows}
    assert ends == {"t000": ("completed", 4), "t001": ("pruned", 1)}
    assert "after epoch 1 of stage two is below" in rows[1]["reason"]
    assert rows[0]["best_epoch"] == 4, "of a preset's stage two the last epoch is the model"
