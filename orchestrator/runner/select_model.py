"""What a sweep ends with: its best trial, a baseline or an ensemble of both, judged on the same validation examples."""

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax
from tailsweep.orchestrator.config.sweep import Sweep
from tailsweep.orchestrator.planning.environment import Environment
from tailsweep.orchestrator.planning.ray_session import result_of
from tailsweep.orchestrator.planning.resources import placement
from tailsweep.orchestrator.runner.export import ExportRequest, export_model
from tailsweep.orchestrator.runner.trained_models import ModelSource, TrialModel, mean_logits, predict_split
from tailsweep.orchestrator.runs.directory import CHECKPOINTS_FOLDER, FOLDS_FILE, PREDICTIONS_FILE, RunDirectory
from tailsweep.orchestrator.runs.tables import choice_basis, ranking
from tailsweep.orchestrator.runs.trials import Records, Row, TrialState
from tailsweep.orchestrator.selection.choice import Contender, Examples, JudgedKind, Preference, choose
from tailsweep.trainables import report_keys
from tailsweep.trainables.baselines import Baseline, baseline_scores, fit_baselines
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.data.tokenized import PreparedData, fetch_prepared
from tailsweep.trainables.errors import InputError, ModelError
from tailsweep.trainables.postprocess.thresholds import adjustment, confusion_counts
from tailsweep.trainables.report_keys import Stage
from tailsweep.trainables.storage.cache import default_cache_dir
from tailsweep.trainables.training import metrics
from tailsweep.trainables.training.checkpoint import STAGE_ONE_FILE, checkpoint_name
from tailsweep.trainables.training.metrics import Confusion

MOST_TRIALS = 12  # completed ones, the best by their own scores, that are compared
MOST_STAGE_ONE = 4  # models that stage one ended with
LEAST_ROWS = 10  # of validation: by fewer nothing but the trials' own scores is compared

logger = logging.getLogger(__name__)


def trial_model(records: Records, metric: str, name: str) -> TrialModel:
    """Return the model that a completed trial is judged by."""
    report = records.judged(name, metric)
    assert report is not None, "a completed trial has reported"
    checkpoint = checkpoint_name(Stage(report[report_keys.STAGE]), report[report_keys.EPOCH])
    return TrialModel(
        name=name,
        trial=name,
        config=records.trial(name).config,
        report=dict(report),
        checkpoint=checkpoint,
        is_stage_one_end=False,
    )


@dataclass(frozen=True, eq=False)
class ChosenModel:
    """What a sweep ends with."""

    name: str
    source: ModelSource
    members: Sequence[TrialModel | Baseline]
    weights: Sequence[float]  # of their probabilities; they sum to 1
    tau: float  # of the logit adjustment of their mean; 0: none
    scores: Mapping[str, float | None]  # on the validation examples
    best: TrialModel  # the best trial's, which the model may or may not be
    record: Mapping[str, Any]  # what else metrics.json says: the selection, the baselines


@dataclass(frozen=True, eq=False)
class Predictions:
    """What models say of examples that they were not trained on."""

    logits: Mapping[str, NDArray[np.float64]]  # (n, C), by name
    labels: NDArray[np.int64]  # (n,)
    class_counts: NDArray[np.int64]  # (C,), training examples of each class
    file: str  # of the run directory, that they are written to


# What takes the place of the validation examples: models by name, the best trial's, and the examples -> predictions.
CrossValidate = Callable[[Mapping[str, TrialModel | Baseline], TrialModel, PreparedData], Predictions]


class ModelSelection:
    """The choice of a sweep's model, and its export.

    Args:
        run: the run directory.
        sweep: the sweep, whose trials have ended.
        records: its trials.
        environment: their inputs.
    """

    def __init__(self, run: RunDirectory, sweep: Sweep, records: Records, environment: Environment) -> None:
        self.run = run
        self.config = sweep.config
        self.metric = sweep.config.metric
        self.records = records
        self.environment = environment
        asked = placement(sweep, report_keys.STAGE_TWO)
        self.resources = {"num_cpus": asked.cpus_per_worker, "num_gpus": asked.gpus_per_worker}

    def source(self, best: str) -> ModelSource:
        """Return where the models of trials with the same examples as ``best`` lie, and these examples."""
        data = self.environment.inputs_of(self.records.trial(best).config).data
        return ModelSource(self.run.location, self.environment.data_source(self.run, data))

    def export(self, chosen: ChosenModel) -> None:
        """Make ``best/`` of the chosen model, in a task with a worker's resources."""
        request = ExportRequest(
            run=self.run.location,
            model=chosen.source.request(
                chosen.members, self.metric, chosen.weights, chosen.tau, self.config.postprocess
            ),
            name=chosen.name,
            best=chosen.best,
            onnx=self.config.export.onnx,
            validation=dict(chosen.scores),
            record=dict(chosen.record),
        )
        task = ray.remote(**self.resources)(export_model)
        try:
            steps = result_of(task.remote(request))
        except ModelError as error:  # its last layer is not one that a decision can be written into
            only = chosen.members[0]
            if not chosen.tau or len(chosen.members) > 1 or isinstance(only, Baseline):
                raise
            logger.info(f"no logit adjustment: {error}")
            self.export(replace(chosen, tau=0.0, scores=_reported(only)))
        else:
            for step in steps:
                logger.info(step)

    def choose(self, rows: Sequence[Row], cross_validate: CrossValidate | None = None) -> ChosenModel:
        """Choose the model.

        Args:
            rows: of the trials, the best of which is completed.
            cross_validate: judges the best half of the models by more examples than those of validation; None: these.
        """
        best = ranking(rows, self.metric)[0]["trial"]
        trial_config = TrialConfig.model_validate(self.records.trial(best).config)
        data = fetch_prepared(self.source(best).data, default_cache_dir())
        baselines = self._baselines(trial_config, data)
        models: dict[str, TrialModel | Baseline] = {model.name: model for model in self._choosable(baselines)}
        models |= self._trial_models(rows, best)
        record: dict[str, Any] = {"choice_basis": choice_basis(rows, self.config)}
        if baselines:
            record["baselines"] = baseline_scores(baselines, data, self.metric)
        weights, tau = {best: 1.0}, 0.0
        scores = _reported(trial_model(self.records, self.metric, best))
        if self._is_a_choice(models) and len(data.validation) >= LEAST_ROWS:
            predictions = self._validation_predictions(best, models, data)
            if cross_validate is not None:
                finalists = self._finalists(models, predictions)
                try:
                    predictions = cross_validate(finalists, trial_model(self.records, self.metric, best), data)
                    record["folds"] = {"examples": len(predictions.labels)}
                except InputError as error:
                    logger.warning(f"no folds: {error}; the choice is by the validation examples")
            judged = self._judge(models, predictions, data.label_names)
            chosen = next(kind for kind in judged if kind.chosen)
            weights, tau = dict(chosen.weights), chosen.tau
            scores = self._scores(chosen, models, predictions, data)
            record["selection"] = [asdict(kind) for kind in judged]
        members = [models[name] for name in weights]
        name = f"ensemble of {len(members)}" if len(members) > 1 else next(iter(weights))
        return ChosenModel(
            name=name,
            source=self.source(best),
            members=members,
            weights=list(weights.values()),
            tau=tau,
            scores=scores,
            best=trial_model(self.records, self.metric, best),
            record=record,
        )

    def _baselines(self, trial_config: TrialConfig, data: PreparedData) -> list[Baseline]:
        """Fit the baselines, in this process: they read the texts, which it has read at its start."""
        if not self.config.baselines:
            return []
        try:
            return fit_baselines(self.config.baselines, trial_config, data, self.metric)
        except InputError as error:  # too many texts, or they are no longer where they were
            logger.info(f"no baselines: {error}")
            return []

    def _is_a_choice(self, models: dict[str, TrialModel | Baseline]) -> bool:
        """Return whether there is more to choose than among the trials, which the ranking has in their order."""
        more = any(isinstance(model, Baseline) or model["is_stage_one_end"] for model in models.values())
        return more or self._may_adjust or (len(models) > 1 and self._max_members > 1)

    @property
    def _may_adjust(self) -> bool:
        """Whether a decision may be fitted to the model, which is not to be changed otherwise."""
        postprocess = self.config.postprocess
        return self.config.selection.decision == "auto" and postprocess.classifier is None is postprocess.decision

    @property
    def _max_members(self) -> int:
        return 1 if self.config.export.onnx else self.config.selection.max_members

    def _choosable(self, baselines: Sequence[Baseline]) -> Sequence[Baseline]:
        """Return the baselines that may become the model."""
        return baselines if self.config.selection.baselines and not self.config.export.onnx else ()

    def _trial_models(self, rows: Sequence[Row], best: str) -> dict[str, TrialModel]:
        """Return by name the best completed trials, then models that stage one of them ended with.

        All are of the same examples as the best trial: what others say of theirs cannot be compared.
        """
        key = self.environment.inputs_of(self.records.trial(best).config).data
        completed = [row["trial"] for row in ranking(rows, self.metric) if row["state"] == TrialState.COMPLETED]
        same = [name for name in completed if self.environment.inputs_of(self.records.trial(name).config).data == key]
        models = {name: trial_model(self.records, self.metric, name) for name in same[:MOST_TRIALS]}
        if not self.config.selection.stage_one:
            return models
        ends: dict[str, TrialModel] = {}
        for name, model in models.items():
            if (end := self._stage_one_end(model)) is not None:
                ends.setdefault(f"{self.records.trial(name).parent or name} stage one", end)
        by_score = sorted(ends, key=lambda name: -ends[name]["report"][self.metric])
        return models | {name: ends[name] for name in by_score[:MOST_STAGE_ONE]}

    def _stage_one_end(self, model: TrialModel) -> TrialModel | None:
        """Return the model that stage one of a trial ended with; None if it had none, or its checkpoint lacks it."""
        reports = [
            row for row in self.records.history_of(model["trial"]) if row[report_keys.STAGE] == report_keys.STAGE_ONE
        ]
        file = f"{CHECKPOINTS_FOLDER}/{model['trial']}/{model['checkpoint']}/{STAGE_ONE_FILE}"
        if not reports or not self.run.exists(file):
            return None
        return TrialModel(
            name=model["name"],
            trial=model["trial"],
            config=model["config"],
            report=dict(reports[-1]),
            checkpoint=model["checkpoint"],
            is_stage_one_end=True,
        )

    def _validation_predictions(
        self, best: str, models: Mapping[str, TrialModel | Baseline], data: PreparedData
    ) -> Predictions:
        """Return what every model says as trained: what is done afterwards is fitted to these examples."""
        task = ray.remote(**self.resources)(predict_split)
        source = self.source(best)
        asked = {
            name: task.remote(source.request([model], self.metric), report_keys.VALIDATION)
            for name, model in models.items()
            if not isinstance(model, Baseline)
        }
        predicted = {name: result_of(reference) for name, reference in asked.items()}
        own = {name: model.validation_logits for name, model in models.items() if isinstance(model, Baseline)}
        logits = {name: (own | predicted)[name] for name in models}
        return Predictions(logits, np.array(data.validation.labels), data.class_counts, PREDICTIONS_FILE)

    def _finalists(
        self, models: Mapping[str, TrialModel | Baseline], predictions: Predictions
    ) -> dict[str, TrialModel | Baseline]:
        """Return the best half of the models by the validation examples, at most as many as an ensemble may have."""

        def score(name: str) -> float:
            counts = confusion_counts(predictions.labels, predictions.logits[name].argmax(axis=1), num_classes)
            return self._score(counts, predictions.class_counts)

        num_classes = len(predictions.class_counts)
        size = max(1, min(self.config.selection.max_members, -(-len(models) // 2)))
        best = sorted(models, key=score, reverse=True)[:size]
        return {name: model for name, model in models.items() if name in best}

    def _score(self, counts: NDArray[np.int64], class_counts: NDArray[np.int64]) -> float:
        value = metrics.score(self.metric.removeprefix(f"{report_keys.VALIDATION}/"), counts, class_counts)
        return 0.0 if value is None else value  # None: none of its classes is among the rows

    def _judge(
        self, models: Mapping[str, TrialModel | Baseline], predictions: Predictions, label_names: Sequence[str]
    ) -> list[JudgedKind]:
        contenders = [
            Contender(
                name,
                "baseline" if isinstance(models[name], Baseline) else "trial",
                np.exp(log_softmax(logits, axis=1)),
            )
            for name, logits in predictions.logits.items()
        ]
        self._write_predictions(contenders, predictions, label_names)
        selection = self.config.selection
        is_half = predictions.file == FOLDS_FILE  # already
        preference = Preference(self._max_members, not is_half, selection.prefer == "simplicity", self._may_adjust)
        score = partial(self._score, class_counts=predictions.class_counts)
        examples = Examples(predictions.labels, predictions.class_counts, score)
        return choose(contenders, examples, preference, self.config.seed)

    def _write_predictions(
        self, contenders: Sequence[Contender], predictions: Predictions, label_names: Sequence[str]
    ) -> None:
        """Write the probabilities of every model that was compared, with the true classes."""
        names = pa.array(label_names)
        columns: dict[str, pa.Array] = {"label": names.take(pa.array(predictions.labels))}
        for contender in contenders:
            values = pa.array(contender.probabilities.astype(np.float32).ravel())
            columns[contender.name] = pa.FixedSizeListArray.from_arrays(values, len(label_names))
        sink = io.BytesIO()
        pq.write_table(pa.table(columns), sink)
        self.run.write_bytes(predictions.file, sink.getvalue())

    def _scores(
        self,
        chosen: JudgedKind,
        models: Mapping[str, TrialModel | Baseline],
        predictions: Predictions,
        data: PreparedData,
    ) -> dict[str, float | None]:
        """Return the scores of the chosen model: of a trial's as it was trained, those it reported."""
        (name, *others) = chosen.weights
        only = models[name]
        if predictions.file == PREDICTIONS_FILE and not (others or chosen.tau or isinstance(only, Baseline)):
            return _reported(only)
        mean = mean_logits([predictions.logits[name] for name in chosen.weights], list(chosen.weights.values()))
        if chosen.tau:
            mean = mean + adjustment(predictions.class_counts, chosen.tau)
        confusion = Confusion(len(data.label_names))
        confusion.update(torch.from_numpy(mean), torch.from_numpy(predictions.labels))
        return confusion.scores(data.class_counts, data.label_names)


def _reported(model: TrialModel) -> dict[str, float | None]:
    """Return the validation scores that a trial reported of its model."""
    prefix = f"{report_keys.VALIDATION}/"
    return {key: value for key, value in model["report"].items() if key.startswith(prefix)}
