"""The file that holds the values of secrets on Slurm and in clouds: lines NAME=VALUE, for its owner's eyes only."""

import stat
from collections.abc import Sequence
from pathlib import Path


def mistakes(path: str, variables: Sequence[str]) -> list[str]:
    """What is wrong with the file, on this machine; never a value."""
    try:
        file = Path(path).expanduser()
        mode = stat.S_IMODE(file.stat().st_mode)
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, RuntimeError, UnicodeDecodeError) as error:  # RuntimeError: no such user
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        return [f"secrets_file: {path} cannot be read here: {reason}"]
    if mode != 0o600:
        return [f"secrets_file: {path} has the mode {mode:o}, but must have 600: chmod 600 {path}"]
    named = {name for name, _, value in (line.partition("=") for line in lines) if value}
    return [
        f"secrets.{variable}: {path} has no line {variable}=VALUE" for variable in variables if variable not in named
    ]
