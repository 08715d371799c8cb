"""What the best models of a sweep say of training and validation examples that they were not trained on.

Each is trained again on all of several stratified folds but one, by a sweep below the run directory, and predicts that
one. So a choice rests on every labelled example, where there are too few to set enough of them aside.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import ray
from numpy.typing import NDArray
from tailsweep.orchestrator.config.sweep import Sweep
from tailsweep.orchestrator.planning.ray_session import result_of
from tailsweep.orchestrator.planning.resources import placement
from tailsweep.orchestrator.runner.refit import RunTrials, TrainedAgain, again_config, train_again
from tailsweep.orchestrator.runner.select_model import Predictions
from tailsweep.orchestrator.runner.trained_models import TrialModel, predict_split
from tailsweep.orchestrator.runs.directory import FOLDS_FILE, FOLDS_FOLDER, RunDirectory
from tailsweep.trainables import report_keys
from tailsweep.trainables.baselines import Baseline, refit_baseline
from tailsweep.trainables.config.data import Resplit
from tailsweep.trainables.data.splits import resplit_rows
from tailsweep.trainables.data.tokenized import PreparedData
from tailsweep.trainables.errors import InputError

logger = logging.getLogger(__name__)


def possible_folds(labels: NDArray[np.int64], asked: int, label_names: Sequence[str]) -> int:
    """Return into how many folds examples can be divided so that each has every class; say so if that is fewer.

    A class with one example is in no fold and always trained on.

    Args:
        labels: (n,), of the examples.
        asked: for how many there shall be.
        label_names: of the classes.

    Raises:
        InputError: No class has two examples.
    """
    counts = np.bincount(labels, minlength=len(label_names))
    if single := [name for name, count in zip(label_names, counts, strict=True) if count == 1]:
        logger.warning(f"{', '.join(single)}: one example each, which every model is trained on; no fold has it")
    if counts.max() < 2:
        raise InputError("no class has two examples, but a class needs them to be in a fold")
    fewest = int(counts[counts > 1].min())
    if fewest < asked:
        rarest = label_names[int(np.flatnonzero(counts == fewest)[0])]
        logger.warning(f"selection.folds is {asked}, but {rarest} has {fewest} examples: there are {fewest} folds")
    return min(asked, fewest)


@dataclass(frozen=True)
class CrossValidation:
    """The folds of a sweep's examples, and what runs trials on them."""

    run: RunDirectory
    sweep: Sweep
    run_trials: RunTrials

    def predict(self, models: Mapping[str, TrialModel | Baseline], best: TrialModel, data: PreparedData) -> Predictions:
        """Return what models predict out of fold.

        Args:
            models: by name.
            best: the best trial's, whose examples they share.
            data: these examples.

        Raises:
            InputError: A model cannot be trained on other examples.
        """
        labels = np.concatenate([data.train.labels, data.validation.labels])
        asked = self.sweep.config.selection.folds
        assert asked is not None
        num_folds = possible_folds(labels, asked, data.label_names)
        folds = [Resplit(index=index, of=num_folds) for index in range(num_folds)]
        trials = {name: model for name, model in models.items() if not isinstance(model, Baseline)}
        if trials:
            logger.info(f"{num_folds} folds: {len(trials)} models are trained again on all but one, for each of them")
        wanted = [(model, fold) for model in trials.values() for fold in folds]
        trained = iter(train_again(self.run, self.sweep, FOLDS_FOLDER, wanted, self.run_trials))
        again = {name: [next(trained) for _ in folds] for name in trials}
        configs = [again_config(best, fold).data for fold in folds]
        rows = [resplit_rows(labels, len(data.train), config)[1] for config in configs]
        logits = self._logits(again)
        for name, model in models.items():
            if isinstance(model, Baseline):
                logits[name] = [refit_baseline(model, config).validation_logits for config in configs]
        order = np.concatenate(rows)
        self._check(logits, rows)
        return Predictions(
            {name: np.concatenate(logits[name]) for name in models},
            labels[order],
            np.bincount(labels, minlength=len(data.label_names)),
            FOLDS_FILE,
        )

    def _logits(self, again: Mapping[str, Sequence[TrainedAgain]]) -> dict[str, list[NDArray[np.float64]]]:
        """Return by name what the model without each fold says of it."""
        asked = placement(self.sweep, report_keys.STAGE_TWO)
        task = ray.remote(num_cpus=asked.cpus_per_worker, num_gpus=asked.gpus_per_worker)(predict_split)
        metric = self.sweep.config.metric
        references = {
            name: [
                task.remote(trained.source.request([trained.model], metric), report_keys.VALIDATION)
                for trained in models
            ]
            for name, models in again.items()
        }
        return {name: [result_of(reference) for reference in own] for name, own in references.items()}

    def _check(self, logits: Mapping[str, Sequence[NDArray[np.float64]]], rows: Sequence[NDArray[np.int64]]) -> None:
        """Refuse predictions of other examples: a file may have changed since the sweep began."""
        sizes = [len(fold) for fold in rows]
        if any([len(fold) for fold in own] != sizes for own in logits.values()):
            raise InputError("the files under data have other examples than the sweep began with")
