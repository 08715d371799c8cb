"""The end of a trial, as it follows from its history: pruned, or through its last stage."""

from collections.abc import Iterable, Mapping
from typing import Any

from tailsweep.orchestrator.runs.trials import Records, TrialState, is_over, last_stage
from tailsweep.orchestrator.search.asha import StageASHA, describe
from tailsweep.trainables import report_keys


def settled(records: Records, scheduler: StageASHA | None, metric: str, name: str) -> tuple[TrialState, str] | None:
    """Return state and reason of a trial whose end follows from its history; None while it has work left."""
    history = records.history_of(name)
    if not history:
        return None
    last = history[-1]
    decision = scheduler.decisions.get(name) if scheduler is not None else None
    if decision is not None and decision.stop:
        return TrialState.PRUNED, describe(decision, metric, last)
    trial_config = records.trial(name).config
    if last[report_keys.STAGE] == last_stage(trial_config) and is_over(
        trial_config, last[report_keys.STAGE], history, metric
    ):
        return TrialState.COMPLETED, "; ".join(_early_ends(trial_config, history, metric)) or "all its epochs are done"
    return None


def _early_ends(trial_config: Mapping[str, Any], history: Iterable[Mapping[str, Any]], metric: str) -> list[str]:
    """Of each stage that ended before its last epoch, in words."""
    done = {row[report_keys.STAGE]: row[report_keys.EPOCH] for row in history}
    return [
        _early_end(stage, trial_config[stage], epoch, metric)
        for stage, epoch in done.items()
        if epoch != trial_config[stage]["epochs"]
    ]


def _early_end(stage: str, stage_config: Mapping[str, Any], epoch: float, metric: str) -> str:
    patience = stage_config["patience"]
    return (
        f"{stage.replace('_', ' ')} ended after epoch {report_keys.shown_epochs(epoch)} of {stage_config['epochs']}, "
        f"with no better {metric} in {patience} evaluation{'s' if patience > 1 else ''}"
    )
