"""Each file of a finished run removed in turn: `report` and `resume` name it, or what they give is the same."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tailsweep.orchestrator.cli.main import main

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.xdist_group("ray_sweeps")]

MADE_AGAIN = ("trials.parquet", "history.parquet", "report.html", "best/")
OF_NO_CONSEQUENCE = ("state/lock", "state/holder.json", "state/seal.json", "log.jsonl", "predictions/", "wandb/")


@pytest.mark.filterwarnings("ignore")
def test_each_file_removed_is_named_or_harmless(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], small_sweep: Callable[..., Path]
) -> None:
    expected = pq.read_table(finished / "trials.parquet").to_pylist()
    files = sorted(path.relative_to(finished) for path in finished.rglob("*") if path.is_file())
    named, harmless = set(), set()
    for file in files:
        run = tmp_path / finished.name
        shutil.copytree(finished, run, symlinks=True)
        (run / file).unlink()
        for command in ("report", "resume"):
            kept = {path.relative_to(run) for path in run.rglob("*") if path.is_file()}
            status = main([command, str(run)])
            said = capsys.readouterr()
            assert "Traceback" not in said.out + said.err, file
            if status == 2:
                assert file.name in said.err or "missing" in said.err, (file, said.err)
                after = {path.relative_to(run) for path in run.rglob("*") if path.is_file()}
                assert {path for path in kept - after if path.suffix != ".tmp"} == set(), (file, kept - after)
                named.add(str(file))
            else:
                assert status == 0, (file, said)
                assert pq.read_table(run / "trials.parquet").to_pylist() == expected, file
                harmless.add(str(file))
        if any(str(file).startswith(name) for name in MADE_AGAIN):
            assert (run / file).exists(), file
        shutil.rmtree(run)
    # Without it, `resume` asks for the paths again; `report` reads none.
    assert named & harmless == {"state/signature"}
    assert {"sweep.yaml", "environment.json", "state/trials.json", "state/format.json"} <= named
    assert any(name.startswith("state/events/") for name in named)
    expected_harmless = (*MADE_AGAIN, *OF_NO_CONSEQUENCE, "state/checkpoints/", "state/data/", "state/signature")
    assert all(name.startswith(expected_harmless) for name in harmless), harmless
