"""The chosen trial -> a Hugging Face model directory with a card and its test metrics.

In a sweep the only reader of test rows. What its ``finish`` asks for is done here, before the test rows are scored.
"""

import json
import tempfile
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
import transformers
from tailsweep.orchestrator.runner.model_card import _card, _rows_per_class
from tailsweep.orchestrator.runs.directory import (
    BEST_FOLDER,
    CHECKPOINTS_FOLDER,
    METRICS_FILE,
    RunDirectory,
)
from tailsweep.trainables import report_keys
from tailsweep.trainables.config.data import DataSource
from tailsweep.trainables.config.postprocess import PostprocessConfig
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.data.tokenized import PreparedData, fetch_prepared
from tailsweep.trainables.execution.backends import live_execution, split_logits
from tailsweep.trainables.models.classifier import CODE, build_classifier, save_classifier
from tailsweep.trainables.models.hub import resolve
from tailsweep.trainables.models.onnx_export import ONNX_FILE, OnnxError, write_onnx
from tailsweep.trainables.postprocess.calibration import expected_calibration_error
from tailsweep.trainables.postprocess.pipeline import Postprocessed, postprocess_classifier
from tailsweep.trainables.report_keys import Stage
from tailsweep.trainables.storage.cache import default_cache_dir
from tailsweep.trainables.training.checkpoint import checkpoint_name, load_parameters
from tailsweep.trainables.training.metrics import Confusion
from tailsweep.trainables.training.runtime import SingleProcess
from torch import nn

ONNX_ROWS, ONNX_BATCHES = 100, 10  # test examples that the ONNX file is checked on


class BestTrial(TypedDict):
    """A trial that is to be a model; plain values, since it travels."""

    location: str  # the run directory
    trial: str
    config: dict[str, Any]  # TrialConfig, dumped
    best: dict[str, Any]  # the report it is judged by; its checkpoint is the model
    data: DataSource
    postprocess: dict[str, Any]  # the sweep's PostprocessConfig, dumped
    metric: str  # the sweep's
    onnx: bool  # whether model.onnx is written too
    baselines: dict[str, dict[str, float | None]]  # what it is set against, as `score_baselines` returns them


def export_best(chosen: BestTrial) -> list[str]:
    """Write ``best/`` of a run directory: model, tokenizer, ``metrics.json`` and a card.

    Runs as a Ray task with a worker's resources, so that the driver needs no accelerator.

    Returns:
        What was done to the model after training, and what was written next to it, a line for each.
    """
    run, trial_config = RunDirectory(chosen["location"]), TrialConfig.model_validate(chosen["config"])
    data = fetch_prepared(chosen["data"], default_cache_dir())
    model, finished, device = _finished(run, chosen, trial_config, data)
    best = chosen["best"]
    with tempfile.TemporaryDirectory(prefix="tailsweep-") as temporary:
        logits = split_logits(live_execution(model, data, device, "fp32"), report_keys.TEST)
        confusion = Confusion(len(data.label_names))
        confusion.update(logits, torch.from_numpy(data.test.labels.copy()))
        error = expected_calibration_error(logits.double().numpy(), data.test.labels)
        metrics: dict[str, Any] = {
            **confusion.scores(data.class_counts, data.label_names, report_keys.TEST),
            report_keys.on_split(report_keys.TEST, report_keys.ECE): error,
            "trial": chosen["trial"],
            "stage": best[report_keys.STAGE],
            "epoch": best[report_keys.EPOCH],
            "labels": list(data.label_names),
            "train_rows": _rows_per_class(data.train.labels, data.label_names),
            "test_rows": _rows_per_class(data.test.labels, data.label_names),
            "validation": {key: value for key, value in best.items() if key.startswith(f"{report_keys.VALIDATION}/")},
        }
        if chosen["baselines"]:
            metrics["baselines"] = chosen["baselines"]
        if finished is not None:
            metrics["postprocess"] = finished.dump()
        folder = Path(temporary) / BEST_FOLDER
        folder.mkdir()
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            resolve(trial_config.model.name), trust_remote_code=trial_config.model.trust_remote_code
        )
        tokenizer.model_max_length = (
            trial_config.data.max_length
        )  # what it was trained with is what `truncation=True` means
        if trial_config.data.text_pair:  # it was trained without token types, which the tokenizer gives a pair
            tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
        save_classifier(model.cpu(), tokenizer, folder, trial_config.model.head, data.label_names)
        if finished is not None:
            finished.write(folder)
        steps = [] if finished is None else [f"postprocess  {step}" for step in finished.steps]
        if chosen["onnx"]:
            metrics["onnx"], said = _write_onnx(model, folder, data)
            steps.append(f"onnx  {said}")
        (folder / "README.md").write_text(
            _card(run.name, trial_config, metrics, data.notes, finished, not (folder / CODE.name).exists()),
            encoding="utf-8",
        )
        metrics["files"] = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        run.upload(folder, BEST_FOLDER)
    # Last: with it, the folder is whole. On an object store a killed process may leave a part of the others.
    run.write_text(METRICS_FILE, json.dumps(metrics, indent=2) + "\n")
    return steps


def _write_onnx(model: nn.Module, folder: Path, data: PreparedData) -> tuple[dict[str, Any], str]:
    """Write ``model.onnx`` to the folder; return the check for ``metrics.json``, and in words."""
    numbers = np.argsort(data.test.lengths, kind="stable")  # every length there is
    numbers = numbers[np.unique(np.linspace(0, len(numbers) - 1, ONNX_ROWS).round().astype(np.int64))]
    # Rows of unequal lengths together, so that the mask is checked; the first batch is traced.
    count = min(ONNX_BATCHES, max(1, len(numbers) // 2))
    batches = [numbers[first::count] for first in range(count)]
    arrays = [data.test.padded(batch) for batch in batches]
    padded = [(torch.from_numpy(input_ids), torch.from_numpy(mask)) for input_ids, mask in arrays]
    try:
        difference = write_onnx(model.eval(), folder, padded)
    except OnnxError as error:
        return {"error": str(error)}, f"{error}; the model folder has all else"
    says = f"{ONNX_FILE} has the model's probabilities on {len(numbers)} test examples (to {difference:.0e})"
    return {"rows": len(numbers), "largest_difference": difference}, says


def predict_test(chosen: BestTrial) -> np.ndarray:
    """Return the class that a trial, exported as :func:`export_best` does, predicts for each test row, (n,)."""
    run, trial_config = RunDirectory(chosen["location"]), TrialConfig.model_validate(chosen["config"])
    data = fetch_prepared(chosen["data"], default_cache_dir())
    model, _, device = _finished(run, chosen, trial_config, data)
    return split_logits(live_execution(model, data, device, "fp32"), report_keys.TEST).argmax(dim=1).numpy()


def _finished(
    run: RunDirectory, chosen: BestTrial, trial_config: TrialConfig, data: PreparedData
) -> tuple[nn.Module, Postprocessed | None, torch.device]:
    """Return the trial's best checkpoint with all that is done after training, on this process's device."""
    model = build_classifier(trial_config.model, data.label_names, trial_config.seed)
    best = chosen["best"]
    name = checkpoint_name(Stage(best[report_keys.STAGE]), best[report_keys.EPOCH])
    folder = f"{CHECKPOINTS_FOLDER}/{chosen['trial']}/{name}"
    with tempfile.TemporaryDirectory(prefix="tailsweep-") as temporary:
        checkpoint = Path(temporary) / "checkpoint"
        run.download(folder, checkpoint)
        load_parameters(checkpoint, model)
    runtime = SingleProcess()
    model = runtime.place(model)
    postprocess = PostprocessConfig.model_validate(chosen["postprocess"])
    if postprocess == PostprocessConfig():
        return model, None, runtime.device
    finished = postprocess_classifier(model, data, postprocess, chosen["metric"], trial_config.seed, runtime.device)
    return model, finished, runtime.device
