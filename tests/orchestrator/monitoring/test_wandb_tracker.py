"""What W&B wrote offline, read back and compared with what was logged: nothing missing, nothing more, no secret."""

import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import wandb
from support.wandb_files import LoggedRun, read_runs
from tailsweep.orchestrator.config.sweep import WandbConfig
from tailsweep.orchestrator.monitoring.wandb_tracker import (
    Tracker,
    flatten,
    logged_values,
    run_id,
    settings_of,
    sync_command,
)

pytestmark = [pytest.mark.thorough, pytest.mark.xdist_group("wandb_tracker")]

SECRET = "hush-3f1c5e7a9b"
SWEEP = "a-sweep.1"
W_AND_BS_OWN = {"_step", "_runtime", "_timestamp"}


def report(stage: str, epoch: int, **more: Any) -> dict[str, Any]:
    """A history row with awkward numbers: full precision, an integral float, tiny, negative, and a missing score."""
    return {
        "trial": "c00x",
        "stage": stage,
        "epoch": epoch,
        "train/loss": 1 / 3 / epoch,
        "train/learning_rate": 1.2345678901234567e-19,
        "train/rows": 649,
        "validation/macro_f1": 0.1 * epoch + 0.2,
        "validation/mcc": -1.0,
        "validation/recall_few": None,
        "validation/f1/a label/with % signs": 0.0,
        "seconds": 1.0,
        **({"stage_one_epoch": epoch} if stage == "stage_one" else {}),
        **more,
    }


HISTORIES = {
    "t000": [report("stage_one", 1), report("stage_one", 2), report("stage_two", 1), report("stage_two", 2)],
    "t001": [report("stage_one", 1)],
    "t002": [report("stage_one", 1), report("stage_one", 2), report("stage_two", 1)],
    "t003": [report("stage_one", 1)],
}
SUMMARIES: dict[str, dict[str, Any]] = {
    "t000": {"state": "completed", "reason": "all its epochs are done", "rung": 1, "best/validation/macro_f1": 0.4},
    "t001": {"state": "pruned", "reason": "below the 0.52 that rung 0 asked for", "rung": 0},
    "t002": {"state": "completed", "reason": "all its epochs are done", "rung": None, "best/validation/macro_f1": 0.3},
    "t003": {"state": "failed", "reason": "TrainingDiverged: the loss is nan", "rung": None},
}
TRIAL = {
    "data": {"train": "rows.csv", "validation": 0.15, "imbalance": None},
    "stage_one": {"trainable": {"top_layers": 1}, "learning_rate": 0.0003165704071668803, "epochs": 2},
    "seed": 0,
}
SETTINGS = settings_of(
    TRIAL, {"stage_one.learning_rate": 0.0003165704071668803, "stage_one.trainable": {"top_layers": 1}}
)


@dataclass(frozen=True)
class Tracked:
    folder: Path
    runs: dict[str, LoggedRun]

    def logged(self, trial: str) -> LoggedRun:
        return self.runs[run_id(SWEEP, trial)]


@pytest.fixture(scope="module", autouse=True)
def w_and_b_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """W&B's service process belongs to this module, and its logs do not go to the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        wandb.teardown()
        yield
        wandb.teardown()


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Tracked:
    """The W&B files of a sweep that was interrupted once: t002 had two reports then, and continued after."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TAILSWEEP_TEST_TOKEN", SECRET)
        patch.setenv("WANDB_API_KEY", SECRET * 4)
        patch.setenv("WANDB_CACHE_DIR", str(folder / "cache"))
        patch.setattr(sys, "argv", ["tailsweep", "run", f"--token={SECRET}"])
        wandb.teardown()  # a service started before would know nothing of these
        first, second = (Tracker(WandbConfig(tags=["imbalance"]), SWEEP, folder) for _ in range(2))
        for name in ("t000", "t001", "t002"):  # three at once
            first.start(name, SETTINGS, [])
        for row in HISTORIES["t000"][:3]:
            first.log("t000", row)
            first.start("t000", SETTINGS, HISTORIES["t000"])  # a restarted trial: its run is open, nothing happens
        first.log("t000", HISTORIES["t000"][3])
        first.finish("t000", SUMMARIES["t000"])
        first.log("t001", HISTORIES["t001"][0])
        first.finish("t001", SUMMARIES["t001"])
        for row in HISTORIES["t002"][:2]:
            first.log("t002", row)
        first.close()

        second.start("t003", SETTINGS, [])
        second.log("t003", HISTORIES["t003"][0])
        second.finish("t003", SUMMARIES["t003"])
        second.start("t002", SETTINGS, HISTORIES["t002"][:2])
        second.log("t002", HISTORIES["t002"][2])
        second.finish("t002", SUMMARIES["t002"])
        second.finish("t999", {"state": "failed"})  # never opened: nothing to close
        second.finish_sweep({"stage_one.epochs": 2}, {"chosen": "t000", "test/macro_f1": 0.75, "test/recall_few": None})
        second.close()
        wandb.teardown()
    return Tracked(folder, read_runs(folder))


def test_there_is_one_run_per_trial_and_one_for_the_sweep(tracked: Tracked) -> None:
    assert set(tracked.runs) == {f"a-sweep.1-{name}" for name in ("t000", "t001", "t002", "t003", "sweep")}
    for name in HISTORIES:
        run = tracked.logged(name)
        assert (run.project, run.group, run.job_type) == ("tailsweep", SWEEP, "trial")
        assert (run.name, run.tags) == (f"{SWEEP}/{name}", ["imbalance"])


@pytest.mark.parametrize("trial", HISTORIES)
def test_every_value_reported_is_there_once_and_no_other(tracked: Tracked, trial: str) -> None:
    """t000 was completed, t001 pruned, t002 interrupted and resumed, t003 failed."""
    run, history = tracked.logged(trial), HISTORIES[trial]
    assert run.steps == list(range(len(history)))
    for row, logged in zip(history, run.history, strict=True):
        stage = row["stage"]
        unsaid = {"trial", "stage", "stage_one_epoch"}
        expected = {f"{stage}/{key}": value for key, value in row.items() if key not in unsaid and value is not None}
        assert {key: value for key, value in logged.items() if key not in W_AND_BS_OWN} == expected
        assert set(logged) >= W_AND_BS_OWN


def test_each_stage_is_drawn_over_its_own_epochs(tracked: Tracked) -> None:
    for name in HISTORIES:
        assert tracked.logged(name).step_axes == {"stage_one/*": "stage_one/epoch", "stage_two/*": "stage_two/epoch"}


def test_config_is_the_trials_under_dotted_names_and_what_was_swept(tracked: Tracked) -> None:
    for name in HISTORIES:
        config = tracked.logged(name).config
        assert {key: value for key, value in config.items() if key != "_wandb"} == {
            "data.train": "rows.csv",
            "data.validation": 0.15,
            "data.imbalance": None,
            "stage_one.trainable.top_layers": 1,
            "stage_one.learning_rate": 0.0003165704071668803,
            "stage_one.epochs": 2,
            "seed": 0,
            "swept": {"stage_one.learning_rate": 0.0003165704071668803, "stage_one.trainable": {"top_layers": 1}},
        }


@pytest.mark.parametrize("trial", HISTORIES)
def test_summary_has_state_reason_and_rung_next_to_the_last_values(tracked: Tracked, trial: str) -> None:
    summary = tracked.logged(trial).summary
    last: dict[str, Any] = {}
    for row in tracked.logged(trial).history:
        last |= row
    said = {key: value for key, value in SUMMARIES[trial].items() if value is not None}
    assert {key: value for key, value in summary.items() if not key.startswith("_")} == {
        **{key: value for key, value in last.items() if not key.startswith("_")},
        **said,
    }


def test_exit_codes_tell_failure_from_an_end_of_any_other_kind(tracked: Tracked) -> None:
    codes = {name: tracked.logged(name).exit_codes for name in HISTORIES}
    assert codes == {"t000": [0], "t001": [0], "t002": [0], "t003": [1]}


def test_the_sweeps_run_names_the_chosen_trial_and_its_test_scores(tracked: Tracked) -> None:
    run = tracked.logged("sweep")
    assert (run.group, run.job_type, run.name) == (SWEEP, "sweep", f"{SWEEP}/sweep")
    assert run.config["stage_one.epochs"] == 2
    assert {key: value for key, value in run.summary.items() if not key.startswith("_")} == {
        "chosen": "t000",
        "test/macro_f1": 0.75,
    }
    assert run.history == []


def test_nothing_of_the_processs_environment_or_arguments_is_written(tracked: Tracked) -> None:
    written = [path for path in tracked.folder.rglob("*") if path.is_file()]
    assert sum(path.suffix == ".wandb" for path in written) >= 5
    assert not [path for path in written if SECRET.encode() in path.read_bytes() or SECRET in path.name]
    for run in tracked.runs.values():
        for folder in run.folders:
            assert not (folder / "files" / "wandb-metadata.json").exists(), "it holds arguments, user and host"


def test_the_printed_command_finds_every_run(tracked: Tracked) -> None:
    """With W&B's own command line: its options change (0.31 refuses ``--sync-all``)."""
    command = sync_command(str(tracked.folder / "wandb"))
    assert command == f"wandb sync {tracked.folder}/wandb"
    arguments = [sys.executable, "-m", *command.split(), "--dry-run"]
    environment = os.environ | {"WANDB_MODE": "offline"}
    done = subprocess.run(
        arguments, capture_output=True, text=True, check=True, env=environment, cwd=tracked.folder
    )  # a log of its own goes to the current folder
    assert "Would sync 5 run(s)" in done.stdout + done.stderr


def test_a_folder_with_spaces_is_quoted_in_the_command() -> None:
    assert sync_command("/runs/my sweep/wandb") == "wandb sync '/runs/my sweep/wandb'"


KILLED = """
import os, signal, sys
from pathlib import Path
from tailsweep.orchestrator.config.sweep import WandbConfig
from tailsweep.orchestrator.monitoring.wandb_tracker import Tracker
tracker = Tracker(WandbConfig(), "killed", Path(sys.argv[1]))
tracker.start("t000", {}, [])
for epoch in (1, 2):
    tracker.log("t000", {"stage": "stage_one", "epoch": epoch, "train/loss": 1.0})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_after_a_kill_the_resumed_run_has_every_step_once(tmp_path: Path) -> None:
    """W&B had not written the two reports when the process died, but the sweep's history had them."""
    died = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert read_runs(tmp_path) == {} or len(read_runs(tmp_path)["killed-t000"].history) < 2
    history = [{"stage": "stage_one", "epoch": epoch, "train/loss": 1.0} for epoch in (1, 2)]
    tracker = Tracker(WandbConfig(), "killed", tmp_path)
    tracker.start("t000", {}, history)
    tracker.log("t000", {"stage": "stage_two", "epoch": 1, "train/loss": 0.5})
    tracker.close()
    run = read_runs(tmp_path)["killed-t000"]
    assert run.steps == [0, 1, 2]
    assert [row.get("stage_one/epoch", row.get("stage_two/epoch")) for row in run.history] == [1, 2, 1]
    assert run.exit_codes == [1]


ENDED = """
import sys
from pathlib import Path
import psutil
from tailsweep.orchestrator.config.sweep import WandbConfig
from tailsweep.orchestrator.monitoring.log_output import terminal_output
from tailsweep.orchestrator.monitoring.wandb_tracker import Tracker
tracker = Tracker(WandbConfig(), "ended", Path(sys.argv[1]))
tracker.start("t000", {}, [])
tracker.log("t000", {"stage": "stage_one", "epoch": 1, "train/loss": 1.0})
of_wandb = psutil.Process().children(recursive=True)
for process in of_wandb:
    process.terminate()
psutil.wait_procs(of_wandb)
with terminal_output():
    tracker.close()
print("closed")
"""


def test_where_a_job_is_ended_with_all_its_processes_closing_does_not_fail(tmp_path: Path) -> None:
    """Ray's job server and Slurm send SIGTERM to W&B's own process too."""
    ended = subprocess.run([sys.executable, "-c", ENDED, str(tmp_path)], capture_output=True, text=True, check=False)
    said, closed = ended.stdout.splitlines()
    assert (ended.returncode, closed) == (0, "closed"), ended.stderr
    assert said.startswith("W&B's own process was ended (")
    assert said.endswith("its files may lack the last steps; `tailsweep resume` makes them whole")
    (folder,) = (tmp_path / "wandb").glob("*run-*-ended-t000")
    assert folder.name.startswith("offline-run-")


def test_resuming_does_not_change_the_runs_of_other_trials(tmp_path: Path) -> None:
    for name in ("t001", "t0010"):
        tracker = Tracker(WandbConfig(), "demo", tmp_path)
        tracker.start(name, {}, [])
        tracker.close()
    before = set((tmp_path / "wandb").glob("offline-run-*-demo-t0010"))
    assert len(before) == 1
    tracker = Tracker(WandbConfig(), "demo", tmp_path)
    tracker.start("t001", {}, [])
    tracker.close()
    assert set((tmp_path / "wandb").glob("offline-run-*-demo-t0010")) == before
    assert set(read_runs(tmp_path)) == {"demo-t001", "demo-t0010"}
    assert len(read_runs(tmp_path)["demo-t001"].folders) == 1


def test_disabled_writes_nothing(tmp_path: Path) -> None:
    tracker = Tracker(WandbConfig(mode="disabled"), SWEEP, tmp_path)
    tracker.start("t000", SETTINGS, [report("stage_one", 1)])
    tracker.log("t000", report("stage_one", 2))
    tracker.finish("t000", SUMMARIES["t000"])
    tracker.start("t001", SETTINGS, [])
    tracker.finish_sweep({}, {"chosen": "t000"})
    tracker.close()
    assert list(tmp_path.rglob("*")) == []


def test_what_is_logged_is_named_by_its_stage_and_a_missing_score_is_left_out() -> None:
    row = {"trial": "t000", "stage": "stage_two", "epoch": 3, "validation/mcc": 0.0, "validation/recall_few": None}
    assert logged_values(row) == {"stage_two/epoch": 3, "stage_two/validation/mcc": 0.0}


@pytest.mark.parametrize(
    ("sweep", "trial", "expected"), [("demo-2026", "t000", "demo-2026-t000"), ("a b/c:d", "c1", "a-b-c-d-c1")]
)
def test_run_ids_are_fixed_and_hold_no_character_wandb_refuses(sweep: str, trial: str, expected: str) -> None:
    assert run_id(sweep, trial) == expected


def test_flatten_goes_into_mappings_only() -> None:
    tree = {"a": {"b": {"c": 1}, "d": [{"e": 2}]}, "f": None, "g": math.inf}
    assert flatten(tree) == {"a.b.c": 1, "a.d": [{"e": 2}], "f": None, "g": math.inf}


# --- many runs, and what W&B raises


def test_only_so_many_runs_are_open_and_each_is_whole(tmp_path: Path) -> None:
    tracker = Tracker(WandbConfig(), SWEEP, tmp_path)
    tracker.max_open = 2
    names = [f"t{number:03d}" for number in range(5)]
    histories: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for row in HISTORIES["t000"][:3]:
        for name in names:
            tracker.start(name, SETTINGS, histories[name])
            histories[name].append(row)
            tracker.log(name, row)
            assert len(tracker._runs) <= 2
    for name in names:
        tracker.start(name, SETTINGS, histories[name])
        tracker.finish(name, SUMMARIES["t000"])
    tracker.close()
    runs = read_runs(tmp_path / "wandb")
    assert {run_id(SWEEP, name): list(range(3)) for name in names} == {key: run.steps for key, run in runs.items()}


def test_a_run_leaves_one_file(tmp_path: Path) -> None:
    tracker = Tracker(WandbConfig(), SWEEP, tmp_path)
    for name in ("t000", "t001"):
        tracker.start(name, SETTINGS, HISTORIES["t000"])
        tracker.finish(name, SUMMARIES["t000"])
    tracker.close()
    assert sorted(path.name for path in tmp_path.rglob("*") if not path.is_dir()) == [
        f"run-{run_id(SWEEP, name)}.wandb" for name in ("t000", "t001")
    ]


def test_the_bound_follows_the_descriptors_that_the_process_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    for soft, expected in ((512, 32), (256, 16), (8, 1), (1 << 20, 64), (resource.RLIM_INFINITY, 64)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        assert Tracker(WandbConfig(), SWEEP, Path()).max_open == expected


@pytest.mark.parametrize("where", ["init", "log", "summary", "finish"])
def test_what_wandb_raises_offline_costs_its_log_and_is_said_once(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing:
        step, offline, dir = 0, True, str(tmp_path / "run" / "files")

        def __getattribute__(self, name: str) -> Any:
            if name == where:
                raise OSError(24, "Too many open files")
            if name in ("define_metric", "log", "finish"):
                return lambda *_, **__: None
            return {} if name == "summary" else object.__getattribute__(self, name)

    def init(**_: object) -> Failing:
        if where == "init":
            raise OSError(24, "Too many open files")
        return Failing()

    monkeypatch.setattr(wandb, "init", init)
    tracker = Tracker(WandbConfig(), SWEEP, tmp_path)
    for _ in range(2):
        tracker.start("t000", SETTINGS, [])
        tracker.log("t000", HISTORIES["t000"][0])
        tracker.finish("t000", SUMMARIES["t000"])
    tracker.finish_sweep({}, {})
    said = [record.message for record in caplog.records if "W&B" in record.message]
    if where != "finish":  # which offline is no loss: the values are in the file
        assert len(said) == 1
        assert "W&B has failed ([Errno 24] Too many open files) and logs no more of this sweep" in said[0]
