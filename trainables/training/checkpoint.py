"""Checkpoints of a trial: one folder per report, JSON and safetensors, no pickle.

It holds the parameters that training has touched so far (in stage one the top only: the frozen trunk is the
pretrained one), the optimizer's moments while its stage continues, and every report made up to then, so that a report
lost between worker and driver can be made again. One of stage two also holds what stage one ended with: that model may
be the better one. Checksums show what was cut short or altered. A trial resumes from the newest checkpoint that is
whole.
"""

import json
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow.fs as pafs
import torch
from safetensors.torch import load_file, save_file
from tailsweep.trainables import report_keys
from tailsweep.trainables.report_keys import STAGES, Stage
from tailsweep.trainables.storage.checksums import checksum_of
from tailsweep.trainables.storage.filesystem import download, open_location
from tailsweep.trainables.storage.json_text import parse_json
from tailsweep.trainables.storage.retry import with_retries
from tailsweep.trainables.training.runtime import Report
from torch import Tensor, nn

PROGRESS_FILE = "progress.json"
PARAMETERS_FILE = "parameters.safetensors"
STAGE_ONE_FILE = "stage_one.safetensors"  # the parameters that stage one had trained when it ended
OPTIMIZER_FILE = "optimizer.safetensors"
CHECKSUMS_FILE = "checksums.json"  # of the others, by name


@dataclass(frozen=True)
class Progress:
    """How far a trial has come: ``epoch`` epochs of ``stage`` are done, as its last report has it."""

    stage: Stage = Stage.ONE
    epoch: int | float = 0  # an int where whole
    reports: tuple[Report, ...] = ()

    @property
    def name(self) -> str:
        """The name of its checkpoint folder."""
        return checkpoint_name(self.stage, self.epoch)


def checkpoint_name(stage: Stage, epoch: float) -> str:
    """Return the name of a checkpoint's folder; names sort in the order of training.

    >>> checkpoint_name(Stage.ONE, 3), checkpoint_name(Stage.ONE, 7 / 3)
    ('stage_one_epoch_003', 'stage_one_epoch_002.333')
    """
    whole = f"{stage}_epoch_{int(epoch):03d}"
    return whole if epoch == int(epoch) else whole + f"{epoch % 1:.{report_keys.EPOCH_DECIMALS}f}".removeprefix("0")


def save_checkpoint(
    folder: Path,
    progress: Progress,
    model: nn.Module,
    trained: set[str],
    optimizer: torch.optim.Optimizer | None,
    stage_one_end: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint into an existing, empty folder.

    Args:
        trained: names of the parameters that some stage has trained so far.
        optimizer: one that knows its parameters' names; not always the model's (see ``sparse_embeddings.py``).
            None at a stage's end, since the next stage starts with a fresh one.
        stage_one_end: of stage two, the parameters that stage one ended with.
    """
    tensors: dict[str, Mapping[str, Tensor]] = {PARAMETERS_FILE: copy_parameters(model, trained)}
    if stage_one_end is not None:
        tensors[STAGE_ONE_FILE] = stage_one_end
    if optimizer is not None:
        tensors[OPTIMIZER_FILE] = {
            f"{key}/{name}": value.detach().cpu().contiguous()
            for name, parameter in _named(optimizer)
            for key, value in optimizer.state.get(parameter, {}).items()
        }
    write_checkpoint(folder, progress, tensors)


def write_checkpoint(
    folder: Path, progress: Progress, tensors: Mapping[str, Mapping[str, Tensor]], **others: object
) -> None:
    """Write tensors by file, how far the trial has come, and the checksums of these, into an empty folder.

    Args:
        folder: it exists.
        progress: of the trial, or of a stack.
        tensors: by the name of their file, each by its name; on the CPU.
        others: what else is written with the progress, plain values.
    """
    for file, content in tensors.items():
        save_file(dict(content), folder / file)
    written = {"stage": progress.stage, "epoch": progress.epoch, "reports": [dict(r) for r in progress.reports]}
    (folder / PROGRESS_FILE).write_text(json.dumps(written | others, indent=1) + "\n", encoding="utf-8")
    checksums = {path.name: checksum_of(path) for path in sorted(folder.iterdir())}
    (folder / CHECKSUMS_FILE).write_text(json.dumps(checksums, indent=1) + "\n", encoding="utf-8")


def is_whole(folder: Path) -> bool:
    """Return whether a checkpoint holds exactly the bytes that were written."""
    try:
        checksums = parse_json((folder / CHECKSUMS_FILE).read_text(encoding="utf-8"))
        return PROGRESS_FILE in checksums and all(
            checksum_of(folder / name) == written for name, written in checksums.items()
        )
    except (OSError, ValueError, TypeError, AttributeError):
        return False


@contextmanager
def newest_checkpoint(locations: Sequence[str]) -> Iterator[tuple[Path | None, list[str]]]:
    """Find the checkpoint to resume from, and the names of newer ones that are damaged.

    Args:
        locations: folders or pyarrow URIs with a checkpoint per folder; an earlier one goes before a later one. They
            need not be there.

    Yields:
        A local folder, a copy where storage is not; None: there is no whole checkpoint.

    Raises:
        StorageError: storage refuses them after all retries.
    """
    damaged: list[str] = []
    with tempfile.TemporaryDirectory(prefix="tailsweep-") as temporary:
        for location in locations:
            filesystem, path = open_location(location)
            selector = pafs.FileSelector(path, allow_not_found=True)
            entries = with_retries(partial(filesystem.get_file_info, selector), location)
            names = [info.base_name for info in entries if info.base_name.startswith(STAGES)]
            for name in sorted(names, key=_place, reverse=True):
                folder = Path(path) / name
                if not isinstance(filesystem, pafs.LocalFileSystem):
                    folder = Path(tempfile.mkdtemp(dir=temporary)) / name  # a parent's may have the same name
                    with_retries(partial(download, filesystem, f"{path}/{name}", folder), location)
                if is_whole(folder):
                    yield folder, damaged
                    return
                damaged.append(name)
        yield None, damaged


def load_progress(folder: Path) -> Progress:
    """Read how far the checkpoint's trial has come."""
    read = parse_json((folder / PROGRESS_FILE).read_text(encoding="utf-8"))
    return Progress(Stage(read["stage"]), read["epoch"], tuple(read["reports"]))


def copy_parameters(model: nn.Module, names: Collection[str]) -> dict[str, Tensor]:
    """Return the parameters of these names, in the memory of the host."""
    return {name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if name in names}


def load_stage_one_end(folder: Path) -> dict[str, Tensor] | None:
    """Return the parameters that stage one ended with, from a checkpoint of stage two; None if it has none."""
    file = folder / STAGE_ONE_FILE
    return load_file(file) if file.is_file() else None


def load_parameters(folder: Path, model: nn.Module, file: str = PARAMETERS_FILE) -> None:
    """Put the checkpoint's parameters into a model built with the same configuration and seed."""
    parameters: dict[str, Tensor] = load_file(folder / file)
    own = dict(model.named_parameters())
    unknown = parameters.keys() - own.keys()
    assert not unknown, f"checkpoint {folder} is of another model: {sorted(unknown)[:3]}"
    with torch.no_grad():
        for name, value in parameters.items():
            own[name].copy_(value)


def load_optimizer(folder: Path, optimizer: torch.optim.Optimizer) -> None:
    """Put the checkpoint's moments into a fresh optimizer over parameters of the same names and shapes."""
    own = dict(_named(optimizer))
    for full_name, value in load_file(folder / OPTIMIZER_FILE).items():
        key, name = full_name.split("/", 1)
        # The fused kernels want the step count where the parameter is, as they made it themselves.
        optimizer.state[own[name]][key] = value.to(own[name].device)


def _place(name: str) -> tuple[int, float]:
    """Return the stage's index and the epoch that a checkpoint's name gives."""
    stage, epoch = name.split("_epoch_")
    return STAGES.index(Stage(stage)), float(epoch)


def _named(optimizer: torch.optim.Optimizer) -> list[tuple[str, Tensor]]:
    """Return the optimizer's parameters with their names."""
    return [
        (name, parameter)
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
    ]
