"""The log of a run as its files hold it, for tests that look at it from outside while a sweep writes it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tailsweep.orchestrator.runs.directory import EVENTS_FOLDER, SEAL_FILE, RunDirectory
from tailsweep.orchestrator.runs.event_log import EventLog, LogEnd


def events(run: Path) -> list[dict[str, Any]]:
    """Every record in order, with its number and its kind; none before the first."""
    numbered = {}
    for file in sorted((run / EVENTS_FOLDER).glob("*.json*")):
        try:
            lines = file.read_text().splitlines()
        except FileNotFoundError:  # rolled up meanwhile
            return events(run)
        for line in [] if file.suffix == ".tmp" else lines:
            numbered[json.loads(line)["number"]] = json.loads(line)
    return [event for _, event in sorted(numbered.items())]


def reports(run: Path) -> list[dict[str, Any]]:
    return [event["record"] for event in events(run) if event["kind"] == "report"]


def outcomes(run: Path) -> dict[str, dict[str, Any]]:
    """By trial."""
    return {event["record"]["trial"]: event["record"] for event in events(run) if event["kind"] == "outcome"}


def drawn(run: Path) -> list[str]:
    return [event["record"]["name"] for event in events(run) if event["kind"] == "drawn"]


def rewrite_events(run: Path, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    """Replace the log by what ``change`` makes of it, in records as sound as if a sweep had written them."""
    changed = change(events(run))
    shutil.rmtree(run / EVENTS_FOLDER)
    (run / SEAL_FILE).unlink(missing_ok=True)
    log = EventLog(RunDirectory(str(run)), LogEnd())
    for event in changed:
        log.append(event["kind"], event["record"])
