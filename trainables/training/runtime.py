"""The protocol between the two stages and the process they run in. It keeps the stages free of Ray.

It has a rank, a world size and four methods: place a model, wrap it for data-parallel training, sum over workers,
report.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

Report = Mapping[str, str | int | float | None]


class Runtime(Protocol):
    """The worker that a stage runs on."""

    rank: int
    world_size: int
    device: torch.device

    def place(self, model: nn.Module) -> nn.Module:
        """Move the model to this worker's device."""

    def wrap(self, model: nn.Module) -> nn.Module:
        """Make the placed model average gradients over the workers. Called after the trainable parameters are set."""

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the elementwise sum over the workers, the same on each."""

    def report(self, report: Report, checkpoint: Path | None) -> None:
        """Publish a report with a checkpoint folder (rank 0's; None on the others). Every worker calls it."""


@dataclass
class SingleProcess:
    """A runtime of one process, without Ray. Keeps the reports, and checkpoints below ``folder``."""

    device: torch.device = field(default_factory=lambda: torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    folder: Path | None = None
    reports: list[Report] = field(default_factory=list)
    rank: int = 0
    world_size: int = 1

    def place(self, model: nn.Module) -> nn.Module:
        """Move the model to the device."""
        return model.to(self.device)

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model itself."""
        return model

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the tensor itself."""
        return tensor

    def report(self, report: Report, checkpoint: Path | None) -> None:
        """Keep the report, and copy its checkpoint."""
        self.reports.append(report)
        if self.folder is not None and checkpoint is not None:
            shutil.copytree(checkpoint, self.folder / checkpoint.name, dirs_exist_ok=True)
