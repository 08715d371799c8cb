"""Reads back what W&B wrote offline: for tests that compare it with what was logged, value by value.

A ``.wandb`` file is a header of 7 bytes and a log as LevelDB writes it (blocks of 32 KiB; a record that does not fit
is cut into a first, middle and last piece), whose records are protobuf ``Record`` of W&B's ``wandb_internal.proto``.
W&B 0.31 has no public reader of it. Every run makes a folder of its own, a resumed one a second folder of the same id.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

FILE_HEADER = struct.Struct("<4sHB")
BLOCK_SIZE = 32 * 1024  # bytes; the file header counts to the first block
PIECE_HEADER = struct.Struct("<IHB")  # checksum of kind and content, length of the content, kind
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class LoggedRun:
    """All that the folders of one run id hold, in the order they were begun."""

    folders: list[Path] = field(default_factory=list)
    project: str = ""
    group: str = ""
    job_type: str = ""
    name: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)  # later folders over earlier ones
    history: list[dict[str, Any]] = field(default_factory=list)  # every row of every folder, W&B's own keys included
    summary: dict[str, Any] = field(default_factory=dict)  # what was set, and the last of what was logged
    step_axes: dict[str, str] = field(default_factory=dict)  # metric, or glob of metrics -> the metric it is drawn over
    exit_codes: list[int] = field(default_factory=list)  # of the folders that were closed

    @property
    def steps(self) -> list[int]:
        return [row["_step"] for row in self.history]


def read_runs(folder: Path) -> dict[str, LoggedRun]:
    """Every run written below ``folder``, by its id; the folders of one id are one run."""
    runs: dict[str, LoggedRun] = {}
    for file in sorted(folder.rglob("*.wandb")):  # their folders are named by the time they were begun
        run = LoggedRun()
        for record in read_records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                run = runs.setdefault(record.run.run_id, run)
                if file.parent not in run.folders:
                    run.folders.append(file.parent)
            _take_up(run, kind, record)
    return runs


def read_records(file: Path) -> Iterator[wandb_internal_pb2.Record]:
    """The records of one file, in order; what a killed process left half written at the end is left out."""
    content = file.read_bytes()
    ident, magic, version = FILE_HEADER.unpack_from(content)
    assert (ident, magic, version) == (b":W&B", 0xBEE1, 0), f"{file} is no W&B file of a version known here"
    at = FILE_HEADER.size
    pieces = b""
    while at + PIECE_HEADER.size <= len(content):
        remaining = BLOCK_SIZE - at % BLOCK_SIZE
        if remaining < PIECE_HEADER.size:  # too short for a piece: zeros up to the next block
            at += remaining
            continue
        checksum, length, kind = PIECE_HEADER.unpack_from(content, at)
        piece = content[at + PIECE_HEADER.size : at + PIECE_HEADER.size + length]
        if len(piece) < length:
            return
        assert checksum == zlib.crc32(bytes([kind]) + piece), f"{file} is damaged at byte {at}"
        at += PIECE_HEADER.size + length
        pieces = piece if kind in (WHOLE, FIRST) else pieces + piece
        if kind in (WHOLE, LAST):
            yield wandb_internal_pb2.Record.FromString(pieces)


def _take_up(run: LoggedRun, kind: str, record: wandb_internal_pb2.Record) -> None:
    if kind == "run":
        run.project, run.group, run.job_type = record.run.project, record.run.run_group, record.run.job_type
        run.name, run.tags = record.run.display_name, list(record.run.tags)
        run.config |= _values(record.run.config.update)
    elif kind == "config":
        run.config |= _values(record.config.update)
    elif kind == "history":
        run.history.append(_values(record.history.item))
    elif kind == "summary":
        run.summary |= _values(record.summary.update)
    elif kind == "metric" and record.metric.step_metric:
        run.step_axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric
    elif kind == "exit":
        run.exit_codes.append(record.exit.exit_code)


def _values(items: Any) -> dict[str, Any]:
    """Items of a config, a history row or a summary: a key, or the path of one inside mappings, and JSON."""
    tree: dict[str, Any] = {}
    for item in items:
        *above, key = item.nested_key or [item.key]
        below = tree
        for step in above:
            below = below.setdefault(step, {})
        below[key] = json.loads(item.value_json)
    return tree
