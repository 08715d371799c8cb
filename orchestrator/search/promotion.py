"""Promotion from phase one: the trials that have finished stage one, ranked by their last score in it."""

from collections.abc import Iterable

from tailsweep.orchestrator.runs.trials import Records, Row, TrialRecord, TrialState, is_over
from tailsweep.trainables import report_keys


def stage_one_ranking(records: Records, metric: str, trials: Iterable[TrialRecord]) -> list[str]:
    """Return those of the trials whose stage one is over, best first; ties go to the lower trial number.

    By the last report of stage one, since that is the model that continues. The order follows from the history
    alone, so that it is the same before and after a restart.
    """
    scores: dict[str, float] = {}
    for trial in trials:
        outcome = records.outcomes.get(trial.name)
        last = stage_one_end(records, trial.name, metric)
        if last is not None and (outcome is None or outcome.state != TrialState.PRUNED):
            scores[trial.name] = last[metric]
    return sorted(scores, key=lambda name: -scores[name])  # stable: equal scores stay in the trials' order


def stage_one_end(records: Records, name: str, metric: str) -> Row | None:
    """Return the last report of stage one, or None while it is not over."""
    reports = [row for row in records.history_of(name) if row[report_keys.STAGE] == report_keys.STAGE_ONE]
    over = is_over(records.trial(name).config, report_keys.STAGE_ONE, reports, metric)
    return reports[-1] if reports and over else None
