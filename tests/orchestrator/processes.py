"""The command line as a process of its own, for tests that kill it or run it against another Ray."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def start(*command: object, **environment: str) -> subprocess.Popen[str]:
    """Start a command in the project's folder, stdout and stderr in one pipe, in a process group of its own."""
    # W&B leaves the address of this process's own service there, which would end with this process.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return subprocess.Popen(
        [*map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**inherited, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **environment},
        cwd=ROOT,
        start_new_session=True,
    )


def run(*command: object, timeout: float = 240, **environment: str) -> tuple[int, str]:
    """Run a command to its end; its exit status and what it printed."""
    process = start(*command, **environment)
    try:
        printed, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        printed, _ = process.communicate()
        raise AssertionError(f"{command} did not end within {timeout} s:\n{printed}") from None
    return process.returncode, printed


def tailsweep(*arguments: object) -> tuple[object, ...]:
    return (sys.executable, "-m", "orchestrator", *arguments)
