"""The model card of the exported model."""

import json
from typing import Any

import numpy as np
from huggingface_hub import EvalResult, ModelCardData
from tailsweep.orchestrator.config.errors import printable
from tailsweep.trainables import report_keys
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.postprocess.calibration import BINS
from tailsweep.trainables.postprocess.pipeline import BEFORE_FILE, POSTPROCESS_FILE, Postprocessed


def _rows_per_class(labels: np.ndarray, label_names: tuple[str, ...]) -> dict[str, int]:
    counts = np.bincount(labels, minlength=len(label_names))
    return {name: int(count) for name, count in zip(label_names, counts, strict=True)}


def _card(
    sweep: str,
    trial_config: TrialConfig,
    metrics: dict[str, Any],
    notes: tuple[str, ...],
    finished: Postprocessed | None,
    is_standard: bool,
) -> str:
    """Return the model card: what it is, how to load it, what it scored, what it was trained on."""
    trust = "" if is_standard else ", trust_remote_code=True"  # the code is pooled_classifier.py, in the folder
    loading = (
        f'from transformers import pipeline\n\nclassify = pipeline("text-classification", "path/to/this/folder"{trust})'
    )
    scores = "\n".join(
        f"| {name} | {'-' if metrics[key] is None else format(metrics[key], '.4f')} | {meaning} |"
        for name, meaning in report_keys.SCORES.items()
        for key in [report_keys.on_split(report_keys.TEST, name)]
    )
    classes = "\n".join(
        f"| {_escaped(label)} | {metrics['train_rows'][label]} | {metrics['test_rows'][label]} | "
        f"{'-' if (f1 := metrics[report_keys.class_f1(report_keys.TEST, label)]) is None else format(f1, '.4f')} |"
        for label in metrics["labels"]
    )
    loss = metrics[report_keys.on_split(report_keys.TEST, report_keys.LOSS)]
    error = metrics[report_keys.on_split(report_keys.TEST, report_keys.ECE)]
    remarks = "".join(f"\n- {note}" for note in notes)
    return f"""---
{_metadata(sweep, trial_config, metrics)}
---
# {sweep}: {metrics["trial"]}

A text classifier with {len(metrics["labels"])} classes, fine-tuned from `{trial_config.model.name}` in two stages by
tailsweep. Chosen by validation rows among the trials of the sweep `{sweep}`; the test rows were scored once, with
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

Mean negative log-likelihood on test rows: {loss:.4f}; expected calibration
error ({BINS} bins): {error:.4f}.
{"" if finished is None else _postprocess_section(finished)}
Rows: `{trial_config.data.train}`, at most {trial_config.data.max_length} tokens each.{remarks}

```json
{json.dumps(trial_config.model_dump(include={"stage_one", "stage_two", "seed"}), indent=2)}
```
"""


def _metadata(sweep: str, trial_config: TrialConfig, metrics: dict[str, Any]) -> str:
    """Return what the hub reads of a card, in YAML: the test scores as a model index among them."""
    data = trial_config.data
    results = [
        EvalResult(
            task_type="text-classification",
            dataset_type="text",
            dataset_name=data.test if isinstance(data.test, str) else data.train,
            dataset_split="test",
            metric_type=name,
            metric_value=round(float(metrics[key]), 6),
        )
        for name in report_keys.SCORES
        for key in [report_keys.on_split(report_keys.TEST, name)]
        if metrics[key] is not None
    ]
    card = ModelCardData(
        base_model=trial_config.model.name,
        pipeline_tag="text-classification",
        library_name="transformers",
        tags=["text-classification", "class-imbalance", "tailsweep"],
        model_name=f"{sweep}/{metrics['trial']}",
        eval_results=results,
        ignore_metadata_errors=True,
    )
    return str(card.to_yaml())


def _escaped(label: str) -> str:
    """Return a label as the cell of a Markdown table shows it."""
    for character in "\\`*_{}[]<>|":
        label = label.replace(character, f"\\{character}")
    return " ".join(printable(label).split())


def _postprocess_section(finished: Postprocessed) -> str:
    """Return what was done after training, and what it changed on validation rows."""
    steps = "\n".join(
        f"| {step.kind} | {key} | {step.before[key]:.4f} | {step.after[key]:.4f} |"
        for step in finished.steps
        for key in step.before
    )
    return f"""
## After training

Done in this order, and fitted on the validation rows that had chosen the model: scores on these are too good
afterwards, those of the test rows are not. All of it lies in the weights and bias of `{finished.layer}`;
`{POSTPROCESS_FILE}` has the values, `{BEFORE_FILE}` the layer as it was trained.

| step | | before | after |
|---|---|---|---|
{steps}
"""
