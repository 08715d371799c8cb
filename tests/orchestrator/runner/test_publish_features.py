"""Features that cannot be made end the sweep with one clear message, and what is left can be resumed."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tailsweep.orchestrator.cli.main import main
from tailsweep.orchestrator.runner import publish_features

pytestmark = [pytest.mark.ray, pytest.mark.xdist_group("ray_phases")]


def test_a_part_that_cannot_be_written_ends_the_sweep_and_says_what_to_do(
    local_ray: None,
    small_sweep: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full_disk(*arguments: object) -> None:
        import time

        from tailsweep.trainables.errors import DataError

        index = arguments[-1]
        if index == 1:
            time.sleep(600)  # is ended with the first
        raise DataError("cannot write the features: No space left on device")

    monkeypatch.setattr(publish_features, "_make_one_part", full_disk)
    sweep = small_sweep(
        promote=1, stage_one={"trainable": "head", "learning_rate": {"grid": [1e-3, 1e-4]}, "epochs": 2}
    )
    assert main(["run", str(sweep), "--storage", str(tmp_path), "--set", "name=full"]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("tailsweep: making features: pooled vectors, 0 MB: cannot write the features: No space")
    assert f"continue by `tailsweep resume {tmp_path}/full`" in message
    assert not (tmp_path / "full" / "trials.parquet").exists()
    assert (tmp_path / "full" / "environment.json").exists()
