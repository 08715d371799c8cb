"""What a run directory cannot grant: everything in it is data, which somebody else may have written.

Its ``sweep.yaml`` may ask to run a model's Python code, to write to a folder, to send to W&B, or to read what lies
elsewhere. That counts when the person who resumes the run says it again on the command line. Paths of examples and
models count, too, in a run that the same person began: ``state/signature`` shows that, by a key that only they have.
"""

import hashlib
import hmac
import os
import re
import secrets
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from tailsweep.orchestrator.config.changes import leaves
from tailsweep.orchestrator.config.errors import show
from tailsweep.orchestrator.runs.directory import SIGNATURE_FILE, RunDirectory, RunDirectoryError

PATH_SECTIONS = ("data.", "model.")
KEY_BYTES = 32
OUTSIDE = "it lies outside the run directory, and state/signature does not show that you began the run"


@dataclass(frozen=True)
class Grant:
    """A setting that lets a sweep do more than compute in its own run directory."""

    field: str  # dotted
    value: object
    why: str
    is_path: bool = False  # of examples or of a model

    @property
    def assignment(self) -> str:
        """``field=value``, as ``--set`` takes it."""
        return f"{self.field}={self.value if isinstance(self.value, str) else show(self.value)}"


def grants_of(settings: Mapping[str, object], run: RunDirectory) -> list[Grant]:
    """Return what settings would grant.

    Args:
        settings: those of a sweep, a comparison or a trial, as a tree. A distribution grants what any of its values
            does.
        run: the run directory; what lies in it is no path elsewhere.
    """
    grants = []
    for field, value in leaves(settings):
        name = re.sub(r"^methods?\.[^.]+\.", "", field)  # of methods with settings of their own
        if name == "model.trust_remote_code" and True in _values(value):
            grants.append(Grant(field, value, "it runs the Python code that a model brings along"))
        elif name == "features.dir" and value is not None:
            grants.append(Grant(field, value, "it is a folder that is written to"))
        elif (name, value) == ("wandb.mode", "online") or (name == "wandb.entity" and value is not None):
            grants.append(Grant(field, value, "it sends the run to W&B"))
        elif name.startswith(PATH_SECTIONS) and any(_leads_elsewhere(text, run) for text in _texts(name, value)):
            grants.append(Grant(field, value, OUTSIDE, is_path=True))
    return grants


def refuse_grants(
    run: RunDirectory, settings: Mapping[str, object], said: Collection[str], source: str, command: str
) -> None:
    """Refuse settings of a run directory that grant something and were not said again.

    Args:
        run: the run directory.
        settings: those it is to continue with, as a tree.
        said: the dotted fields that the person has set on the command line.
        source: the file that the settings are from.
        command: what resumes the run, to which `--set` is added in the message.

    Raises:
        RunDirectoryError: There are some; the message names each with its value.
    """
    missing = [grant for grant in grants_of(settings, run) if not _is_said(grant.field, said)]
    if missing and is_own(run, source):
        missing = [grant for grant in missing if not grant.is_path]
    if missing:
        listed = "".join(f"\n  {grant.field}: {show(grant.value)}: {grant.why}" for grant in missing)
        again = "".join(f" --set {shlex.quote(grant.assignment)}" for grant in missing)
        raise RunDirectoryError(
            f"{run.uri(source)} asks for what a run directory cannot grant:{listed}\n"
            f"if you want that, say it again: `{command}{again}`"
        )


def refuse_unlisted_grants(
    run: RunDirectory, settings: Mapping[str, object], configs: Iterable[tuple[str, Mapping[str, object]]]
) -> None:
    """Refuse trials whose records grant what the sweep's own settings do not.

    Args:
        run: the run directory.
        settings: the sweep's, as a tree.
        configs: name and dumped TrialConfig of each trial.

    Raises:
        RunDirectoryError: There is one.
    """
    listed = grants_of(settings, run)
    for name, config in configs:
        for grant in grants_of(config, run):
            if not any(_covers(other, grant) for other in listed):
                raise RunDirectoryError(
                    f"the records of {run.location} give {name} {grant.field}: {show(grant.value)}, which the sweep "
                    f"does not have: {grant.why}; the records are not those of this sweep"
                )


def _covers(listed: Grant, drawn: Grant) -> bool:
    """Whether a sweep's setting, perhaps a distribution of values or of sections, holds what a trial has."""
    if listed.field != drawn.field and not drawn.field.startswith(f"{listed.field}."):
        return False
    return drawn.value in [*_values(listed.value), *_texts(listed.field, listed.value)]


def restated(settings: Mapping[str, object], run: RunDirectory) -> str:
    """Return what a command that resumes the run must say again, for the line that the run prints itself."""
    return "".join(f" --set {shlex.quote(grant.assignment)}" for grant in grants_of(settings, run) if not grant.is_path)


def sign(run: RunDirectory, source: str) -> None:
    """Sign a file of the run directory with the person's own key: it is from them. Without a key it stays unsigned."""
    key = _key(create=True)
    if key is not None:
        run.write_text(SIGNATURE_FILE, _signature(key, run.read_bytes(source)) + "\n")


def is_own(run: RunDirectory, source: str) -> bool:
    """Return whether the person has signed this content of the file."""
    key = _key(create=False)
    if key is None:
        return False
    try:
        written = run.read_text(SIGNATURE_FILE).strip()
    except (FileNotFoundError, UnicodeDecodeError):
        return False
    return hmac.compare_digest(written.encode(), _signature(key, run.read_bytes(source)).encode())


def _signature(key: bytes, content: bytes) -> str:
    return hmac.new(key, content, hashlib.sha256).hexdigest()


def _key(create: bool) -> bytes | None:
    """Return the person's key, which no run directory holds; None if there is none, or none can be written."""
    path = platformdirs.user_state_path("tailsweep") / "key"
    with suppress(OSError):
        if create and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
            with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_bytes(KEY_BYTES))
            with suppress(FileExistsError):  # of another process that came first
                os.link(aside, path)
            aside.unlink()
        return path.read_bytes()
    return None


def _is_said(field: str, said: Collection[str]) -> bool:
    return any(field == name or field.startswith(f"{name}.") for name in said)


def _values(value: object) -> Sequence[object]:
    """Return the value, or those of a distribution."""
    if isinstance(value, Mapping):
        return [inner for listed in value.values() if isinstance(listed, list) for inner in listed]
    return [value]


def _texts(name: str, value: object) -> Iterator[str]:
    """Yield the texts in a value that can name a place."""
    if name.endswith(("_column", ".source", ".kind", ".name")) and name != "model.name":
        return
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(name, inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(name, inner)


def _leads_elsewhere(text: str, run: RunDirectory) -> bool:
    """Return whether a text names a file or folder that is not in the run directory. A name on the hub is neither."""
    if "://" in text:
        return not text.startswith("demo://")
    path = Path(text).expanduser()
    if not (text.startswith(("/", "~", ".")) or path.exists()):
        return False
    return run.local is None or not path.resolve().is_relative_to(run.local.resolve())
