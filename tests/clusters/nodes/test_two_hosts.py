"""The demo sweep, submitted from outside to a Ray of three hosts with networks and files of their own."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

pytestmark = [pytest.mark.network, pytest.mark.timeout(3600)]

ALONE = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A short path: Ray makes sockets below it, whose paths may have 107 characters."""
    path = Path(tempfile.mkdtemp(prefix="tsh", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def answer(folder: Path) -> dict[str, Any]:
    try:
        allowed = subprocess.run(
            (*ALONE, "ip", "link", "add", "name", "tried", "type", "veth"), capture_output=True, text=True
        )
    except FileNotFoundError as error:
        pytest.skip(f"{error.filename} is not installed")
    if allowed.returncode != 0:
        pytest.skip(f"no network namespaces here: {allowed.stderr.strip()}")
    program = Path(__file__).resolve().parents[2] / "support" / "two_hosts.py"
    done = subprocess.run((*ALONE, sys.executable, program, folder), stdout=subprocess.PIPE, text=True)
    print(done.stdout)
    assert done.returncode == 0
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def states(folder: Path, name: str) -> set[str]:
    return {row["state"] for row in pq.read_table(folder / "shared/runs" / name / "trials.parquet").to_pylist()}


def test_the_demo_runs_to_its_end_over_two_hosts(answer: dict[str, Any], folder: Path):
    assert answer["whole"]["status"] == 0
    assert "chosen by validation/macro_f1: t0" in answer["whole"]["printed"]
    assert states(folder, "whole") <= {"pruned", "completed"}
    assert (folder / "shared/runs/whole/best/model.safetensors").stat().st_size > 50_000_000


def test_each_host_worked_with_files_of_its_own(answer: dict[str, Any], folder: Path):
    for host in ("first", "second"):
        assert answer["files"][host]["cache"] == ["features", "tokens"]
        assert answer["files"][host]["jobs"], "the upload was not unpacked there"
    assert not any((folder / "own").iterdir()), "own disks are seen from outside"


def test_a_host_cut_off_in_mid_sweep_does_not_end_the_sweep(answer: dict[str, Any], folder: Path):
    assert answer["cut"]["status"] == 0
    assert "continues from its last checkpoint" in answer["cut"]["printed"], "nothing was lost with the host"
    assert states(folder, "cut") <= {"pruned", "completed"}
    whole, interrupted = (pq.read_table(folder / "shared/runs" / name / "trials.parquet") for name in ("whole", "cut"))
    assert len(whole) == len(interrupted)
