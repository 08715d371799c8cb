"""A run of each format of a run directory, killed when its version was new: this version reports and resumes it."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.event_files import reports
from support.processes import ROOT, run, tailsweep
from support.recorded_run import NAME, RECORDED
from tailsweep.orchestrator.cli.main import main
from tailsweep.orchestrator.runs.directory import FORMAT_VERSION

FORMATS = list(range(1, FORMAT_VERSION + 1))
METRIC = "validation/macro_f1"


@pytest.fixture
def copied(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return shutil.copytree(RECORDED / f"format-{request.param}", tmp_path / NAME)


def test_there_is_one_of_each_format() -> None:
    assert sorted(path.name for path in RECORDED.iterdir()) == [f"format-{version}" for version in FORMATS]
    for version in FORMATS:
        written = json.loads((RECORDED / f"format-{version}/state/format.json").read_text())
        assert written["format_version"] == version


@pytest.mark.parametrize("copied", FORMATS, indirect=True)
def test_it_is_reported(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(copied)]) == 0
    rows = pq.read_table(copied / "trials.parquet").to_pylist()
    assert [row["state"] for row in rows] == ["completed", "running", "pending"]
    assert f"{rows[0][METRIC]:.4f}" in capsys.readouterr().out


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("copied", FORMATS, indirect=True)
def test_it_is_resumed(copied: Path, ray_temp: str) -> None:
    before = reports(copied)
    status, printed = run(
        *tailsweep("resume", copied), cwd=copied.parent, PYTHONPATH=str(ROOT), RAY_TMPDIR=ray_temp,
        TAILSWEEP_CACHE=str(copied.parent / "cache"),
    )  # fmt: skip
    assert status == 0, printed
    assert [row["state"] for row in pq.read_table(copied / "trials.parquet").to_pylist()] == ["completed"] * 3
    assert reports(copied)[: len(before)] == before
    assert json.loads((copied / "best/metrics.json").read_text())["trial"] in {"t000", "t001", "t002"}
