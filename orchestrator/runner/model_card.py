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


def rows_per_class(labels: np.ndarray, label_names: tuple[str, ...]) -> dict[str, int]:
    """Return how many rows each class has."""
    counts = np.bincount(labels, minlength=len(label_names))
    return {name: int(count) for name, count in zip(label_names, counts, strict=True)}


def model_card(
    sweep: str,
    trial_config: TrialConfig,
    metrics: dict[str, Any],
    notes: tuple[str, ...],
    finished: Postprocessed | None,
    is_standard: bool,
) -> str:
    """Return the model card: what it is, how to load it, what it scored, what it was trained on.

    Args:
        sweep: The name of the run.
        trial_config: The trial whose model it is, or one of those that a choice was made among.
        metrics: The content of ``metrics.json``.
        notes: What was done to the examples.
        finished: What was done after training.
        is_standard: Whether the folder needs no code of its own.
    """
    members = metrics["members"]
    is_trial = len(members) == 1 and members[0]["kind"] == "trial"
    trust = "" if is_standard else ", trust_remote_code=True"  # the code is pooled_classifier.py, in the folder
    loading = (
        f'from transformers import pipeline\n\nclassify = pipeline("text-classification", "path/to/this/folder"{trust})'
        if is_trial
        else "from tailsweep.trainables.text_classifiers import open_text_classifier\n\n"
        'classifier = open_text_classifier("path/to/this/folder")\nclassifier.probabilities(["a text"])'
    )
    settings = ""
    if is_trial:
        dump = trial_config.model_dump(include={"stage_one", "stage_two", "seed"})
        settings = f"\n```json\n{json.dumps(dump, indent=2)}\n```\n"
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
# {sweep}: {metrics["model"]}

{_description(metrics, trial_config)} Chosen by validation rows among the models of the sweep `{sweep}`; the test rows
{_scored(metrics["times_scored"])}.
{_member_table(members) if len(members) > 1 else ""}

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
{settings}"""


def _description(metrics: dict[str, Any], trial_config: TrialConfig) -> str:
    """Say in a sentence what the model is."""
    classes = f"{len(metrics['labels'])} classes"
    (first, *others) = metrics["members"]
    if first["kind"] == "trial" and not others:
        stages = "in stage one of two" if metrics["stage"] == report_keys.STAGE_ONE else "in two stages"
        return f"A text classifier with {classes}, fine-tuned from `{trial_config.model.name}` {stages} by\ntailsweep."
    if others:
        return (
            f"An ensemble of {1 + len(others)} text classifiers with {classes}, whose probabilities are averaged, by\n"
            "tailsweep."
        )
    return f"A linear text classifier with {classes} (`{first['name']}`), a scikit-learn pipeline, by\ntailsweep."


def _scored(times: int) -> str:
    if times == 1:
        return "were scored once, with this model only"
    return f"were scored with {times} models in turn, so that they may have had a part in the choice"


def _member_table(members: list[dict[str, Any]]) -> str:
    rows = "\n".join(
        f"| {number} | {member['name']} | {member.get('stage', 'linear').replace('_', ' ')} | {member['weight']:.3f} |"
        for number, member in enumerate(members, start=1)
    )
    return f"\n| folder below `members` | model | stage | weight |\n|---|---|---|---|\n{rows}\n"


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
        base_model=trial_config.model.name if any(member["kind"] == "trial" for member in metrics["members"]) else None,
        pipeline_tag="text-classification",
        library_name="transformers" if [member["kind"] for member in metrics["members"]] == ["trial"] else "tailsweep",
        tags=["text-classification", "class-imbalance", "tailsweep"],
        model_name=f"{sweep}/{metrics['model']}",
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
