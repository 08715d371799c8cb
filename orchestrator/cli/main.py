"""The command line: ``tailsweep VERB ...``, the same as ``python -m tailsweep VERB ...``.

Exit status: 0 done, 1 the work failed or was interrupted, 2 the user's input is wrong (one message, no traceback).
"""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tailsweep.orchestrator.cli.cluster import DESCRIPTION as CLUSTER_DESCRIPTION
from tailsweep.orchestrator.cli.cluster import add_cluster_verbs, run_cluster_verb
from tailsweep.orchestrator.cli.options import add_overrides
from tailsweep.trainables.errors import InputError, StorageError


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tailsweep",
        description="Sweeps of two-stage fine-tuning for text classifiers whose rare classes matter, on Ray.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    run = verbs.add_parser("run", help="run a new sweep", description="Run a new sweep to its end.")
    run.add_argument("file", metavar="SWEEP.yaml", type=Path, help="the sweep file")
    run.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run directory where it is there already, for jobs that are started again; needs a name",
    )
    compare = verbs.add_parser(
        "compare",
        help="compare methods on the same rows",
        description="Search each method with the same budget, train what was chosen with several seeds, and say which "
        "differences on the test rows are more than noise.",
    )
    compare.add_argument("file", metavar="COMPARISON.yaml", type=Path, help="the comparison file")
    doctor = verbs.add_parser(
        "doctor",
        help="look whether a sweep can start",
        description="Look at this machine, at every node of the Ray that `run` would use and, where a sweep file is "
        "given, at what it needs: versions, State API, authentication, storage, disk, GPUs, rows, models, W&B. A line "
        "for each; exit status 2 where something must be mended first.",
    )
    doctor.add_argument("file", metavar="SWEEP.yaml", type=Path, nargs="?", help="the sweep file")
    doctor.add_argument("--json", action="store_true", help="one JSON document in place of the lines")
    for verb in (run, compare, doctor):
        add_overrides(verb)
        verb.add_argument("--storage", metavar="URI", help="folder or pyarrow URI that run directories are made in")
        _add_address(verb)

    resume = verbs.add_parser("resume", help="go on with an interrupted sweep or comparison")
    resume.add_argument("run", metavar="RUN", help="the run directory")
    _add_address(resume)

    report = verbs.add_parser("report", help="print the tables of a run or a comparison, from its files alone")
    report.add_argument("run", metavar="RUN", help="the run directory")

    predict = verbs.add_parser(
        "predict",
        help="classify the rows of a file with a model folder",
        description="Classify the rows of a CSV, TSV, JSON-lines or Parquet file: its columns, then `prediction` and "
        "`confidence`. A row without a text keeps its place and gets neither.",
    )
    predict.add_argument("model", metavar="DIR", help="best/ of a run directory, or a Hugging Face folder; or a URI")
    predict.add_argument("file", metavar="FILE", type=Path, help="the rows")
    predict.add_argument("--text", metavar="COLUMN", default="text", help="the column with the text; default: text")
    predict.add_argument("--output", metavar="FILE", type=Path, help="by its suffix; default: CSV to standard output")
    predict.add_argument("--probabilities", action="store_true", help="add a column for each class's probability")

    cluster = verbs.add_parser("cluster", help="sweeps as jobs of a Ray cluster", description=CLUSTER_DESCRIPTION)
    of_cluster = cluster.add_subparsers(dest="cluster_verb", required=True, metavar="VERB")
    add_cluster_verbs(of_cluster)

    cache = verbs.add_parser("cache", help="what the cache of rows and features holds, and its removal")
    of_cache = cache.add_subparsers(dest="cache_verb", required=True, metavar="VERB")
    listing = of_cache.add_parser("list", help="every entry, with its size")
    removal = of_cache.add_parser("remove", help="remove entries; a sweep that needs one makes it again")
    which = removal.add_mutually_exclusive_group(required=True)
    which.add_argument("keys", metavar="KEY", nargs="*", default=[], help="the first characters of an entry's key")
    which.add_argument("--all", dest="everything", action="store_true", help="every entry")
    for verb in (listing, removal):
        verb.add_argument("--dir", metavar="DIR", help="the cache's folder; default: $TAILSWEEP_CACHE, else the user's")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parsed = build_parser().parse_args(arguments)
    # Settled before anything imports these libraries; what the user exported stands.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        with _terminated_as_interrupted():
            return _dispatch(parsed)
    except InputError as error:
        print(f"tailsweep: {error}", file=sys.stderr)
        return 2
    except (StorageError, KeyboardInterrupt) as error:
        print(f"tailsweep: {str(error) or 'interrupted'}", file=sys.stderr)
        return 1


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Within it, SIGTERM (of a job scheduler, or a node about to go) does what Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(*_: object) -> None:
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # started in the background of a script, where Ctrl-C is not
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)  # Tune has a handler of its own while it runs


def _dispatch(parsed: argparse.Namespace) -> int:
    # Imported by verb: `report` needs no Ray and no torch, and a mistake in a sweep file is told without either.
    if parsed.verb == "run":
        from tailsweep.orchestrator.config.sweep import is_named, load_sweep

        sweep = load_sweep(parsed.file, parsed.overrides, parsed.storage)
        if parsed.resume and not is_named(parsed.file, parsed.overrides):
            raise InputError("--resume goes on with the run of the sweep's name: give it one, as `--set name=rare-1`")
        from rich.console import Console
        from tailsweep.orchestrator.runner.run_sweep import run_sweep

        return run_sweep(sweep, parsed.address, Console(), resume=parsed.resume)
    if parsed.verb == "doctor":
        from tailsweep.orchestrator.config.sweep import load_sweep

        if parsed.file is None and parsed.overrides:
            raise InputError("--set changes a field of a sweep file: name one, as `tailsweep doctor SWEEP.yaml`")
        looked_at = None if parsed.file is None else load_sweep(parsed.file, parsed.overrides, parsed.storage)
        from rich.console import Console
        from tailsweep.orchestrator.preflight.doctor import doctor

        return doctor(looked_at, parsed.storage, parsed.address, parsed.json, Console(stderr=True))
    if parsed.verb == "compare":
        from tailsweep.orchestrator.comparison.config import load_comparison

        comparison = load_comparison(parsed.file, parsed.overrides, parsed.storage)
        from rich.console import Console
        from tailsweep.orchestrator.comparison.run_comparison import run_comparison

        return run_comparison(comparison, parsed.address, Console())
    if parsed.verb == "resume":
        from tailsweep.orchestrator.runs.directory import COMPARISON_FILE, RunDirectory, open_run

        run = RunDirectory(parsed.run)
        if run.reach() and run.exists(COMPARISON_FILE):
            from rich.console import Console
            from tailsweep.orchestrator.comparison.run_comparison import resume_comparison

            return resume_comparison(parsed.run, parsed.address, Console())
        open_run(parsed.run)
        from rich.console import Console
        from tailsweep.orchestrator.runner.run_sweep import resume_sweep

        return resume_sweep(parsed.run, parsed.address, Console())
    if parsed.verb == "predict":
        from tailsweep.orchestrator.cli.predict import predict

        predict(parsed.model, parsed.file, parsed.text, parsed.output, parsed.probabilities)
        return 0
    if parsed.verb == "cache":
        from tailsweep.orchestrator.cli.cache import list_cache, remove_from_cache

        if parsed.cache_verb == "list":
            print(list_cache(parsed.dir))
        else:
            print(remove_from_cache(parsed.keys, parsed.everything, parsed.dir))
        return 0
    if parsed.verb == "cluster":
        return run_cluster_verb(parsed)
    from tailsweep.orchestrator.runs.directory import COMPARISON_FILE, RunDirectory

    run = RunDirectory(parsed.run)
    if run.reach() and run.exists(COMPARISON_FILE):
        from tailsweep.orchestrator.comparison.report import report_comparison

        print(report_comparison(parsed.run))
        return 0
    from tailsweep.orchestrator.runs.report import report

    print(report(parsed.run))
    return 0


def _add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address",
        metavar="ADDR",
        help="a running Ray: `auto`, HOST:PORT or ray://...; default: $RAY_ADDRESS, else a Ray started here",
    )


if __name__ == "__main__":
    sys.exit(main())
