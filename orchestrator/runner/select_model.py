"""What a sweep ends with: its best trial, a baseline or an ensemble of both, judged on the same validation examples."""

import io
import logging
from collections.abc import Sequence
from dataclasses import asdict
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
from tailsweep.orchestrator.runner.trained_models import ModelRequest, TrialModel, mean_logits, predict_split
from tailsweep.orchestrator.runs.directory import CHECKPOINTS_FOLDER, PREDICTIONS_FILE, RunDirectory
from tailsweep.orchestrator.runs.tables import choice_basis, ranking
from tailsweep.orchestrator.runs.trials import Records, Row, TrialState
from tailsweep.orchestrator.selection.choice import Contender, JudgedKind, Preference, choose
from tailsweep.trainables import report_keys
from tailsweep.trainables.baselines import Baseline, baseline_scores, fit_baselines
from tailsweep.trainables.config.postprocess import PostprocessConfig
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.data.tokenized import PreparedData, fetch_prepared
from tailsweep.trainables.errors import InputError
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
        trial=name,
        config=records.trial(name).config,
        report=dict(report),
        checkpoint=checkpoint,
        is_stage_one_end=False,
    )


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

    def request(self, best: str, members: Sequence[TrialModel | Baseline], weights: Sequence[float]) -> ModelRequest:
        """Return a model, or a mean of several, as tasks take it.

        Args:
            best: the trial whose examples they are for.
            members: the models.
            weights: of their probabilities.
        """
        data = self.environment.inputs_of(self.records.trial(best).config).data
        return ModelRequest(
            location=self.run.location,
            data=self.environment.data_source(self.run, data),
            metric=self.metric,
            postprocess=self.config.postprocess.model_dump(),
            members=list(members),
            weights=list(weights),
        )

    def export(self, rows: Sequence[Row]) -> None:
        """Choose the model and make ``best/`` of it, in tasks with a worker's resources.

        Args:
            rows: of the trials, the best of which is completed.
        """
        best = ranking(rows, self.metric)[0]["trial"]
        trial_config = TrialConfig.model_validate(self.records.trial(best).config)
        data = fetch_prepared(self.request(best, [], [])["data"], default_cache_dir())
        baselines = self._baselines(trial_config, data)
        models: dict[str, TrialModel | Baseline] = {model.name: model for model in self._choosable(baselines)}
        models |= self._trial_models(rows, best)
        record: dict[str, Any] = {"choice_basis": choice_basis(rows, self.metric)}
        if baselines:
            record["baselines"] = baseline_scores(baselines, data, self.metric)
        weights = {best: 1.0}
        if self._is_a_choice(models) and len(data.validation) >= LEAST_ROWS:
            logits = self._validation_logits(best, models)
            judged = self._judge(models, logits, data)
            weights = dict(next(kind for kind in judged if kind.chosen).weights)
            record["selection"] = [asdict(kind) for kind in judged]
        members = [models[name] for name in weights]
        (name, member), *others = zip(weights, members, strict=True)
        if others:
            name = f"ensemble of {len(members)}"
            scores = self._scores([logits[name] for name in weights], list(weights.values()), data)
        elif isinstance(member, Baseline):
            scores = self._scores([member.validation_logits], [1.0], data)
        else:
            prefix = f"{report_keys.VALIDATION}/"
            scores = {key: value for key, value in member["report"].items() if key.startswith(prefix)}
        request = ExportRequest(
            model=self.request(best, members, list(weights.values())),
            name=name,
            best=trial_model(self.records, self.metric, best),
            onnx=self.config.export.onnx,
            validation=scores,
            record=record,
        )
        task = ray.remote(**self.resources)(export_model)
        for step in result_of(task.remote(request)):
            logger.info(step)

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
        """Return whether there is more to choose from than the trials, which the ranking has in their order."""
        more = any(isinstance(model, Baseline) or model["is_stage_one_end"] for model in models.values())
        return more or (len(models) > 1 and self._max_members > 1)

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
            trial=model["trial"],
            config=model["config"],
            report=dict(reports[-1]),
            checkpoint=model["checkpoint"],
            is_stage_one_end=True,
        )

    def _validation_logits(self, best: str, models: dict[str, TrialModel | Baseline]) -> dict[str, NDArray[np.float64]]:
        """Return the logits (n, C) of every model as trained: what is done afterwards is fitted to these rows."""
        task = ray.remote(**self.resources)(predict_split)
        plain = PostprocessConfig().model_dump()
        asked = {
            name: task.remote(self.request(best, [model], [1.0]) | {"postprocess": plain}, report_keys.VALIDATION)
            for name, model in models.items()
            if not isinstance(model, Baseline)
        }
        predicted = {name: result_of(reference) for name, reference in asked.items()}
        own = {name: model.validation_logits for name, model in models.items() if isinstance(model, Baseline)}
        return {name: (own | predicted)[name] for name in models}

    def _judge(
        self,
        models: dict[str, TrialModel | Baseline],
        logits: dict[str, NDArray[np.float64]],
        data: PreparedData,
    ) -> list[JudgedKind]:
        name = self.metric.removeprefix(f"{report_keys.VALIDATION}/")

        def score(counts: NDArray[np.int64]) -> float:
            value = metrics.score(name, counts, data.class_counts)
            return 0.0 if value is None else value  # None: none of its classes is among the rows

        contenders = [
            Contender(
                name,
                "baseline" if isinstance(model, Baseline) else "trial",
                np.exp(log_softmax(logits[name], axis=1)),
            )
            for name, model in models.items()
        ]
        self._write_predictions(contenders, data)
        labels = np.array(data.validation.labels)
        preference = Preference(self._max_members, self.config.selection.prefer == "simplicity")
        return choose(contenders, labels, score, preference, self.config.seed)

    def _write_predictions(self, contenders: Sequence[Contender], data: PreparedData) -> None:
        """Write the probabilities of every model that was compared, with the true classes."""
        names = pa.array(data.label_names)
        columns: dict[str, pa.Array] = {"label": names.take(pa.array(np.array(data.validation.labels)))}
        for contender in contenders:
            values = pa.array(contender.probabilities.astype(np.float32).ravel())
            columns[contender.name] = pa.FixedSizeListArray.from_arrays(values, len(data.label_names))
        sink = io.BytesIO()
        pq.write_table(pa.table(columns), sink)
        self.run.write_bytes(PREDICTIONS_FILE, sink.getvalue())

    def _scores(
        self, logits: list[NDArray[np.float64]], weights: list[float], data: PreparedData
    ) -> dict[str, float | None]:
        confusion = Confusion(len(data.label_names))
        confusion.update(
            torch.from_numpy(mean_logits(logits, weights)), torch.from_numpy(np.array(data.validation.labels))
        )
        return confusion.scores(data.class_counts, data.label_names)
