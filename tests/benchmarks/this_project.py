"""This project's side of what is measured: the same two things as the other ways, done by its own code.

What is timed is the loop that trials run, not a copy of it.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import numpy as np
import torch
from benchmark_rows import BenchmarkRows, tokenize
from numpy.typing import NDArray
from tailsweep.trainables.config.data import DataConfig
from tailsweep.trainables.config.trial import StageConfig, TrialConfig
from tailsweep.trainables.data.tokenized import PreparedData
from tailsweep.trainables.execution.backends import Execution, cached_execution
from tailsweep.trainables.execution.feature_plan import FeaturePlan
from tailsweep.trainables.execution.feature_store import Features, PartSet, make_part
from tailsweep.trainables.execution.last_layer import last_layer
from tailsweep.trainables.execution.sparse_embeddings import SparseEmbeddingTraining
from tailsweep.trainables.models.layers import set_train_mode
from tailsweep.trainables.stacks.stack import HeadLayer, Stack, StackInputs, StackRuntime
from tailsweep.trainables.stacks.stacked_heads import StackedHeads
from tailsweep.trainables.training.losses import build_losses
from tailsweep.trainables.training.optimizer import LinearSchedule, adamw, rate_depths
from tailsweep.trainables.training.regularization import Objective
from tailsweep.trainables.training.runtime import SingleProcess
from tailsweep.trainables.training.stages import Optimization, StageRun, train_span
from tailsweep.trainables.training.weight_average import WeightAverage
from torch import nn


def features(plan: FeaturePlan, model: nn.Module, rows: BenchmarkRows, count: int, device: torch.device) -> None:
    """From the first texts to a file with the trunk's outputs: of the rows' tokens, end to end, or one per row."""
    train = tokenize(rows.texts[:count], rows.data.train.labels[:count], rows.tokenizer)
    data = replace(rows.data, train=train, validation=train.between(0, 0))
    with tempfile.TemporaryDirectory() as folder:
        make_part(plan, model, data, PartSet(folder, 1), 0, device)


class StackedTraining:
    """The loop of heads that train together: as many as there are stages."""

    def __init__(self, stages: Sequence[StageConfig], model: nn.Module, features: Features, data: PreparedData) -> None:
        config = DataConfig(train="not read here")
        trials = {
            f"t{number:03d}": TrialConfig(data=config, stage_one=stage, stage_two=StageConfig())
            for number, stage in enumerate(stages)
        }
        device = next(model.parameters()).device
        execution = cached_execution(model, features, data, device, stages[0].precision)
        name, layer = last_layer(model, data.train, device)
        heads = StackedHeads.from_layer(layer, stages)
        inputs, runtime = StackInputs(data, features), SimpleNamespace(device=device)
        self.stack = Stack(trials, inputs, execution, HeadLayer(name, layer), heads, cast(StackRuntime, runtime))
        self.model = model

    def steps(self, batches: Sequence[NDArray[np.int64]]) -> float:
        """A step per batch of row numbers; the mean of their losses, of the first head."""
        set_train_mode(self.model, frozen_dropout=False)
        return self.stack.train_steps(batches, 0, "the benchmark")[0]


class Training:
    """A stage's loop on a execution path; what trains has been set on the model, which is on its device."""

    def __init__(
        self,
        config: StageConfig,
        model: nn.Module,
        execution: Execution,
        data: PreparedData,
        total_steps: int,
        device: torch.device,
    ) -> None:
        self.run = StageRun(config, data, model, execution, SingleProcess(device), seed=0)
        losses = build_losses(config.loss, [data.class_counts], total_steps)
        self.words = SparseEmbeddingTraining(model, execution, data)
        with self.words.active():
            optimizer = adamw(model, config, rate_depths(model, config))
        schedule = LinearSchedule(config.learning_rate, total_steps)
        average = WeightAverage(optimizer, decay=None)
        self.optimization = Optimization(execution.module, losses, optimizer, schedule, Objective(config), average)
        self.done = 0

    def steps(self, batches: Sequence[NDArray[np.int64]]) -> float:
        """A step per batch of row numbers; the mean of their losses."""
        set_train_mode(self.run.model, self.run.config.frozen_dropout)
        with self.words.active(self.optimization.optimizer):
            loss = train_span(self.run, self.optimization, list(batches), first_step=self.done, where="the benchmark")
        self.done += len(batches)
        return loss
