"""Messages on the terminal, as text and as JSON, and in a run directory's log."""

import json
import logging
from pathlib import Path

import pytest
from tailsweep.orchestrator.cli.main import main
from tailsweep.orchestrator.monitoring.log_output import LOGGER, no_repeated_messages, terminal_output
from tailsweep.orchestrator.monitoring.run_log import run_log
from tailsweep.orchestrator.runs.directory import LOG_FILE, RunDirectory
from tailsweep.trainables.errors import StorageError

logger = logging.getLogger("tailsweep.orchestrator.a_module")


def log_all() -> None:
    logger.debug("detail")
    logger.info("100% done")
    logger.info("stage_one epoch 1/2", extra={"trial": "t017"})
    logger.info("shown by the table", extra={"trial": "t017", "in_table": True})
    logger.warning("little space")
    logger.error("no space")


@pytest.mark.parametrize(
    ("verbosity", "printed"),
    [
        (-1, ["little space"]),
        (0, ["100% done", "CLOCK  t017  stage_one epoch 1/2", "little space"]),
        (
            1,
            [
                "CLOCK  DEBUG    tailsweep.orchestrator.a_module  detail",
                "CLOCK  INFO     tailsweep.orchestrator.a_module  100% done",
                "CLOCK  INFO     tailsweep.orchestrator.a_module  t017  stage_one epoch 1/2",
                "CLOCK  WARNING  tailsweep.orchestrator.a_module  little space",
            ],
        ),
    ],
)
def test_the_terminal_has_what_was_asked_for(
    verbosity: int, printed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with terminal_output(verbosity):
        log_all()
    logger.warning("after the end")
    written = capsys.readouterr()
    lines = [line if line[2] != ":" else f"CLOCK{line[8:]}" for line in written.out.splitlines()]
    assert lines == printed
    assert "no space" in written.err


def test_a_result_on_standard_output_is_not_mixed_with_messages(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal_output(to_stderr=True):
        log_all()
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.endswith("little space\ntailsweep: no space\n")


def test_json_lines_have_time_level_logger_and_trial(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal_output(as_json=True):
        log_all()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["level"], line["message"], line.get("trial")) for line in lines] == [
        ("info", "100% done", None),
        ("info", "stage_one epoch 1/2", "t017"),
        ("warning", "little space", None),
    ]
    assert {line["logger"] for line in lines} == {"tailsweep.orchestrator.a_module"}
    assert all(line["time"].endswith("+00:00") for line in lines)


def test_the_run_directory_has_every_message_of_every_process(tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path / "run"))
    run.create()
    for _ in range(2):
        with run_log() as log, log.written_to(run):
            log_all()
    messages = [json.loads(line)["message"] for line in (tmp_path / "run" / LOG_FILE).read_text().splitlines()]
    assert messages[:6] * 2 == messages
    assert len(messages) == 12


def test_what_is_said_before_there_is_a_directory_comes_first(tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path / "run"))
    with run_log() as log:
        logger.info("reading rows.csv")
        run.create()
        with log.written_to(run):
            logger.info("training")
        logger.info("afterwards")
    lines = (tmp_path / "run" / LOG_FILE).read_text().splitlines()
    assert [json.loads(line)["message"] for line in lines] == ["reading rows.csv", "training"]


def test_storage_that_refuses_the_log_stops_nothing(tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path / "run"))
    run.create()
    (tmp_path / "run" / LOG_FILE).mkdir()
    with run_log() as log, log.written_to(run):
        log_all()


def test_in_an_object_store_the_log_is_written_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory(str(tmp_path / "run"))
    run.create()
    monkeypatch.setattr(RunDirectory, "local", None)
    for _ in range(2):
        with run_log() as log, log.written_to(run):
            log_all()
            logged = run.read_text(LOG_FILE) if run.exists(LOG_FILE) else ""
    assert len(logged.splitlines()) == 6
    assert len(run.read_text(LOG_FILE).splitlines()) == 12
    monkeypatch.setattr(RunDirectory, "write_text", lambda *_: (_ for _ in ()).throw(StorageError("full")))
    with run_log() as log, log.written_to(run):
        log_all()


def test_a_message_repeated_in_a_context_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal_output():
        with no_repeated_messages():
            logger.info("reading rows.csv")
            logger.info("reading rows.csv")
        logger.info("reading rows.csv")
    assert capsys.readouterr().out == "reading rows.csv\n" * 2


def test_the_loggers_are_left_as_they_were() -> None:
    before = LOGGER.level, list(LOGGER.handlers)
    with terminal_output(), pytest.raises(ValueError, match="stop"):
        raise ValueError("stop")
    assert (LOGGER.level, list(LOGGER.handlers)) == before


@pytest.mark.parametrize("option", ["-v", "-q", "--log-json"])
@pytest.mark.parametrize("command", [["report"], ["cluster", "status"], ["cache", "list"]])
def test_every_command_takes_the_options(
    option: str, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, option, "--help"])
    assert ended.value.code == 0
    assert "--log-json" in capsys.readouterr().out


def test_an_error_is_a_json_line_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "missing"), "--log-json"]) == 2
    line = json.loads(capsys.readouterr().err)
    assert line["level"] == "error"
    assert "missing" in line["message"]
