"""Processes that train together over gloo, as Ray's workers do, with nothing of Ray."""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from support.forked import started
from tailsweep.trainables.training.runtime import Report
from torch import Tensor, nn

CPU = torch.device("cpu")


@dataclass
class Worker:
    """One of several processes that train together: a ``Runtime`` over torch.distributed alone.

    Keeps the reports, and rank 0 the checkpoints below ``folder`` if there is one.
    """

    rank: int
    world_size: int
    folder: Path | None = None
    reports: list[Report] = field(default_factory=list)
    device: torch.device = CPU

    def place(self, model: nn.Module) -> nn.Module:
        return model

    def wrap(self, model: nn.Module) -> nn.Module:
        return nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)  # as RayRuntime has it

    def sum(self, tensor: Tensor) -> Tensor:
        torch.distributed.all_reduce(tensor)
        return tensor

    def report(self, report: Report, checkpoint: Path | None) -> None:
        from shutil import copytree

        # A report that a checkpoint has in it is made again without one.
        assert checkpoint is None or self.rank == 0
        self.reports.append(report)
        if self.folder is not None and checkpoint is not None:
            copytree(checkpoint, self.folder / checkpoint.name)


def train_together(world_size: int, target: Callable[..., None], *arguments: Any, folder: Path) -> None:
    """Run ``target(rank, world_size, *arguments)`` in as many processes, until all have ended well.

    Args:
        folder: where they find each other; empty.
    """
    folder.mkdir(parents=True, exist_ok=True)
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    meet = (folder / "rendezvous", loopback)
    for process in started(_joined, [(target, rank, world_size, meet, arguments) for rank in range(world_size)]):
        process.join(200)
        assert process.exitcode == 0


def _joined(
    target: Callable[..., None], rank: int, world_size: int, meet: tuple[Path, str], arguments: tuple[Any, ...]
) -> None:
    rendezvous, interface = meet
    os.environ["GLOO_SOCKET_IFNAME"] = interface
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=world_size)
    target(rank, world_size, *arguments)
    torch.distributed.destroy_process_group()
