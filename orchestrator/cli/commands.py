"""The commands of ``tailsweep``: the arguments that each takes, and the function that it calls.

Each function imports what it needs when it runs: ``report`` needs neither Ray nor torch, and an error in a sweep file
is reported without either.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tailsweep.orchestrator.cli.cluster import DESCRIPTION as CLUSTER_DESCRIPTION
from tailsweep.orchestrator.cli.cluster import add_cluster_commands, run_cluster_command
from tailsweep.orchestrator.cli.options import add_address, add_overrides, add_storage
from tailsweep.trainables.errors import InputError


@dataclass(frozen=True)
class Command:
    """A command of ``tailsweep``."""

    name: str
    help: str  # in the list of commands
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]  # returns the exit status
    description: str | None = None  # above its own arguments
    prints_result: bool = True  # to standard output, so that messages go to standard error


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="SWEEP.yaml", type=Path, help="the sweep file")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="resume the run if its directory exists, for jobs that are restarted; the sweep needs a name",
    )
    add_overrides(parser)
    add_storage(parser)
    add_address(parser)


def _run(parsed: argparse.Namespace) -> int:
    from tailsweep.orchestrator.config.sweep import is_named, load_sweep

    sweep = load_sweep(parsed.file, parsed.overrides, parsed.storage)
    if parsed.resume and not is_named(parsed.file, parsed.overrides):
        raise InputError("--resume resumes the run of the sweep's name: give it one, as `--set name=rare-1`")
    from rich.console import Console
    from tailsweep.orchestrator.runner.run_sweep import RunOptions, run_sweep

    return run_sweep(
        sweep, Console(quiet=parsed.quiet or parsed.log_json), RunOptions(address=parsed.address, resume=parsed.resume)
    )


def _add_compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="COMPARISON.yaml", type=Path, help="the comparison file")
    add_overrides(parser)
    add_storage(parser)
    add_address(parser)


def _compare(parsed: argparse.Namespace) -> int:
    from tailsweep.orchestrator.comparison.config import load_comparison

    comparison = load_comparison(parsed.file, parsed.overrides, parsed.storage)
    from rich.console import Console
    from tailsweep.orchestrator.comparison.run_comparison import run_comparison

    return run_comparison(comparison, parsed.address, Console(quiet=parsed.quiet or parsed.log_json))


def _add_doctor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="SWEEP.yaml", type=Path, nargs="?", help="the sweep file")
    parser.add_argument("--json", action="store_true", help="print one JSON document in place of the lines")
    add_overrides(parser)
    add_storage(parser)
    add_address(parser)


def _doctor(parsed: argparse.Namespace) -> int:
    from tailsweep.orchestrator.config.sweep import load_sweep

    if parsed.file is None and parsed.overrides:
        raise InputError("--set changes a field of a sweep file: name one, as `tailsweep doctor SWEEP.yaml`")
    sweep = None if parsed.file is None else load_sweep(parsed.file, parsed.overrides, parsed.storage)
    from tailsweep.orchestrator.preflight.doctor import doctor

    return doctor(sweep, parsed.storage, parsed.address, parsed.json)


def _add_resume_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the run directory")
    add_overrides(parser)
    add_address(parser)


def _resume(parsed: argparse.Namespace) -> int:
    from tailsweep.orchestrator.runs.directory import open_run

    if _is_comparison(parsed.run):
        from rich.console import Console
        from tailsweep.orchestrator.comparison.run_comparison import resume_comparison

        console = Console(quiet=parsed.quiet or parsed.log_json)
        return resume_comparison(parsed.run, parsed.address, console, parsed.overrides)
    open_run(parsed.run)
    from rich.console import Console
    from tailsweep.orchestrator.runner.resume import Wanted
    from tailsweep.orchestrator.runner.run_sweep import RunOptions, resume_sweep

    options = RunOptions(address=parsed.address, wanted=Wanted(overrides=parsed.overrides))
    return resume_sweep(parsed.run, Console(quiet=parsed.quiet or parsed.log_json), options)


def _add_report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the run directory")


def _report(parsed: argparse.Namespace) -> int:
    print(report_text(parsed.run))
    return 0


def report_text(location: str) -> str:
    """Return the report on the run directory of a sweep or a comparison."""
    if _is_comparison(location):
        from tailsweep.orchestrator.comparison.report import report_comparison

        return report_comparison(location)
    from tailsweep.orchestrator.runs.report import report

    return report(location)


def _is_comparison(location: str) -> bool:
    """Return whether the run directory is that of a comparison."""
    from tailsweep.orchestrator.runs.directory import RunDirectory

    run = RunDirectory(location)
    return run.reach() and run.is_comparison


def _add_predict_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="DIR", help="best/ of a run directory, or a Hugging Face folder; or a URI")
    parser.add_argument("file", metavar="FILE", help="the file with the rows, or a URI of it")
    parser.add_argument(
        "--text-column",
        metavar="COLUMN",
        action="append",
        help="the column with the text; default: text; may be repeated, to join the texts of several columns",
    )
    parser.add_argument("--pair", action="store_true", help="give the texts of two columns as the tokenizer's pair")
    parser.add_argument(
        "--output", metavar="FILE", type=Path, help="the suffix decides the type; default: CSV to standard output"
    )
    parser.add_argument("--probabilities", action="store_true", help="add a column for each class's probability")
    parser.add_argument(
        "--format",
        metavar="FIELD=VALUE",
        action="append",
        default=[],
        help="say how FILE is written, as data.format does: separator=';', header=false, encoding=utf-16, ...; may be "
        "repeated; default: found from its bytes",
    )


def _predict(parsed: argparse.Namespace) -> int:
    from tailsweep.orchestrator.cli.predict import TextColumns, predict

    text = TextColumns(tuple(parsed.text_column or ["text"]), parsed.pair)
    predict(parsed.model, parsed.file, text, parsed.output, parsed.probabilities, parsed.format)
    return 0


def _add_push_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="DIR", help="best/ of a run directory, or another model folder")
    parser.add_argument("repo", metavar="REPO", help="user/name on the hub; created if it is not there")
    parser.add_argument("--private", action="store_true", help="make a new repository private")


def _push(parsed: argparse.Namespace) -> int:
    from tailsweep.orchestrator.cli.push import push

    print(push(parsed.model, parsed.repo, parsed.private))
    return 0


def _add_cluster_arguments(parser: argparse.ArgumentParser) -> None:
    add_cluster_commands(parser.add_subparsers(dest="cluster_command", required=True, metavar="COMMAND"))


def _add_cache_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="cache_command", required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="list every entry with its size")
    removal = commands.add_parser("remove", help="remove entries; a sweep that needs one creates it again")
    entries = removal.add_mutually_exclusive_group(required=True)
    entries.add_argument("keys", metavar="KEY", nargs="*", default=[], help="the first characters of an entry's key")
    entries.add_argument("--all", dest="everything", action="store_true", help="remove every entry")
    for command in (listing, removal):
        command.add_argument(
            "--dir", metavar="DIR", help="the cache's folder; default: $TAILSWEEP_CACHE, else the user's"
        )


def _cache(parsed: argparse.Namespace) -> int:
    from tailsweep.orchestrator.cli.cache import list_cache, remove_from_cache

    if parsed.cache_command == "list":
        print(list_cache(parsed.dir))
    else:
        print(remove_from_cache(parsed.keys, parsed.everything, parsed.dir))
    return 0


_ALL = (
    Command("run", "run a new sweep", _add_run_arguments, _run, "Run a new sweep to its end.", prints_result=False),
    Command(
        "compare",
        "compare methods on the same examples",
        _add_compare_arguments,
        _compare,
        "Search each method with the same budget, train the chosen settings with several seeds, and report which "
        "differences on the test examples are more than noise.",
        prints_result=False,
    ),
    Command(
        "doctor",
        "check whether a sweep can start",
        _add_doctor_arguments,
        _doctor,
        "Check this machine, every node of the Ray cluster that `run` would use and, if a sweep file is given, what it "
        "needs: versions, State API, authentication, storage, disk, GPUs, data, models, W&B. Print a line for each. "
        "The exit status is 2 if something must be fixed first.",
    ),
    Command("resume", "resume an interrupted sweep or comparison", _add_resume_arguments, _resume, prints_result=False),
    Command("report", "print the tables of a run or a comparison from its files", _add_report_arguments, _report),
    Command(
        "predict",
        "classify the rows of a file with a model folder",
        _add_predict_arguments,
        _predict,
        "Classify the rows of a CSV, TSV, JSON, Parquet or Excel file: print its columns, then `prediction` and "
        "`confidence`. A row without a text keeps its place and gets neither.",
    ),
    Command("push", "upload a model folder to the hub", _add_push_arguments, _push),
    Command(
        "cluster",
        "run sweeps as jobs of a Ray cluster",
        _add_cluster_arguments,
        run_cluster_command,
        CLUSTER_DESCRIPTION,
    ),
    Command("cache", "list and remove cached examples and features", _add_cache_arguments, _cache),
)
COMMANDS = {command.name: command for command in _ALL}  # in the order of the help text
