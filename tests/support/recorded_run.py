"""A run directory as this version of the project leaves it when it is killed: later versions must resume it.

When the format of a run directory changes, record one, and keep those of the formats before:
PYTHONPATH=tests python tests/support/recorded_run.py
"""

import os
import shutil
import tempfile
from pathlib import Path

import yaml
from support.event_files import outcomes, reports
from support.killing import wait_until
from support.processes import kill_family, start, tailsweep
from tailsweep.orchestrator.runs.directory import FORMAT_VERSION

RECORDED = Path(__file__).resolve().parents[1] / "orchestrator" / "runs" / "recorded"
NAME = "recorded"
OF_THIS_MACHINE = ("log.jsonl", "state/lock", "state/holder.json", "state/signature")
NUM_EPOCHS = 9  # of a trial: as many reports

SWEEP = {
    "search": "grid",
    "max_concurrent": 1,
    "asha": None,
    "data": {"train": "rows.csv", "max_length": 40, "validation": 0.2},
    "model": {"name": f"{NAME}/model"},  # in the run directory, so that both can be moved
    "stage_one": {
        "trainable": "head",
        "learning_rate": {"grid": [3e-3, 1e-3, 1e-4]},
        "epochs": 1,
        "batch_size": 4,
    },
    "stage_two": {"learning_rate": 3e-3, "epochs": NUM_EPOCHS - 1, "batch_size": 4},
    "wandb": {"mode": "disabled"},
}


def record(model: Path, rows: Path, folder: Path) -> None:
    """Run the sweep until one trial has ended and another has reported, and kill it; ``folder`` is replaced."""
    with tempfile.TemporaryDirectory(prefix="tsr", dir="/tmp") as temporary:
        work = Path(temporary)
        shutil.copy(rows, work / "rows.csv")
        shutil.copytree(model, work / NAME / "model")
        (work / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
        run = work / "runs" / NAME
        process = start(
            *tailsweep("run", "sweep.yaml", "--set", f"name={NAME}"), cwd=work,
            PYTHONPATH=str(RECORDED.parents[3]), TAILSWEEP_CACHE=str(work / "cache"),
        )  # fmt: skip

        def far_enough() -> bool:
            assert process.poll() is None, process.communicate()[0]
            return len(outcomes(run)) == 1 and len(reports(run)) > NUM_EPOCHS

        try:
            wait_until(far_enough)
        finally:
            if process.poll() is None:
                kill_family(process)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(run, folder)
        shutil.copytree(work / NAME / "model", folder / "model")
        for name in OF_THIS_MACHINE:
            (folder / name).unlink()


if __name__ == "__main__":
    from conftest import _save_tiny_model

    with tempfile.TemporaryDirectory() as temporary:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        _save_tiny_model(Path(temporary) / "model", "distilbert", 0.0)
        written = ["text,label"]
        for label, words in (("fire", "flame smoke"), ("flood", "water rain"), ("quake", "tremor fault")):
            written += [f"{words} at place {number} again,{label}" for number in range(30 if label == "fire" else 12)]
        (Path(temporary) / "rows.csv").write_text("\n".join(written) + "\n")
        record(Path(temporary) / "model", Path(temporary) / "rows.csv", RECORDED / f"format-{FORMAT_VERSION}")
