"""Whether a stage is over: after its last epoch, or early, where evaluations have brought nothing better.

The one place that decides it. The trial that trains asks here, and so does the sweep that has only the trial's reports;
all follows from these, so that the two agree, before and after a restart.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from tailsweep.trainables import report_keys


def stage_is_over(
    stage: str, reports: Iterable[Mapping[str, Any]], metric: str, epochs: int, patience: int | None
) -> bool:
    """Whether a trial with these reports has nothing left to train in a stage.

    Args:
        stage: ``stage_one`` or ``stage_two``.
        reports: of the trial, in order; those of other stages do not count.
        metric: the key of the score that is to rise.
        epochs: that the stage has.
        patience: as many evaluations in a row without a better score end the stage; None: it continues to its end.
    """
    own = [report for report in reports if report[report_keys.STAGE] == stage]
    if epochs == 0 or (own and own[-1][report_keys.EPOCH] == epochs):
        return True
    if not own or patience is None:
        return False
    scores = [report[metric] for report in own]
    return len(scores) - 1 - scores.index(max(scores)) >= patience  # of equal scores the first is the best
