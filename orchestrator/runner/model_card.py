"""The model card of the exported model."""

import json
from typing import Any

import numpy as np
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
) -> str:
    """Return the model card: what it is, how to load it, what it scored, what it was trained on."""
    native = trial_config.model.head == "native"
    loading = (
        'from transformers import pipeline\n\nclassify = pipeline("text-classification", "path/to/this/folder")'
        if native
        else "from tailsweep.trainables.models.classifier import load_classifier\n\n"
        'model, tokenizer = load_classifier("path/to/this/folder")'
    )
    scores = "\n".join(
        f"| {name} | {'-' if metrics[key] is None else format(metrics[key], '.4f')} | {meaning} |"
        for name, meaning in report_keys.SCORES.items()
        for key in [report_keys.on_split(report_keys.TEST, name)]
    )
    classes = "\n".join(
        f"| {label} | {metrics['train_rows'][label]} | {metrics['test_rows'][label]} | "
        f"{'-' if (f1 := metrics[report_keys.class_f1(report_keys.TEST, label)]) is None else format(f1, '.4f')} |"
        for label in metrics["labels"]
    )
    loss = metrics[report_keys.on_split(report_keys.TEST, report_keys.LOSS)]
    error = metrics[report_keys.on_split(report_keys.TEST, report_keys.ECE)]
    remarks = "".join(f"\n- {note}" for note in notes)
    return f"""---
base_model: {trial_config.model.name}
pipeline_tag: text-classification
library_name: {"transformers" if native else "tailsweep"}
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
