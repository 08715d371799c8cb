"""A disk that is really full: a sweep on a small filesystem of its own, and again once there is room."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.processes import ROOT, run

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

SMALL, LARGE = "700k", "64m"

# In a mount namespace of its own, so that no one else sees the disk and it ends with the last process.
ON_A_SMALL_DISK = f"""
mount -t tmpfs -o size={SMALL} tmpfs "$1" || exit 99
shift
"$PYTHON" -m tailsweep run "$SWEEP" --storage "$DISK" --set name=full
echo "first: $?"
df --output=avail "$DISK" | tail -1
find "$DISK" -name "*.tmp*" -o -name "*.partial*"
mount -o remount,size={LARGE} "$DISK"
"$PYTHON" -m tailsweep resume "$DISK/full"
echo "second: $?"
cp -r "$DISK/full" "$KEPT"
"""


def _may_mount(folder: Path) -> bool:
    command = ("unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", folder)
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_full_disk_stops_the_sweep_and_with_room_it_continues(
    small_sweep: Callable[..., Path], tmp_path: Path, ray_temp: str
):
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    if not _may_mount(disk):
        pytest.skip("the kernel lets this user mount nothing")
    sweep = small_sweep(
        asha=None, wandb={"mode": "disabled"}, stage_two={"learning_rate": 1e-3, "epochs": 3, "batch_size": 32},
        stage_one={"trainable": "all", "learning_rate": {"grid": [1e-3, 2e-3, 3e-3]}, "epochs": 3},
    )  # fmt: skip
    status, printed = run(
        "unshare", "--mount", "bash", "-c", ON_A_SMALL_DISK, "small-disk", disk,
        timeout=600, PYTHON=sys.executable, SWEEP=str(sweep), DISK=str(disk), KEPT=str(kept), RAY_TMPDIR=ray_temp,
        PYTHONPATH=str(ROOT),
    )  # fmt: skip
    assert status == 0, printed
    first, second = printed.split("first: ")
    assert second.startswith("1\n"), printed
    assert "No space left on device" in first
    assert f"tailsweep resume {disk}/full" in first
    assert "Traceback" not in printed, printed
    assert printed.rstrip().endswith("second: 0")
    states = [row["state"] for row in pq.read_table(kept / "trials.parquet").to_pylist()]
    assert states == ["completed"] * 3
    assert len(pq.read_table(kept / "history.parquet")) == 3 * 6
