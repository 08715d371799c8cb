"""The records of a comparison itself: its settings, the baselines that it fitted, and the predictions it has written.

Its searches and retrainings are sweeps, with run directories and records of their own.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum

from tailsweep.orchestrator.comparison.config import Comparison
from tailsweep.orchestrator.runs.directory import COMPARISON_FILE, EVENTS_FOLDER, RunDirectory, RunDirectoryError
from tailsweep.orchestrator.runs.event_log import RESTORE, EventLog, LogEnd, read_events
from tailsweep.trainables.errors import describe_error


class EventKind(StrEnum):
    """What a record is of."""

    BEGUN = "begun"
    FITTED = "fitted"
    PREDICTED = "predicted"


@dataclass(frozen=True)
class BaselineFit:
    """How a baseline was fitted."""

    strength: float  # of its regularization, C of scikit-learn
    validation: float  # the metric of the selection
    seconds: float


class ComparisonRecords:
    """What a comparison has computed itself, as its log tells it; the writer holds the run's lock.

    Args:
        run: the comparison's run directory.

    Attributes:
        baselines: by name, see :func:`.config.fold_name`.
    """

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self.baselines: dict[str, BaselineFit] = {}
        self._predictions: dict[str, str] = {}  # the SHA-256 of each file
        self._log = EventLog(run, LogEnd())

    @classmethod
    def open(cls, run: RunDirectory, comparison: Comparison) -> "ComparisonRecords":
        """Read what was written so far, to continue it; the first record says what is compared.

        Raises:
            RunDirectoryError: As :meth:`read`.
        """
        records = cls.read(run, comparison)
        if records._log.end.number == 0:
            records._log.append(EventKind.BEGUN, {"settings_digest": _settings_digest(comparison)})
        return records

    @classmethod
    def read(cls, run: RunDirectory, comparison: Comparison) -> "ComparisonRecords":
        """Read what was written so far.

        Raises:
            RunDirectoryError: A record is missing, or not as it was written, or the comparison's file has changed.
        """
        records = cls(run)
        events, end = read_events(run)
        records._log.end = end
        digest = _settings_digest(comparison)
        try:
            for event in events:
                match EventKind(event.kind):
                    case EventKind.BEGUN:
                        if event.record["settings_digest"] != digest:
                            raise RunDirectoryError(
                                f"{run.uri(COMPARISON_FILE)} is not as it was when the comparison began: restore it, "
                                "or start another comparison (--set name=...)"
                            )
                    case EventKind.FITTED:
                        fitted = dict(event.record)
                        name = fitted.pop("name")
                        records.baselines[name] = BaselineFit(**fitted)
                    case EventKind.PREDICTED:
                        records._predictions[event.record["file"]] = event.record["sha256"]
        except RunDirectoryError:
            raise
        except (ValueError, TypeError, LookupError) as error:
            raise RunDirectoryError(
                f"{run.uri(EVENTS_FOLDER)} is damaged ({describe_error(error)}): {RESTORE}"
            ) from None
        return records

    def add_baseline(self, name: str, fitted: BaselineFit) -> None:
        """Record how a baseline was fitted."""
        self._log.append(EventKind.FITTED, {"name": name, **asdict(fitted)})
        self.baselines[name] = fitted

    def write_predictions(self, file: str, content: bytes) -> None:
        """Write a file of predictions, and record it."""
        self.run.write_bytes(file, content)
        digest = _sha256(content)
        self._log.append(EventKind.PREDICTED, {"file": file, "sha256": digest})
        self._predictions[file] = digest

    def has_predictions(self, file: str) -> bool:
        """Return whether a file of predictions was written, and is there."""
        return file in self._predictions and self.run.exists(file)

    def read_predictions(self, file: str) -> bytes | None:
        """Return the content of a file of predictions; None if it was not written yet.

        Raises:
            RunDirectoryError: It was written, but is missing or altered.
        """
        if file not in self._predictions:
            return None
        again = f"`{self.run.resume_command}` predicts it again"
        try:
            content = self.run.read_bytes(file)
        except FileNotFoundError:
            raise RunDirectoryError(f"{self.run.uri(file)} is missing: {again}") from None
        if _sha256(content) != self._predictions[file]:
            raise RunDirectoryError(f"{self.run.uri(file)} is not as it was written: remove it, and {again}")
        return content

    def seal(self) -> None:
        """Write how many records there are: at the end of a process."""
        self._log.seal()


def _settings_digest(comparison: Comparison) -> str:
    """Return a digest of what is compared. The run directory may be moved and renamed."""
    settings: Mapping[str, object] = {
        name: value for name, value in comparison.tree().items() if name not in ("name", "storage")
    }
    return _sha256(json.dumps(settings, sort_keys=True, default=str).encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
