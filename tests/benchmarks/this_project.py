"""This project's side of what is measured: the same two things as the other ways, done by its own code.

Reaches into private functions on purpose: what is timed is the loop that trials run, not a copy of it.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from benchmark_rows import BenchmarkRows, tokenise
from numpy.typing import NDArray
from tailsweep.trainables.config.trial import StageConfig
from tailsweep.trainables.data.tokenized import PreparedData
from tailsweep.trainables.execution.backends import Road
from tailsweep.trainables.execution.feature_plan import FeaturePlan
from tailsweep.trainables.execution.feature_store import make_part
from tailsweep.trainables.execution.sparse_embeddings import OccurringWords
from tailsweep.trainables.models.layers import set_train_mode
from tailsweep.trainables.training.losses import build_losses
from tailsweep.trainables.training.optimizer import LinearSchedule, adamw
from tailsweep.trainables.training.runtime import SingleProcess
from tailsweep.trainables.training.stages import _train_span
from torch import nn


def features(plan: FeaturePlan, model: nn.Module, rows: BenchmarkRows, count: int, device: torch.device) -> None:
    """From the first texts to a file with the trunk's outputs: of the rows' tokens, end to end, or one per row."""
    train = tokenise(rows.texts[:count], rows.data.train.labels[:count], rows.tokenizer)
    data = replace(rows.data, train=train, validation=train.between(0, 0))
    with tempfile.TemporaryDirectory() as folder:
        make_part(plan, model, data, folder, 0, 1, device)


class Training:
    """A stage's loop on a road; what trains has been set on the model, which is on its device."""

    def __init__(
        self,
        config: StageConfig,
        model: nn.Module,
        road: Road,
        data: PreparedData,
        total_steps: int,
        device: torch.device,
    ) -> None:
        self.config = config
        self.model = model
        self.road = road
        self.data = data
        self.losses = build_losses(config.loss, data.class_counts, total_steps)
        self.words = OccurringWords(model, road, data)
        with self.words.alone():
            self.optimizer = adamw(model, config)
        self.schedule = LinearSchedule(config.learning_rate, total_steps)
        self.runtime = SingleProcess(device)
        self.done = 0

    def steps(self, batches: Sequence[NDArray[np.int64]]) -> float:
        """A step per batch of row numbers; the mean of their losses."""
        set_train_mode(self.model, self.config.frozen_dropout)
        with self.words.alone(self.optimizer):
            loss = _train_span(
                self.config, self.data, self.road, list(batches), self.road.module, self.losses, self.optimizer,
                self.schedule, self.runtime, where="the benchmark", first_step=self.done,
            )  # fmt: skip
        self.done += len(batches)
        return loss
