"""The selected model -> a model folder with a card and its test metrics.

In a sweep the only reader of test rows. A trial's model is a standard folder of ``transformers``; what
``text_classifiers.py`` describes is written for a linear classifier and for an ensemble.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from tailsweep.orchestrator.runner.model_card import model_card, rows_per_class
from tailsweep.orchestrator.runner.trained_models import (
    ModelRequest,
    OpenModel,
    TrialModel,
    class_shift,
    mean_logits,
    open_trial_model,
)
from tailsweep.orchestrator.runs.directory import BEST_FOLDER, METRICS_FILE, RunDirectory, RunDirectoryError
from tailsweep.orchestrator.runs.tables import read_test_metrics
from tailsweep.trainables import report_keys
from tailsweep.trainables.baselines import Baseline
from tailsweep.trainables.config.postprocess import PostHocLogitAdjustment
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.data.tokenized import PreparedData, fetch_prepared
from tailsweep.trainables.models.classifier import CODE, save_classifier
from tailsweep.trainables.models.hub import resolve
from tailsweep.trainables.models.onnx_export import ONNX_FILE, OnnxError, write_onnx
from tailsweep.trainables.postprocess.calibration import expected_calibration_error
from tailsweep.trainables.postprocess.pipeline import Postprocessed
from tailsweep.trainables.storage.cache import default_cache_dir
from tailsweep.trainables.text_classifiers import MEMBERS_FOLDER, save_baseline, write_ensemble
from tailsweep.trainables.training.metrics import Confusion
from torch import nn

ONNX_ROWS, ONNX_BATCHES = 100, 10  # test examples that the ONNX file is checked on


class ExportRequest(TypedDict):
    """A model that is to be written; plain values, since it travels."""

    run: str  # the run directory that it is written to
    model: ModelRequest
    name: str  # of the model, as the selection calls it
    best: TrialModel  # the best trial's, which the model may or may not be
    onnx: bool  # whether model.onnx is written too
    validation: dict[str, Any]  # its validation scores
    record: dict[str, Any]  # what else metrics.json says: the selection, the baselines


def export_model(request: ExportRequest) -> list[str]:
    """Write ``best/`` of a run directory: model, tokenizer, ``metrics.json`` and a card.

    Runs as a Ray task with a worker's resources, so that the driver needs no accelerator.

    Returns:
        What was done to the model after training, and what was written next to it, a line for each.
    """
    model = request["model"]
    run = RunDirectory(request["run"])
    data = fetch_prepared(model["data"], default_cache_dir())
    members, weights = model["members"], model["weights"]
    with tempfile.TemporaryDirectory(prefix="tailsweep-") as temporary:
        folder = Path(temporary) / BEST_FOLDER
        folder.mkdir()
        written: list[_Written] = []
        for number, member in enumerate(members, start=1):
            own_folder = folder if len(members) == 1 else folder / MEMBERS_FOLDER / str(number)
            own_folder.mkdir(parents=True, exist_ok=True)
            written.append(_write_member(request, member, data, own_folder))
        logits = mean_logits([part.logits for part in written], weights)
        if len(members) > 1:
            shift = class_shift(model["tau"], data)
            write_ensemble(folder, weights, data.label_names, shift)
            logits = logits if shift is None else logits + shift
        records = [part.record | {"weight": weight} for part, weight in zip(written, weights, strict=True)]
        metrics = _metrics(request, records, logits, data)
        metrics["times_scored"] = _times_scored(run, metrics)
        described = request["best"] if isinstance(members[0], Baseline) else members[0]
        card = model_card(
            run.name,
            TrialConfig.model_validate(described["config"]),
            metrics,
            data.notes,
            written[0].postprocessed if len(written) == 1 else None,
            not (folder / CODE.name).exists(),
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        metrics["files"] = {
            path.relative_to(folder).as_posix(): path.stat().st_size
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        if run.local is None:  # a file of an earlier model would stay among those of this one
            run.delete_folder(BEST_FOLDER)
        run.upload(folder, BEST_FOLDER)
    # Last: with it, the folder is whole. On an object store a killed process may leave a part of the others.
    run.write_text(METRICS_FILE, json.dumps(metrics, indent=2) + "\n")
    if len(written) == 1:
        return written[0].steps
    return [f"{part.record['name']}: {step}" for part in written for step in part.steps]


def _metrics(
    request: ExportRequest, members: list[dict[str, Any]], logits: NDArray[np.float64], data: PreparedData
) -> dict[str, Any]:
    """Return the content of ``metrics.json``, but for the files."""
    confusion = Confusion(len(data.label_names))
    confusion.update(torch.from_numpy(logits), torch.from_numpy(data.test.labels.copy()))
    is_trial = len(members) == 1 and members[0]["kind"] == "trial"
    (first, *_) = members
    best = request["best"]
    metrics = {
        **confusion.scores(data.class_counts, data.label_names, report_keys.TEST),
        report_keys.on_split(report_keys.TEST, report_keys.ECE): expected_calibration_error(logits, data.test.labels),
        "model": request["name"],
        # The trial whose model it is; where it is none's, or several's, the best of them all.
        "trial": first["name"] if is_trial else best["trial"],
        "stage": first["stage"] if is_trial else best["report"][report_keys.STAGE],
        "epoch": first["epoch"] if is_trial else best["report"][report_keys.EPOCH],
        "members": members,
        "labels": list(data.label_names),
        "train_rows": rows_per_class(data.train.labels, data.label_names),
        "test_rows": rows_per_class(data.test.labels, data.label_names),
        "validation": request["validation"],
        **request["record"],
    }
    if tau := request["model"]["tau"]:
        metrics["decision"] = {"kind": "logit_adjustment", "tau": tau}
    for key in ("postprocess", "onnx"):
        if is_trial and key in first:
            metrics[key] = first.pop(key)
    return metrics


def _times_scored(run: RunDirectory, metrics: dict[str, Any]) -> int:
    """Return with how many models of the run the test examples have been scored, this one included."""
    try:
        earlier = read_test_metrics(run) or {}
    except RunDirectoryError:  # what it said is lost
        earlier = {}
    times = earlier.get("times_scored")
    before = times if isinstance(times, int) else min(1, len(earlier))
    return before + any(earlier.get(key) != metrics.get(key) for key in ("members", "decision", "refit"))


@dataclass(frozen=True, eq=False)
class _Written:
    """A member whose folder has been written."""

    logits: NDArray[np.float64]  # (n, C), of the test examples
    record: dict[str, Any]  # what metrics.json says of it
    steps: list[str]  # what was done to it, in words
    postprocessed: Postprocessed | None = None


def _write_member(request: ExportRequest, member: TrialModel | Baseline, data: PreparedData, folder: Path) -> _Written:
    """Write the folder of a member; that of the only one with the decision that was fitted to it."""
    model = request["model"]
    tau = model["tau"] if len(model["members"]) == 1 else 0.0
    if isinstance(member, Baseline):
        shift = class_shift(tau, data)
        save_baseline(member, folder, data.label_names, shift)
        record = {"kind": "baseline", "name": member.name, "strength": member.strength}
        return _Written(member.test_logits if shift is None else member.test_logits + shift, record, [])
    if tau:
        decision = PostHocLogitAdjustment(kind="logit_adjustment", tau=tau).model_dump()
        model = model | {"postprocess": model["postprocess"] | {"decision": decision}}
    opened = open_trial_model(model, member, data)
    logits = opened.logits(data, report_keys.TEST).double().numpy()
    _save_classifier(opened, data, folder)
    report = member["report"]
    record = {
        "kind": "trial",
        "name": member["name"],
        "stage": report[report_keys.STAGE],
        "epoch": report[report_keys.EPOCH],
    }
    steps = []
    if opened.postprocessed is not None:
        opened.postprocessed.write(folder)
        record["postprocess"] = opened.postprocessed.dump()
        steps = [f"postprocess  {step}" for step in opened.postprocessed.steps]
    if request["onnx"]:
        record["onnx"], said = _write_onnx(opened.model, folder, data)
        steps.append(f"onnx  {said}")
    return _Written(logits, record, steps, opened.postprocessed)


def _save_classifier(opened: OpenModel, data: PreparedData, folder: Path) -> None:
    config = opened.config
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        resolve(config.model.name), trust_remote_code=config.model.trust_remote_code
    )
    # What it was trained with is what `truncation=True` means.
    tokenizer.model_max_length = config.data.max_length
    if config.data.text_pair:  # it was trained without token types, which the tokenizer gives a pair
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
    save_classifier(opened.model.cpu(), tokenizer, folder, config.model.head, data.label_names)


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
