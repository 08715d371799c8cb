"""A trial's folder of checkpoints on the sweep's storage: what is kept of them, and how it gets there."""

from collections.abc import Collection
from pathlib import Path
from typing import cast

import pyarrow.fs as pafs
from tailsweep.trainables import report_keys
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.report_keys import STAGES, Stage
from tailsweep.trainables.storage.atomic import replace_folder
from tailsweep.trainables.storage.filesystem import open_location, upload
from tailsweep.trainables.storage.retry import with_retries
from tailsweep.trainables.training.checkpoint import checkpoint_name, load_progress
from tailsweep.trainables.training.runtime import Report


class CheckpointStore:
    """A folder that holds one folder per checkpoint.

    Args:
        location: a folder or pyarrow URI; it need not be there.
    """

    def __init__(self, location: str) -> None:
        self.filesystem, self.path = open_location(location)

    def keep(self, checkpoint: Path, others: Collection[str] = ()) -> None:
        """Store a checkpoint, then delete the earlier ones but those named in ``others``.

        On a disk the folder is renamed when it is whole. An object store has no rename: readers verify the checksums.

        Raises:
            StorageError: storage refuses it after all retries.
        """
        with_retries(lambda: self._keep(checkpoint, others), f"{self.path}/{checkpoint.name}")

    def _keep(self, checkpoint: Path, others: Collection[str]) -> None:
        target = Path(self.path) / checkpoint.name
        if isinstance(self.filesystem, pafs.LocalFileSystem):
            target.parent.mkdir(parents=True, exist_ok=True)
            with replace_folder(target) as partial:
                upload(checkpoint, self.filesystem, str(partial))
        else:
            upload(checkpoint, self.filesystem, str(target))
        for info in self.filesystem.get_file_info(pafs.FileSelector(self.path)):
            if info.base_name.startswith(STAGES) and info.base_name not in (checkpoint.name, *others):
                self.filesystem.delete_dir(info.path)


def best_checkpoint(checkpoint: Path, trial: TrialConfig, metric: str) -> str:
    """Return the name of the best checkpoint of a trial so far: a stage's best, or last, as its ``keep`` says.

    One of stage two goes before every one of stage one. Of equal scores the earlier is better.

    Args:
        checkpoint: the newest, which has the reports of all.
        trial: its trial.
        metric: the key of the score that ranks them.
    """
    keeps_best = {Stage.ONE: trial.stage_one.keeps_best, Stage.TWO: trial.stage_two.keeps_best}

    def rank(report: Report) -> tuple[int, float, float]:
        stage, epoch = Stage(str(report[report_keys.STAGE])), cast(float, report[report_keys.EPOCH])
        if keeps_best[stage]:
            return STAGES.index(stage), cast(float, report[metric]), -epoch
        return STAGES.index(stage), epoch, 0.0

    best = max(load_progress(checkpoint).reports, key=rank)
    return checkpoint_name(Stage(str(best[report_keys.STAGE])), cast(float, best[report_keys.EPOCH]))
