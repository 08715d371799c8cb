"""A run of each format of a run directory, killed when its version was new: this version reports and resumes it."""

import json
import os
import shutil
from collections.abc import Callable
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


def _named_pipe(path: Path) -> None:
    os.mkfifo(path)


def _link_to_itself(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize("kind", [Path.mkdir, _named_pipe, _link_to_itself])
@pytest.mark.parametrize("file", ["sweep.yaml", "environment.json", "state/format.json", "state/trials.json"])
@pytest.mark.parametrize("copied", [FORMAT_VERSION], indirect=True)
def test_what_is_in_a_file_s_place_and_is_none_is_named(
    copied: Path, file: str, kind: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / file).unlink()
    kind(copied / file)
    for command in ("report", "resume"):
        assert main([command, str(copied)]) == 2
        assert file in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[" * 100_000, "null", "[1]", "1e999", "\0" * 100, ""])
@pytest.mark.parametrize("file", ["sweep.yaml", "environment.json", "state/format.json", "state/trials.json"])
@pytest.mark.parametrize("copied", [FORMAT_VERSION], indirect=True)
def test_a_file_of_other_content_is_named(
    copied: Path, file: str, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / file).write_text(content)
    for command in ("report", "resume"):
        assert main([command, str(copied)]) == 2
        said = capsys.readouterr().err
        assert file in said
        assert len(said) < 2000


@pytest.mark.parametrize("copied", [FORMAT_VERSION], indirect=True)
def test_a_report_by_another_metric_than_the_run_s_is_refused(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = (copied / "sweep.yaml").read_text()
    (copied / "sweep.yaml").write_text(written.replace("metric: validation/macro_f1", "metric: validation/mcc"))
    assert main(["report", str(copied)]) == 2
    assert "sweep.yaml is not as it was when the run began" in capsys.readouterr().err
