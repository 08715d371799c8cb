"""The chosen trial -> a Hugging Face model directory with a card and its test metrics.

In a sweep the only reader of test rows. What its ``finish`` asks for is done here, before the test rows are scored."""

import json
import tempfile
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
import transformers
from torch import nn

from orchestrator.run_directory import BEST_FOLDER, CHECKPOINTS_FOLDER, DATA_FOLDER, METRICS_FILE, RunDirectory
from trainables import keys
from trainables.calibration import BINS, expected_calibration_error
from trainables.checkpoint import checkpoint_name, load_parameters
from trainables.config import TrialConfig
from trainables.finish import BEFORE_FILE, FINISH_FILE, Finished, finish_classifier
from trainables.finish_config import FinishConfig
from trainables.metrics import Confusion
from trainables.model import build_classifier, resolve, save_classifier
from trainables.roads import live_road, split_logits
from trainables.runtime import SingleProcess
from trainables.tokenised import PreparedData, default_cache_dir, fetch_prepared


class Chosen(TypedDict):
    """A candidate that is to be a model; plain values, since it travels."""

    location: str  # the run directory
    candidate: str
    trial: dict[str, Any]  # TrialConfig, dumped
    best: dict[str, Any]  # the report it is judged by; its checkpoint is the model
    data_key: str  # of its tokenised rows
    finish: dict[str, Any]  # the sweep's FinishConfig, dumped
    metric: str  # the sweep's


def export_best(chosen: Chosen) -> list[str]:
    """Write ``best/`` of a run directory: model, tokenizer, ``metrics.json`` and a card.

    Runs as a Ray task with a worker's resources, so that the driver needs no accelerator.

    Returns:
        What was done to the model after training, a line for each step.
    """
    run, trial = RunDirectory(chosen["location"]), TrialConfig.model_validate(chosen["trial"])
    data = rows_of_run(run, chosen["data_key"])
    model, finished, device = _finished(run, chosen, trial, data)
    best = chosen["best"]
    with tempfile.TemporaryDirectory(prefix="tailsweep-") as temporary:
        logits = split_logits(live_road(model, data, device, "fp32"), keys.TEST)
        confusion = Confusion(len(data.label_names))
        confusion.update(logits, torch.from_numpy(data.test.labels.copy()))
        error = expected_calibration_error(logits.double().numpy(), data.test.labels)
        metrics: dict[str, Any] = {
            **confusion.scores(data.class_counts, data.label_names, keys.TEST),
            keys.on_split(keys.TEST, keys.ECE): error,
            "candidate": chosen["candidate"],
            "stage": best[keys.STAGE],
            "epoch": best[keys.EPOCH],
            "labels": list(data.label_names),
            "train_rows": _rows_per_class(data.train.labels, data.label_names),
            "test_rows": _rows_per_class(data.test.labels, data.label_names),
            "validation": {key: value for key, value in best.items() if key.startswith(f"{keys.VALIDATION}/")},
        }
        if finished is not None:
            metrics["finish"] = finished.dump()
        folder = Path(temporary) / BEST_FOLDER
        folder.mkdir()
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            resolve(trial.model.name), trust_remote_code=trial.model.trust_remote_code
        )
        tokenizer.model_max_length = trial.data.max_length  # what it was trained with is what `truncation=True` means
        save_classifier(model.cpu(), tokenizer, folder, trial.model.head, data.label_names)
        if finished is not None:
            finished.write(folder)
        (folder / "README.md").write_text(_card(run.name, trial, metrics, data.notes, finished), encoding="utf-8")
        run.upload(folder, BEST_FOLDER)
    # Last: with it, the folder is whole. On an object store a killed process may leave a part of the others.
    run.write_text(METRICS_FILE, json.dumps(metrics, indent=2) + "\n")
    return [] if finished is None else [str(step) for step in finished.steps]


def predict_test(chosen: Chosen) -> np.ndarray:
    """The class (n,) that a candidate, made a model as :func:`export_best` makes it, predicts for each test row."""
    run, trial = RunDirectory(chosen["location"]), TrialConfig.model_validate(chosen["trial"])
    data = rows_of_run(run, chosen["data_key"])
    model, _, device = _finished(run, chosen, trial, data)
    return split_logits(live_road(model, data, device, "fp32"), keys.TEST).argmax(dim=1).numpy()


def rows_of_run(run: RunDirectory, data_key: str) -> PreparedData:
    """The run's own copy of its tokenised rows, by way of this node's cache."""
    return fetch_prepared(data_key, run.uri(f"{DATA_FOLDER}/{data_key}"), default_cache_dir())


def _finished(
    run: RunDirectory, chosen: Chosen, trial: TrialConfig, data: PreparedData
) -> tuple[nn.Module, Finished | None, torch.device]:
    """The candidate's best checkpoint with all that is done after training, on this process's device."""
    model = build_classifier(trial.model, data.label_names, trial.seed)
    best = chosen["best"]
    name = f"{CHECKPOINTS_FOLDER}/{chosen['candidate']}/{checkpoint_name(best[keys.STAGE], best[keys.EPOCH])}"
    with tempfile.TemporaryDirectory(prefix="tailsweep-") as temporary:
        checkpoint = Path(temporary) / "checkpoint"
        run.download(name, checkpoint)
        load_parameters(checkpoint, model)
    runtime = SingleProcess()
    model = runtime.place(model)
    finish = FinishConfig.model_validate(chosen["finish"])
    if finish == FinishConfig():
        return model, None, runtime.device
    finished = finish_classifier(model, data, finish, chosen["metric"], trial.seed, runtime.device)
    return model, finished, runtime.device


def _rows_per_class(labels: np.ndarray, label_names: tuple[str, ...]) -> dict[str, int]:
    counts = np.bincount(labels, minlength=len(label_names))
    return {name: int(count) for name, count in zip(label_names, counts, strict=True)}


def _card(
    sweep: str, trial: TrialConfig, metrics: dict[str, Any], notes: tuple[str, ...], finished: Finished | None
) -> str:
    """The model card: what it is, how to load it, what it scored, what it was trained on."""
    native = trial.model.head == "native"
    loading = (
        'from transformers import pipeline\n\nclassify = pipeline("text-classification", "path/to/this/folder")'
        if native
        else 'from trainables.model import load_classifier\n\nmodel, tokenizer = load_classifier("path/to/this/folder")'
    )
    scores = "\n".join(
        f"| {name} | {'-' if metrics[key] is None else format(metrics[key], '.4f')} | {meaning} |"
        for name, meaning in keys.SCORES.items()
        for key in [keys.on_split(keys.TEST, name)]
    )
    classes = "\n".join(
        f"| {label} | {metrics['train_rows'][label]} | {metrics['test_rows'][label]} | "
        f"{'-' if (f1 := metrics[keys.class_f1(keys.TEST, label)]) is None else format(f1, '.4f')} |"
        for label in metrics["labels"]
    )
    remarks = "".join(f"\n- {note}" for note in notes)
    return f"""---
base_model: {trial.model.name}
pipeline_tag: text-classification
library_name: {"transformers" if native else "tailsweep"}
---
# {sweep}: {metrics["candidate"]}

A text classifier with {len(metrics["labels"])} classes, fine-tuned from `{trial.model.name}` in two stages by
tailsweep. Chosen by validation rows among the candidates of the sweep `{sweep}`; the test rows were scored once, with
this model only.

```python
{loading}
```

| score | test | meaning |
|---|---|---|
{scores}

| class | training rows | test rows | test F1 |
|---|---|---|---|
{classes}

Mean negative log-likelihood on test rows: {metrics[keys.on_split(keys.TEST, keys.LOSS)]:.4f}; expected calibration
error ({BINS} bins): {metrics[keys.on_split(keys.TEST, keys.ECE)]:.4f}.
{"" if finished is None else _finish_section(finished)}
Rows: `{trial.data.train}`, at most {trial.data.max_length} tokens each.{remarks}

```json
{json.dumps(trial.model_dump(include={"stage_one", "stage_two", "seed"}), indent=2)}
```
"""


def _finish_section(finished: Finished) -> str:
    """What was done after training, and what it changed on validation rows."""
    steps = "\n".join(
        f"| {step.kind} | {key} | {step.before[key]:.4f} | {step.after[key]:.4f} |"
        for step in finished.steps
        for key in step.before
    )
    return f"""
## After training

Done in this order, and fitted on the validation rows that had chosen the model: scores on these are too good
afterwards, those of the test rows are not. All of it lies in the weights and bias of `{finished.layer}`;
`{FINISH_FILE}` has the values, `{BEFORE_FILE}` the layer as it was trained.

| step | | before | after |
|---|---|---|---|
{steps}
"""
