"""Who goes on from a tournament's first round: rank by the last score of stage one, over all that finished it."""

from tailsweep.orchestrator.runs.candidates import Records, is_over
from tailsweep.trainables import report_keys


def stage_one_ranking(records: Records, metric: str) -> list[str]:
    """The candidates whose stage one is over, best first; ties go to the lower candidate number.

    By the last report of stage one, since that is the model that goes on. The order follows from the history
    alone, so that it is the same before and after a restart.
    """
    scores: dict[str, float] = {}
    for candidate in records.entered:
        outcome = records.outcomes.get(candidate.name)
        last = stage_one_end(records, candidate.name, metric)
        if last is not None and (outcome is None or outcome.state != "pruned"):
            scores[candidate.name] = last[metric]
    return sorted(scores, key=lambda name: -scores[name])  # stable: equal scores stay in the candidates' order


def stage_one_end(records: Records, name: str, metric: str) -> dict[str, float] | None:
    """The last report of stage one, or None while it is not over."""
    reports = [row for row in records.history_of(name) if row[report_keys.STAGE] == report_keys.STAGE_ONE]
    over = is_over(records.candidate(name).trial, report_keys.STAGE_ONE, reports, metric)
    return reports[-1] if reports and over else None
