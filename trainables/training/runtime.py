"""What the two stages need of the world around them, so that they need know nothing of Ray.

Rank and world size, and four verbs: place a model, wrap it for data-parallel training, sum over workers, report.
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
    rank: int
    world_size: int
    device: torch.device

    def place(self, model: nn.Module) -> nn.Module:
        """The model on this worker's device."""

    def wrap(self, model: nn.Module) -> nn.Module:
        """The placed model, made to average gradients over the workers. Called once what trains is settled."""

    def sum(self, tensor: Tensor) -> Tensor:
        """Elementwise sum over the workers, the same on each."""

    def report(self, report: Report, checkpoint: Path | None) -> None:
        """Hand on what was measured, with a checkpoint folder (rank 0's; None on the others). Every worker calls it."""


@dataclass
class SingleProcess:
    """One process, no Ray. Keeps the reports, and the checkpoints below ``folder`` if there is one."""

    device: torch.device = field(default_factory=lambda: torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    folder: Path | None = None
    reports: list[Report] = field(default_factory=list)
    rank: int = 0
    world_size: int = 1

    def place(self, model: nn.Module) -> nn.Module:
        return model.to(self.device)

    def wrap(self, model: nn.Module) -> nn.Module:
        return model

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor

    def report(self, report: Report, checkpoint: Path | None) -> None:
        self.reports.append(report)
        if self.folder is not None and checkpoint is not None:
            shutil.copytree(checkpoint, self.folder / checkpoint.name, dirs_exist_ok=True)
