"""``tailsweep cluster VERB``: a cluster's definition as a file, sweeps and comparisons as jobs of a Ray that is there.

What is said of a job goes to stderr, what the job prints to stdout. Exit status of ``submit``, ``resume`` and ``logs
--follow``: the job's own, 0 where it succeeded, 2 where it refused its input, else 1.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailsweep.clusters.render.entrypoint import KINDS, PERHAPS_WITH_A_SWEEP, WITH_A_SWEEP
from tailsweep.orchestrator.cli.options import add_overrides
from tailsweep.trainables.errors import InputError

if TYPE_CHECKING:  # Ray takes seconds to import
    from tailsweep.clusters.definition import Definition
    from tailsweep.clusters.jobs.client import JobClient
    from tailsweep.orchestrator.jobs.job import Job

PENDING_SECONDS = 10  # that the end of a job is waited for which has not begun
DESCRIPTION = (
    "Run sweeps and comparisons as jobs of a Ray cluster that is there, by its Job Submission API. The current folder "
    "is uploaded, as by `ray job submit --working-dir .`: without .git, virtual environments, runs and what .gitignore "
    "and .rayignore name."
)


def add_cluster_verbs(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verbs of ``tailsweep cluster``."""
    submit = verbs.add_parser(
        "submit",
        help="run a sweep or a comparison there, and follow it",
        description="Check the file here, upload the current folder, start `run` or `compare` there as a job and "
        "follow what it prints. Ctrl-C ends the following, not the job.",
    )
    submit.add_argument(
        "file", metavar="FILE.yaml", type=Path, help="the sweep or comparison file, in the current folder or below"
    )
    submit.add_argument(
        "--storage",
        metavar="URI",
        help="folder that all nodes share, or pyarrow URI, that run directories are made in; default: the cluster's",
    )
    resume = verbs.add_parser(
        "resume",
        help="go on there with an interrupted sweep or comparison, and follow it",
        description="Upload the current folder, start `resume` there as a job and follow what it prints.",
    )
    resume.add_argument("run", metavar="RUN", help="the run directory, as the nodes reach it")
    status = verbs.add_parser("status", help="how a job stands, or all of them")
    status.add_argument("id", metavar="ID", nargs="?", help="the job; default: all of them")
    logs = verbs.add_parser("logs", help="what a job has printed")
    logs.add_argument("id", metavar="ID", help="the job")
    logs.add_argument("--follow", action="store_true", help="and what it prints, until it ends")
    stop = verbs.add_parser("stop", help="end a job, as Ctrl-C would; `cluster resume RUN` goes on with its sweep")
    stop.add_argument("id", metavar="ID", help="the job")
    render = verbs.add_parser(
        "render",
        help="print a cluster's definition as the file of its kind",
        description="Print what starts the cluster that a definition describes, and with it the sweep where the kind "
        f"runs one ({', '.join(WITH_A_SWEEP)}, and {', '.join(PERHAPS_WITH_A_SWEEP)} if given). Nothing is started, "
        "and no network is needed.",
        epilog="; ".join(f"{kind}: {what}" for kind, what in KINDS.items()),
    )
    render.add_argument("kind", metavar="KIND", choices=KINDS, help=", ".join(KINDS))
    render.add_argument("sweep", metavar="SWEEP.yaml", type=Path, nargs="?", help="the sweep file")
    render.add_argument("--cluster", metavar="FILE", type=Path, required=True, help="the cluster's definition")
    for verb in (submit, render):
        add_overrides(verb)
    for verb in (submit, resume, status, logs, stop):
        verb.add_argument("--cluster", metavar="FILE", type=Path, help="the cluster's definition")
        verb.add_argument(
            "--address",
            metavar="URL",
            help="its job server, http://HEAD:8265; default: the definition's, else $RAY_API_SERVER_ADDRESS",
        )


def run_cluster_verb(parsed: argparse.Namespace) -> int:
    """Returns the exit status.

    Raises:
        InputError: the user's input is wrong, or the cluster cannot be reached; then nothing was started.
    """
    if parsed.cluster_verb == "render":
        from tailsweep.orchestrator.jobs.render import main as render

        return render(parsed)
    from tailsweep.clusters.jobs.client import SubmissionError

    definition = None
    if parsed.cluster is not None:
        from tailsweep.orchestrator.jobs.definition_file import load_definition

        definition = load_definition(parsed.cluster)
    verb: Callable[[argparse.Namespace, Definition | None], int] = VERBS[parsed.cluster_verb]
    try:
        return verb(parsed, definition)
    except SubmissionError as error:
        raise InputError(str(error)) from None


def _submit(parsed: argparse.Namespace, definition: "Definition | None") -> int:
    from tailsweep.orchestrator.jobs.job import job_of_file

    job = job_of_file(parsed.file, parsed.overrides, parsed.storage, definition, Path.cwd())
    return _start(job, parsed, definition)


def _resume(parsed: argparse.Namespace, definition: "Definition | None") -> int:
    from tailsweep.orchestrator.jobs.job import job_of_resume

    return _start(job_of_resume(parsed.run, definition, Path.cwd()), parsed, definition)


def _start(job: "Job", parsed: argparse.Namespace, definition: "Definition | None") -> int:
    """Submit and follow."""
    from tailsweep.clusters.jobs.client import jobs_of, submit
    from tailsweep.orchestrator.jobs.job import free_id

    client = _client(parsed, definition)
    submission_id = free_id(job.run, jobs_of(client), _cluster(parsed))
    for note in job.notes:
        _say(f"note: {note}")
    _say(f"uploading {job.uploads[0]}")
    if own := job.uploads[1:]:
        _say(f"and tailsweep itself: {sum(len(one.sizes) for one in own)} files, {_in_bytes(own)}")
    try:
        submit(client, job.command, submission_id, job.runtime_env, job.metadata, _say)
    except KeyboardInterrupt:
        if submission_id not in {other.submission_id for other in jobs_of(client)}:
            raise KeyboardInterrupt("interrupted before the job was taken: nothing was started") from None
        raise KeyboardInterrupt(_left_running(submission_id, parsed)) from None
    _say(f"job {submission_id} submitted to {client.get_address()}; its run directory is {job.run_directory}")
    return _follow(client, submission_id, parsed)


def _follow(client: "JobClient", submission_id: str, parsed: argparse.Namespace) -> int:
    from tailsweep.clusters.jobs.client import ClusterLostError, cause_of_failure, follow
    from tailsweep.orchestrator.jobs.job import RUN_DIRECTORY

    try:
        ended = follow(client, submission_id, _write, _say)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_left_running(submission_id, parsed)) from None
    except ClusterLostError as error:
        _say(f"tailsweep: {error}")
        return 1
    took = _duration(ended)
    if ended.status == "SUCCEEDED":
        _say(f"job {submission_id} succeeded after {took}")
        return 0
    run = (ended.metadata or {}).get(RUN_DIRECTORY)
    go_on = "" if run is None else f"; if its sweep had begun, `{_hint('resume', run, parsed)}` goes on with it"
    if ended.status == "STOPPED":
        _say(f"tailsweep: job {submission_id} was stopped after {took}{go_on}")
        return 1
    refused = ended.driver_exit_code == 2
    _say(f"tailsweep: job {submission_id} failed after {took}: {cause_of_failure(ended)}{'' if refused else go_on}")
    return 2 if refused else 1


def _status(parsed: argparse.Namespace, definition: "Definition | None") -> int:
    from tailsweep.clusters.jobs.client import cause_of_failure, jobs_of
    from tailsweep.orchestrator.jobs.job import RUN_DIRECTORY

    client = _client(parsed, definition)
    if parsed.id is not None:
        job = _named(client, parsed.id)
        print(f"job {parsed.id}: {job.status}, started {_started(job)}, {_duration(job)}")
        if run := (job.metadata or {}).get(RUN_DIRECTORY):
            print(f"run directory: {run}")
        print(f"command: {job.entrypoint}")
        if job.status == "FAILED":
            print(f"cause: {cause_of_failure(job)}")
        elif job.status == "PENDING" and job.message:
            print(f"cause: {job.message}")
        return 0
    jobs = jobs_of(client)
    if not jobs:
        print(f"{client.get_address()} has had no job since its head was started")
        return 0
    from tailsweep.orchestrator.runs.text import aligned

    rows = [
        [
            job.submission_id or "",
            str(job.status),
            _started(job),
            _duration(job),
            (job.metadata or {}).get(RUN_DIRECTORY, ""),
        ]
        for job in jobs
    ]
    print(aligned([["job", "status", "started", "took", "run directory"], *rows]))
    return 0


def _logs(parsed: argparse.Namespace, definition: "Definition | None") -> int:
    from tailsweep.clusters.jobs.client import logs_of

    client = _client(parsed, definition)
    _named(client, parsed.id)
    if parsed.follow:
        return _follow(client, parsed.id, parsed)
    _write(logs_of(client, parsed.id))
    return 0


def _stop(parsed: argparse.Namespace, definition: "Definition | None") -> int:
    from tailsweep.clusters.jobs.client import stop
    from tailsweep.orchestrator.jobs.job import RUN_DIRECTORY, STOP_SECONDS

    client = _client(parsed, definition)
    job = _named(client, parsed.id)
    if job.status.is_terminal():
        print(f"job {parsed.id} has ended already: {job.status}")
        return 0
    job = stop(client, parsed.id, STOP_SECONDS + 10 if job.status == "RUNNING" else PENDING_SECONDS)
    if not job.status.is_terminal():
        when = "; Ray ends it once its environment has been made" if job.status == "PENDING" else ""
        again = f"look again by `{_hint('status', parsed.id, parsed)}`"
        _say(f"tailsweep: job {parsed.id} is asked to end, and {job.status} still{when}: {again}")
        return 1
    run = (job.metadata or {}).get(RUN_DIRECTORY)
    print(f"job {parsed.id}: {job.status}" + (f"; go on by `{_hint('resume', run, parsed)}`" if run else ""))
    return 0


VERBS = {"submit": _submit, "resume": _resume, "status": _status, "logs": _logs, "stop": _stop}


def _client(parsed: argparse.Namespace, definition: "Definition | None") -> "JobClient":
    from tailsweep.clusters.jobs.client import connect

    address = parsed.address or (definition and definition.address) or os.environ.get("RAY_API_SERVER_ADDRESS")
    if not address:
        where = f"{parsed.cluster} has no `address`" if parsed.cluster else "neither --cluster nor --address is given"
        raise InputError(f"which cluster? {where}: name its job server, as --address http://HEAD:8265")
    return connect(address)


def _named(client: "JobClient", submission_id: str) -> Any:
    """The job of this id, as ``JobDetails``.

    Raises:
        InputError: there is none.
    """
    from tailsweep.clusters.jobs.client import jobs_of
    from tailsweep.orchestrator.config.errors import did_you_mean

    jobs = {job.submission_id: job for job in jobs_of(client)}
    if submission_id in jobs:
        return jobs[submission_id]
    known = did_you_mean(submission_id, [name for name in jobs if name]) if jobs else ": it has had none"
    raise InputError(f'there is no job "{submission_id}" on {client.get_address()} since its head was started{known}')


def _left_running(submission_id: str, parsed: argparse.Namespace) -> str:
    return (
        f"no longer following; job {submission_id} goes on. Follow it: `{_hint('logs', submission_id, parsed)} "
        f"--follow`; end it: `{_hint('stop', submission_id, parsed)}`"
    )


def _hint(verb: str, what: str, parsed: argparse.Namespace) -> str:
    """The command line of another verb on the same cluster."""
    import shlex

    return shlex.join(["tailsweep", "cluster", verb, what, *_cluster(parsed)])


def _cluster(parsed: argparse.Namespace) -> list[str]:
    """The arguments that name the cluster, as they were given."""
    by_file = ["--cluster", str(parsed.cluster)] if parsed.cluster else []
    return [*by_file, *(["--address", parsed.address] if parsed.address else [])]


def _started(job: Any) -> str:
    if not job.start_time:
        return "-"
    return f"{datetime.fromtimestamp(job.start_time / 1000, UTC):%Y-%m-%d %H:%M} UTC"


def _duration(job: Any) -> str:
    from tailsweep.orchestrator.monitoring.console import duration

    if not job.start_time:
        return "-"
    return duration((job.end_time or time.time() * 1000) / 1000 - job.start_time / 1000)


def _in_bytes(uploads: Sequence[Any]) -> str:
    from tailsweep.clusters.jobs.upload import in_bytes

    return in_bytes(sum(upload.num_bytes for upload in uploads))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _write(text: str) -> None:
    """To stdout, at once. Where its reader is gone, the following is over."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains at exit
        raise KeyboardInterrupt from None
