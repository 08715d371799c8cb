"""The command line: ``tailsweep COMMAND ...``, the same as ``python -m tailsweep COMMAND ...``.

Exit status: 0 done, 1 the work failed or was interrupted, 2 the user's input is wrong (one message, no traceback).
"""

import argparse
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tailsweep.orchestrator.cli.commands import COMMANDS, report_text
from tailsweep.orchestrator.cli.options import add_log_options
from tailsweep.orchestrator.cli.supervisor import supervise
from tailsweep.orchestrator.monitoring.log_output import terminal_output
from tailsweep.trainables.errors import InputError, StorageError

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="tailsweep",
        description="Sweeps of two-stage fine-tuning for text classifiers whose rare classes matter, on Ray.",
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS.values():
        subparser = subparsers.add_parser(command.name, help=command.help, description=command.description)
        command.add_arguments(subparser)
        add_log_options(subparser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status.

    Args:
        arguments: the words after ``tailsweep``; None: those of this process.
    """
    parsed = build_parser().parse_args(arguments)
    # Set before anything imports these libraries; what the user exported takes precedence.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if arguments is None:
        for stream in (sys.stdout, sys.stderr):  # a terminal that has no letter of a label shows its number
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
    verbosity = 1 if parsed.verbose else -1 if parsed.quiet else 0
    command = COMMANDS[parsed.command]
    with terminal_output(verbosity, parsed.log_json, to_stderr=command.prints_result):
        if arguments is None and not command.prints_result:  # a process of its own, which may start a Ray
            return supervise(lambda: _run(parsed), report_text)
        return _run(parsed)


def _run(parsed: argparse.Namespace) -> int:
    """Run a command and return the exit status; an error is one message."""
    try:
        with _sigterm_as_interrupt():
            status = _dispatch(parsed)
            sys.stdout.flush()
            return status
    except BrokenPipeError:  # its reader, `head` say, has what it wants
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except InputError as error:
        logger.error(str(error))
        return 2
    except (StorageError, KeyboardInterrupt) as error:
        logger.error(str(error) or "interrupted")
        return 1


def _dispatch(parsed: argparse.Namespace) -> int:
    return COMMANDS[parsed.command].run(parsed)


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM (of a job scheduler, or of a node that shuts down) as Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(*_: object) -> None:
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a script's background process ignores Ctrl-C
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)  # Tune has a handler of its own while it runs


if __name__ == "__main__":
    sys.exit(main())
