"""The command line as a process of its own, for tests that kill it or run it against another Ray."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
from support.ending import still_running

ROOT = Path(__file__).resolve().parents[2]


def start(*command: object, cwd: Path = ROOT, **environment: str) -> subprocess.Popen[str]:
    """Start a command, by default in the project's folder: stdout and stderr in one pipe,
    a process group of its own."""
    # W&B leaves the address of this process's own service there, which would end with this process.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return subprocess.Popen(
        [*map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**inherited, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **environment},
        cwd=cwd,
        start_new_session=True,
    )


def run(*command: object, timeout: float = 240, cwd: Path = ROOT, **environment: str) -> tuple[int, str]:
    """Run a command to its end; its exit status and what it printed."""
    process = start(*command, cwd=cwd, **environment)
    try:
        printed, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        printed, _ = process.communicate()
        raise AssertionError(f"{command} did not end within {timeout} s:\n{printed}") from None
    return process.returncode, printed


def tailsweep(*arguments: object) -> tuple[object, ...]:
    return (sys.executable, "-m", "tailsweep", *arguments)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def kill_family(process: subprocess.Popen[str]) -> None:
    """Kill a process and its descendants, and wait until they are gone."""
    family = [parent := psutil.Process(process.pid), *parent.children(recursive=True)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):  # it went with its parent
            member.kill()
    process.communicate()
    still_running(family, 30)


def wait_for_port(port: int, process: subprocess.Popen[str], seconds: float = 120) -> None:
    """Until something listens on a port of this machine; ``process`` is to, and must be alive."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, f"nothing listens on port {port}"
            time.sleep(0.2)
