"""What is kept of a trial's checkpoints: the newest and the best."""

from pathlib import Path

import pytest
import torch
from tailsweep.trainables import report_keys
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.distributed.checkpoint_store import CheckpointStore, best_checkpoint
from tailsweep.trainables.report_keys import Stage
from tailsweep.trainables.training.checkpoint import Progress, is_whole, save_checkpoint

METRIC = report_keys.DEFAULT_METRIC
SCORES = [(Stage.ONE, 0.9), (Stage.ONE, 0.8), (Stage.TWO, 0.5), (Stage.TWO, 0.7), (Stage.TWO, 0.7), (Stage.TWO, 0.6)]


def trial(keep: str) -> TrialConfig:
    stage = {"keep": keep}
    return TrialConfig.model_validate({"data": {"train": "rows.csv"}, "stage_one": stage, "stage_two": stage})


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ("best", ["one_1", "one_1 one_2", "two_1", "two_2", "two_2 two_3", "two_2 two_4"]),
        ("last", ["one_1", "one_2", "two_1", "two_2", "two_3", "two_4"]),
    ],
)
def test_the_best_and_the_newest_are_kept(keep: str, expected: list[str], tmp_path: Path) -> None:
    """One of stage two goes before every one of stage one; of equal scores the earlier is the best."""
    store, config = CheckpointStore(str(tmp_path / "kept")), trial(keep)
    reports: list[dict[str, str | float]] = []
    kept = []
    for stage, score in SCORES:
        epoch = 1 + sum(report[report_keys.STAGE] == stage for report in reports)
        reports.append({report_keys.STAGE: stage.value, report_keys.EPOCH: epoch, METRIC: score})
        progress = Progress(stage, epoch, tuple(reports))
        checkpoint = tmp_path / progress.name
        checkpoint.mkdir()
        save_checkpoint(checkpoint, progress, torch.nn.Linear(2, 2), {"weight"}, None)
        store.keep(checkpoint, [best_checkpoint(checkpoint, config, METRIC)])
        names = sorted(path.name for path in (tmp_path / "kept").iterdir())
        assert all(is_whole(tmp_path / "kept" / name) for name in names)
        kept.append(" ".join(name.removeprefix("stage_").replace("epoch_00", "") for name in names))
    assert kept == expected
