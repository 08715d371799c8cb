"""The end of a stage: after its last epoch, or early, when evaluations bring no better score.

The trial that trains and the sweep that reads its reports both decide here. The decision depends on the reports
alone, so that the two agree, before and after a restart.
"""

from collections.abc import Iterable, Mapping
from typing import cast

from tailsweep.trainables import report_keys
from tailsweep.trainables.report_keys import Stage


def stage_is_over(
    stage: Stage, reports: Iterable[Mapping[str, object]], metric: str, epochs: int, patience: int | None
) -> bool:
    """Return whether a trial with these reports has nothing left to train in a stage.

    Args:
        stage: The stage.
        reports: The trial's reports, in order; those of other stages do not count.
        metric: The key of the score; higher is better.
        epochs: The number of epochs of the stage.
        patience: How many evaluations in a row without a better score end the stage; None: only its last epoch does.
    """
    own = [report for report in reports if report[report_keys.STAGE] == stage]
    if epochs == 0 or (own and own[-1][report_keys.EPOCH] == epochs):
        return True
    if not own or patience is None:
        return False
    scores = [cast(float, report[metric]) for report in own]
    return len(scores) - 1 - scores.index(max(scores)) >= patience  # of equal scores the first is the best
