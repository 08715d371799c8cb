"""The command line: its arguments, and that wrong input is one message and exit status 2, never a traceback."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tailsweep.orchestrator.cli import main as command_line
from tailsweep.orchestrator.cli.main import build_parser, main
from tailsweep.trainables.data.sources import DataError
from tailsweep.trainables.errors import InputError
from tailsweep.trainables.models.classifier import ModelError


def test_run_takes_a_sweep_file_and_overrides() -> None:
    parsed = build_parser().parse_args(
        ["run", "a b.yaml", "--set", "data.train=x=y#.csv", "--set", "stage_two.epochs=2", "--storage", "s3://b/runs"]
    )
    assert parsed.command == "run"
    assert parsed.file == Path("a b.yaml")
    assert parsed.overrides == ["data.train=x=y#.csv", "stage_two.epochs=2"]
    assert (parsed.storage, parsed.address) == ("s3://b/runs", None)


def test_run_without_options_overrides_nothing() -> None:
    parsed = build_parser().parse_args(["run", "sweep.yaml"])
    assert (parsed.overrides, parsed.storage, parsed.address) == ([], None, None)


def test_run_with_resume_needs_a_name_that_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("data: {train: demo://drug-labels, validation: 0.2, test: 0.2}\n")
    assert main(["run", str(file), "--resume"]) == 2
    assert "--resume resumes the run of the sweep's name: give it one" in capsys.readouterr().err


@pytest.mark.parametrize("begun", [False, True])
def test_run_with_resume_resumes_a_run_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    from tailsweep.orchestrator.runner import run_sweep
    from tailsweep.orchestrator.runs.directory import SWEEP_FILE, TRIALS_FILE

    file = tmp_path / "sweep.yaml"
    file.write_text("name: one\ndata: {train: demo://drug-labels, validation: 0.2, test: 0.2}\n")
    if begun:
        (tmp_path / "runs/one/state").mkdir(parents=True)
        for name in (SWEEP_FILE, TRIALS_FILE):
            (tmp_path / "runs/one" / name).touch()
    monkeypatch.setattr(run_sweep, "resume_sweep", lambda location, *_: 7 if location == f"{tmp_path}/runs/one" else 8)
    monkeypatch.setattr(run_sweep, "plan_sweep", lambda *_: (_ for _ in ()).throw(InputError("a new one")))
    assert main(["run", str(file), "--resume", "--storage", str(tmp_path / "runs")]) == (7 if begun else 2)


def test_sigterm_stops_a_sweep_that_a_script_started_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    """There, SIGINT is ignored from the start; SIGTERM does here what SIGINT does elsewhere."""
    monkeypatch.setattr(command_line, "_dispatch", lambda parsed: signal.raise_signal(signal.SIGTERM) or 0)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert main(["report", "runs/demo"]) == 1
    finally:
        signal.signal(signal.SIGINT, before)


def test_resume_and_report_take_a_run() -> None:
    resume = build_parser().parse_args(["resume", "runs/demo", "--address", "auto"])
    assert (resume.command, resume.run, resume.address) == ("resume", "runs/demo", "auto")
    report = build_parser().parse_args(["report", "runs/demo"])
    assert (report.command, report.run) == ("report", "runs/demo")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["rnu", "sweep.yaml"],
        ["run"],
        ["report"],
        ["run", "sweep.yaml", "--storge", "x"],
        ["report", "r", "--address", "a"],
    ],
)
def test_arguments_that_mean_nothing_end_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: tailsweep" in capsys.readouterr().err


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ([], ["run"], ["resume"], ["report"]):
        with pytest.raises(SystemExit) as ended:
            main([*command, "--help"])
        assert ended.value.code == 0
    assert "data.train=rows.csv" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["resume", "report"])
def test_a_run_that_is_not_there_is_one_message(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, str(tmp_path / "nowhere")]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"tailsweep: {tmp_path}/nowhere is not a run directory")
    assert said.err.count("\n") == 1


def test_all_errors_of_a_sweep_file_are_reported_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text("data: {train: rows.csv}\nstage_one: {lr: 1e-4}\n")
    assert main(["run", str(sweep), "--set", "metrik=x"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"tailsweep: {sweep}: 2 errors\n")
    assert "stage_one.lr: unknown field" in said
    assert 'did you mean "metric"' in said


def test_a_sweep_given_for_a_comparison_and_the_reverse_name_the_right_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, comparison = tmp_path / "sweep.yaml", tmp_path / "comparison.yaml"
    sweep.write_text("data: {train: rows.csv}\n")
    comparison.write_text("data: {train: rows.csv}\nmethods: [vanilla]\nbudget: {trials: 1}\n")
    assert main(["run", str(comparison)]) == 2
    said = capsys.readouterr().err
    assert f"methods: is of a comparison, where a sweep has one `method`: `tailsweep compare {comparison}` here" in said
    assert main(["compare", str(sweep)]) == 2
    assert f"methods: is missing: for a sweep there is `tailsweep run {sweep}`" in capsys.readouterr().err


@pytest.mark.parametrize("error", [InputError, DataError, ModelError])
def test_errors_that_the_user_can_fix_end_with_2(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(parsed: object) -> int:
        raise error("what is wrong, and the fix")

    monkeypatch.setattr(command_line, "_dispatch", refuse)
    assert main(["report", "runs/demo"]) == 2
    assert capsys.readouterr().err == "tailsweep: what is wrong, and the fix\n"


def test_a_fault_of_our_own_is_not_dressed_up_as_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(parsed: object) -> int:
        raise ValueError("shapes do not match")

    monkeypatch.setattr(command_line, "_dispatch", break_down)
    with pytest.raises(ValueError, match="shapes"):
        main(["report", "runs/demo"])


def test_what_the_user_exported_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_line, "_dispatch", lambda parsed: 0)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    assert main(["report", "runs/demo"]) == 0
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"


@pytest.mark.parametrize("ctrl_c", [signal.default_int_handler, signal.SIG_IGN], ids=["reported", "ignored"])
def test_sigterm_interrupts_also_where_a_script_has_switched_ctrl_c_off(
    ctrl_c: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``nohup tailsweep run ... &`` in a script: the shell has its children ignore SIGINT."""

    def terminated(parsed: object) -> int:
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("it continued")

    monkeypatch.setattr(command_line, "_dispatch", terminated)
    before = signal.signal(signal.SIGINT, ctrl_c)
    try:
        assert main(["report", "runs/demo"]) == 1
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "tailsweep: interrupted\n"


def test_as_a_module_a_missing_sweep_file_ends_with_2_at_once_and_without_ray(tmp_path: Path) -> None:
    program = (
        "import atexit, runpy, sys; "
        "atexit.register(lambda: print(sorted({'ray', 'torch'} & set(sys.modules)))); "
        "runpy.run_module('tailsweep', run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "run", str(tmp_path / "nowhere.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == f"tailsweep: {tmp_path}/nowhere.yaml: 1 error\n  there is no such file\n"
    assert done.stdout == "[]\n[]\n"  # of the process in front and of the one that works
