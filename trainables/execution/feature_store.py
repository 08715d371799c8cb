"""A frozen trunk's outputs for a stage's training rows and validation: made once, content-addressed, memory-mapped.

An entry ``<cache>/features/<key>`` holds one file of numbers per split and ``meta.json``. Its key is a
hash of the trunk's weights, the rows, the tokenizer, the length, the split point and the number format. It appears
whole or not at all, and is never changed. Several processes on several nodes may compute it in parts, each with its
own files; the first to open it joins the parts.
"""

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.fs as pafs
import torch
import xxhash
from filelock import FileLock
from numpy.typing import NDArray
from tailsweep.trainables import report_keys
from tailsweep.trainables.data.tokenized import TOKENS_AT_ONCE, PreparedData, TokenizedExamples, length_batches
from tailsweep.trainables.errors import DataError
from tailsweep.trainables.execution.feature_plan import ITEM_BYTES, Dtype, FeaturePlan, whole_model
from tailsweep.trainables.execution.packing import Packing
from tailsweep.trainables.execution.trunk import SplitPoint, trunk_outputs
from tailsweep.trainables.storage.atomic import replace_folder, sync_to_disk
from tailsweep.trainables.storage.cache import META_FILE, cache_errors
from tailsweep.trainables.storage.checksums import checksum_of
from tailsweep.trainables.storage.filesystem import join_location, open_location
from tailsweep.trainables.storage.json_text import parse_json
from tailsweep.trainables.storage.retry import fetch_remote, with_retries
from torch import Tensor, nn

SPLITS = ("train", "validation")  # "train": whatever the stage trains on
SHARE_OF_GPU = 0.25  # of its free memory, that features may take
ROWS_AT_ONCE = 2048  # that a part is made of: enough to find rows of one length in, few enough for memory
CHECKSUM = ".xxh3"  # the file next to a part's that says what it holds

FeatureArray = NDArray[np.float32 | np.uint16]
# NumPy has no bf16: the file holds 16-bit integers
_NUMPY: dict[str, type[np.float32] | type[np.uint16]] = {"fp32": np.float32, "bf16": np.uint16}
_TORCH = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class PartSet:
    """The parts that an entry is computed in: a folder or pyarrow URI, and how many of each split lie there."""

    location: str
    num_parts: int


@dataclass(frozen=True)
class Features:
    """An entry, opened: the trunk's outputs, (n, H) per split, or (N, H) where the split point is at tokens."""

    key: str
    split_point: SplitPoint
    packed: bool
    train: Tensor
    validation: Tensor
    training_split: str = report_keys.TRAIN  # which rows those of ``train`` are

    @property
    def dtype(self) -> str:
        """``fp32`` or ``bf16``."""
        return "bf16" if self.train.dtype == torch.bfloat16 else "fp32"

    def near(self, device: torch.device) -> "Features":
        """Move the features to the device if it is a GPU with enough free memory; else leave them in the page cache."""
        if device.type != "cuda":
            return self
        free, _ = torch.cuda.mem_get_info(device)
        if self.train.nbytes + self.validation.nbytes > free * SHARE_OF_GPU:
            return self
        return replace(self, train=self.train.to(device), validation=self.validation.to(device))

    def take(self, split: str, indices: NDArray[np.int64], device: torch.device) -> Tensor:
        """Return vectors (B, H), fp32, contiguous, on the device."""
        assert split in (self.training_split, report_keys.VALIDATION), split
        vectors = self.validation if split == report_keys.VALIDATION else self.train
        taken = vectors.index_select(0, torch.from_numpy(indices).to(vectors.device))
        return taken.to(device, non_blocking=True).float()


def make_features(
    plan: FeaturePlan,
    model: nn.Module,
    data: PreparedData,
    cache_dir: Path,
    device: torch.device,
    published: PartSet | None = None,
) -> Features:
    """Return the entry from this machine's cache; one process writes it there first if it is missing or damaged.

    Args:
        published: the parts that :func:`make_part` has written. None, or a place that lacks them: the trunk runs here.

    Raises:
        DataError: the cache cannot be written.
        StorageError: an object store refuses to be read after all retries.
    """
    folder = cache_dir / "features" / plan.key
    with cache_errors(cache_dir):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not is_whole(folder, plan):
                with replace_folder(folder) as partial:
                    if published is None or not _are_there(published):
                        published = PartSet(str(partial), 1)
                        for split in SPLITS:
                            rows = _rows_of_part(plan, data, split, 0, 1)
                            _write_part(plan, model, rows, published.location, _part_name(split, 0, 1), device)
                    _assemble(plan, published, partial)
    return open_features(folder, plan)


def make_part(
    plan: FeaturePlan,
    model: nn.Module,
    data: PreparedData,
    parts: PartSet,
    index: int,
    device: torch.device,
) -> None:
    """Run the trunk for one part of every split, and write its output.

    A part of no rows is an empty file. A part that storage refuses is computed and written again.

    Args:
        parts: where to write, and the number of parts.
        index: of this part, from 0.

    Raises:
        StorageError: storage refuses the part after all retries.
    """
    for split in SPLITS:
        rows = _rows_of_part(plan, data, split, index, parts.num_parts)
        name = _part_name(split, index, parts.num_parts)
        write = functools.partial(_write_part, plan, model, rows, parts.location, name, device)
        with_retries(write, join_location(parts.location, name))


def open_features(folder: Path, plan: FeaturePlan) -> Features:
    """Memory-map an entry. The caller has checked it with :func:`is_whole` or just made it."""
    train, validation = (
        _map(folder / f"{split}.bin", count, plan) for split, count in zip(SPLITS, plan.counts, strict=True)
    )
    return Features(plan.key, plan.split_point, plan.packed, train, validation, plan.training_split)


def is_whole(folder: Path, plan: FeaturePlan) -> bool:
    """Return whether the entry exists, is the plan's, and holds exactly the bytes that were written."""
    try:
        meta = parse_json((folder / META_FILE).read_text(encoding="utf-8"))
        return meta["key"] == plan.key and all(
            meta["checksums"][split] == checksum_of(folder / f"{split}.bin") for split in SPLITS
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _rows_of_part(plan: FeaturePlan, data: PreparedData, split: str, index: int, num_parts: int) -> TokenizedExamples:
    """Return the rows of one part of a split."""
    rows = data.rows_of(plan.training_split if split == report_keys.TRAIN else split)
    first, last = np.linspace(0, len(rows), num_parts + 1).round().astype(int)[index : index + 2].tolist()
    return rows.between(first, last)


def _write_part(
    plan: FeaturePlan, model: nn.Module, rows: TokenizedExamples, location: str, name: str, device: torch.device
) -> None:
    """Write the trunk's outputs for the rows to the file ``name`` in ``location``, and their checksum next to it."""
    filesystem, path = open_location(location)
    model = model.to(device).eval()
    name = f"{path}/{name}"
    digest = xxhash.xxh3_128()
    with filesystem.open_output_stream(name) as stream:
        for start in range(0, len(rows), ROWS_AT_ONCE):
            values = _outputs(plan, model, rows.between(start, min(start + ROWS_AT_ONCE, len(rows))), device)
            digest.update(values.data)
            stream.write(values.data)
    with filesystem.open_output_stream(f"{name}{CHECKSUM}") as stream:  # last: with it, the part is there
        stream.write(digest.hexdigest().encode())


def _outputs(plan: FeaturePlan, model: nn.Module, rows: TokenizedExamples, device: torch.device) -> FeatureArray:
    """Return the trunk's outputs for some rows, in their order: (n, H), or (N, H) if the split point is at tokens."""
    count = int(rows.offsets[-1]) if plan.split_point.per_token else len(rows)
    values = np.empty((count, plan.width), _NUMPY[plan.dtype])
    for batch, outputs in _trunk_batches(plan, model, rows, device):
        values[rows.positions(batch) if plan.split_point.per_token else batch] = _as_numpy(outputs, plan.dtype)
    return values


def _trunk_batches(
    plan: FeaturePlan, model: nn.Module, rows: TokenizedExamples, device: torch.device
) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
    """Batches of rows, each with the trunk's outputs: (B, H), or the states of its tokens end to end, (N, H)."""
    with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=plan.dtype == "bf16"):
        for batch in length_batches(rows.lengths, TOKENS_AT_ONCE[device.type]):
            outputs = trunk_outputs(model, plan.split_point, whole_model(model, rows, batch, plan.packed, device))
            if plan.split_point.per_token:
                outputs = outputs.flatten(0, 1)
                if not plan.packed:
                    outputs = outputs.index_select(0, Packing.from_lengths(rows.lengths[batch], device).slots)
            yield batch, outputs


def _are_there(parts: PartSet) -> bool:
    filesystem, path = open_location(parts.location)
    files = [_part_name(split, i, parts.num_parts) for split in SPLITS for i in range(parts.num_parts)]
    names = [f"{path}/{file}{CHECKSUM}" for file in files]
    infos = fetch_remote(filesystem, lambda: filesystem.get_file_info(names), parts.location)
    return all(info.type == pafs.FileType.File for info in infos)


def _assemble(plan: FeaturePlan, published: PartSet, folder: Path) -> None:
    """Join the parts in ``folder``.

    Raises:
        DataError: a part is not as it was written.
    """
    filesystem, path = open_location(published.location)
    checksums = {}
    for split, count in zip(SPLITS, plan.counts, strict=True):
        target = folder / f"{split}.bin"
        if path == str(folder):  # made here, in one part
            only_part = folder / _part_name(split, 0, 1)
            only_part.rename(target)
            written = Path(f"{only_part}{CHECKSUM}")
            checksums[split] = written.read_text(encoding="ascii")
            written.unlink()
        else:
            parts = [_part_name(split, index, published.num_parts) for index in range(published.num_parts)]
            checksums[split] = fetch_remote(
                filesystem, functools.partial(_join, filesystem, path, parts, target), published.location
            )
        assert target.stat().st_size == count * plan.width * ITEM_BYTES[plan.dtype], "parts of other rows"
        sync_to_disk(target)
    meta = {
        "key": plan.key,
        "split_point": str(plan.split_point),
        "dtype": plan.dtype,
        "width": plan.width,
        "checksums": checksums,
    }
    (folder / META_FILE).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    sync_to_disk(folder / META_FILE)


def _join(filesystem: pafs.FileSystem, path: str, parts: list[str], target: Path) -> str:
    """Parts one after the other into one file; returns its checksum."""
    whole = xxhash.xxh3_128()
    with target.open("wb") as file:
        for part in parts:
            own = xxhash.xxh3_128()
            with filesystem.open_input_stream(f"{path}/{part}") as stream:
                while piece := stream.read(1 << 24):
                    own.update(piece)
                    whole.update(piece)
                    file.write(piece)
            with filesystem.open_input_stream(f"{path}/{part}{CHECKSUM}") as stream:
                written = str(stream.read(), "ascii")
            if own.hexdigest() != written:
                raise DataError(
                    f'the features in "{path}" are damaged: {part} is not as it was written; run again, which makes '
                    "them anew"
                )
    return whole.hexdigest()


def _part_name(split: str, part: int, num_parts: int) -> str:
    return f"{split}-{part:04d}-of-{num_parts:04d}.bin"


def _as_numpy(outputs: Tensor, dtype: Dtype) -> FeatureArray:
    converted = outputs.to(_TORCH[dtype]).cpu()
    return (converted.view(torch.uint16) if dtype == "bf16" else converted).numpy()


def _map(path: Path, count: int, plan: FeaturePlan) -> Tensor:
    # Copy-on-write: PyTorch wants writable memory, and nothing writes to it.
    mapped = np.memmap(path, dtype=_NUMPY[plan.dtype], mode="c", shape=(count, plan.width))
    tensor = torch.from_numpy(mapped)
    return tensor.view(torch.bfloat16) if plan.dtype == "bf16" else tensor
