"""How a rendered script gets its secrets: from the environment, or from a file that only its owner can read."""

import shlex
import stat
from collections.abc import Sequence
from pathlib import Path

from tailsweep.clusters.definition import Definition


def export_secrets(definition: Definition, hint: str) -> str:
    """Return bash that exports the secrets from their file, or requires them in the environment; "" without secrets.

    Args:
        definition: Of the cluster.
        hint: What to do about a secret that is not exported.
    """
    variables = list(definition.secrets)
    if not variables:
        return ""
    if definition.secrets_file is not None:
        return export_from_file(definition.secrets_file, variables)
    return _demand_variables(variables, hint)


def export_from_file(path: str, variables: Sequence[str]) -> str:
    """Return bash that exports ``variables`` from a file only its owner reads; ``path`` may start with ``~/``."""
    home, _, below = path.partition("~/")
    quoted = f'"$HOME"/{shlex.quote(below)}' if not home and below else shlex.quote(path)
    return f"""
secrets_file={quoted}
if [ "$(stat -c %a -- "$secrets_file" 2>&1)" != 600 ]; then
    echo "tailsweep: $secrets_file must be a file of mode 600, which no one else can read: make it, or chmod 600 it" >&2
    exit 2
fi
while IFS= read -r line || [ -n "$line" ]; do
    case "${{line%%=*}}" in
        {"|".join(variables)}) export "${{line?}}" ;;
    esac
done < "$secrets_file"
{_demand_variables(variables, f"add a line NAME=VALUE to {path}")}
""".strip()


def _demand_variables(variables: Sequence[str], hint: str) -> str:
    function = f"""
demand() {{
    if [ -z "${{!1:-}}" ]; then
        echo "tailsweep: $1 has no value: "{shlex.quote(hint)} >&2
        exit 2
    fi
}}
""".strip()
    return "\n".join([function, *(f"demand {variable}" for variable in variables)])


def issues(path: str, variables: Sequence[str]) -> list[str]:
    """Return what is wrong with the file on this machine, never a value."""
    try:
        file = Path(path).expanduser()
        mode = stat.S_IMODE(file.stat().st_mode)
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, RuntimeError, UnicodeDecodeError) as error:  # RuntimeError: no such user
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        return [f"secrets_file: {path} cannot be read here: {reason}"]
    if mode != 0o600:
        return [f"secrets_file: {path} has the mode {mode:o}, but must have 600: chmod 600 {path}"]
    named = {name for name, _, value in (line.partition("=") for line in lines) if value}
    return [
        f"secrets.{variable}: {path} has no line {variable}=VALUE" for variable in variables if variable not in named
    ]
