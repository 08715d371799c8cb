"""``tailsweep cluster COMMAND``: render a cluster's definition, and run sweeps as jobs of a Ray cluster.

Messages about a job go to stderr, the job's own output to stdout. The exit status of ``submit``, ``resume`` and ``logs
--follow`` is that of the job: 0 if it succeeded, 2 if it refused its input, else 1.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from tailsweep.clusters.render.entrypoint import KINDS, PERHAPS_WITH_A_SWEEP, WITH_A_SWEEP
from tailsweep.clusters.sizes import describe_bytes
from tailsweep.orchestrator.cli.options import add_overrides
from tailsweep.trainables.errors import InputError

if TYPE_CHECKING:  # Ray takes seconds to import
    from ray.job_submission import JobDetails
    from tailsweep.clusters.definition import Definition
    from tailsweep.clusters.jobs.client import JobClient
    from tailsweep.orchestrator.jobs.job import Job

logger = logging.getLogger(__name__)

PENDING_SECONDS = 10  # to wait for the end of a job that has not begun
DESCRIPTION = (
    "Run sweeps and comparisons as jobs of a running Ray cluster, by its Job Submission API. The current folder is "
    "uploaded, as by `ray job submit --working-dir .`: without .git, virtual environments, runs and what .gitignore "
    "and .rayignore name."
)


def add_cluster_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands of ``tailsweep cluster``."""
    submit = commands.add_parser(
        "submit",
        help="run a sweep or a comparison on the cluster, and follow it",
        description="Check the file here, upload the current folder, start `run` or `compare` on the cluster as a job "
        "and follow its output. Ctrl-C stops following; the job continues.",
    )
    submit.add_argument(
        "file", metavar="FILE.yaml", type=Path, help="the sweep or comparison file, in the current folder or below"
    )
    submit.add_argument(
        "--storage",
        metavar="URI",
        help="the folder that all nodes share, or pyarrow URI, that holds the run directories; default: the cluster's",
    )
    resume = commands.add_parser(
        "resume",
        help="resume an interrupted sweep or comparison on the cluster, and follow it",
        description="Upload the current folder, start `resume` on the cluster as a job and follow its output.",
    )
    resume.add_argument("run", metavar="RUN", help="the run directory, as the nodes reach it")
    add_overrides(resume)
    status = commands.add_parser("status", help="print the status of a job, or of all jobs")
    status.add_argument("id", metavar="ID", nargs="?", help="the job; default: all jobs")
    logs = commands.add_parser("logs", help="print the output of a job")
    logs.add_argument("id", metavar="ID", help="the job")
    logs.add_argument("--follow", action="store_true", help="follow the output until the job ends")
    stop = commands.add_parser("stop", help="end a job, as Ctrl-C would; `cluster resume RUN` resumes its sweep")
    stop.add_argument("id", metavar="ID", help="the job")
    render = commands.add_parser(
        "render",
        help="print a cluster's definition as the file of its kind",
        description="Print what starts the cluster that a definition describes, and with it the sweep where the kind "
        f"runs one ({', '.join(WITH_A_SWEEP)}, and {', '.join(PERHAPS_WITH_A_SWEEP)} if given). Nothing is started, "
        "and no network is needed.",
        epilog="; ".join(f"{kind}: {description}" for kind, description in KINDS.items()),
    )
    render.add_argument("kind", metavar="KIND", choices=KINDS, help=", ".join(KINDS))
    render.add_argument("sweep", metavar="SWEEP.yaml", type=Path, nargs="?", help="the sweep file")
    render.add_argument("--cluster", metavar="FILE", type=Path, required=True, help="the cluster's definition")
    for command in (submit, render):
        add_overrides(command)
    for command in (submit, resume, status, logs, stop):
        command.add_argument("--cluster", metavar="FILE", type=Path, help="the cluster's definition")
        command.add_argument(
            "--address",
            metavar="URL",
            help="its job server, http://HEAD:8265; default: the definition's, else $RAY_API_SERVER_ADDRESS",
        )


def run_cluster_command(parsed: argparse.Namespace) -> int:
    """Run one command of ``tailsweep cluster`` and return the exit status.

    Raises:
        InputError: The user's input is wrong, or the cluster cannot be reached. Nothing was started then.
    """
    if parsed.cluster_command == "render":
        from tailsweep.orchestrator.jobs.render import main as render

        return render(parsed)
    from tailsweep.clusters.jobs.client import SubmissionError

    definition = None
    if parsed.cluster is not None:
        from tailsweep.orchestrator.jobs.definition_file import load_definition

        definition = load_definition(parsed.cluster)
    command: Callable[[argparse.Namespace, Definition | None], int] = COMMANDS[parsed.cluster_command]
    try:
        return command(parsed, definition)
    except SubmissionError as error:
        raise InputError(str(error)) from None


def _submit(parsed: argparse.Namespace, definition: "Definition | None") -> int:
    from tailsweep.orchestrator.jobs.job import job_of_file

    job = job_of_file(parsed.file, parsed.overrides, parsed.storage, definition, Path.cwd())
    return _start(job, parsed, definition)


def _resume(parsed: argparse.Namespace, definition: "Definition | None") -> int:
    from tailsweep.orchestrator.jobs.job import job_of_resume

    return _start(job_of_resume(parsed.run, parsed.overrides, definition, Path.cwd()), parsed, definition)


def _start(job: "Job", parsed: argparse.Namespace, definition: "Definition | None") -> int:
    """Submit the job and follow it."""
    from tailsweep.clusters.jobs.client import jobs_of, submit
    from tailsweep.orchestrator.jobs.job import free_id

    client = _client(parsed, definition)
    submission_id = free_id(job.run, jobs_of(client), _cluster(parsed))
    for note in job.notes:
        logger.info(f"note: {note}")
    logger.info(f"uploading {job.uploads[0]}")
    if own := job.uploads[1:]:
        size = describe_bytes(sum(upload.num_bytes for upload in own))
        logger.info(f"and tailsweep itself: {sum(len(upload.sizes) for upload in own)} files, {size}")
    try:
        submit(client, job.command, submission_id, job.runtime_env, job.metadata)
    except KeyboardInterrupt:
        if submission_id not in {other.submission_id for other in jobs_of(client)}:
            raise KeyboardInterrupt("interrupted before the job was submitted: nothing was started") from None
        raise KeyboardInterrupt(_left_running(submission_id, parsed)) from None
    logger.info(f"job {submission_id} submitted to {client.get_address()}; its run directory is {job.run_directory}")
    return _follow(client, submission_id, parsed)


def _follow(client: "JobClient", submission_id: str, parsed: argparse.Namespace) -> int:
    from tailsweep.clusters.jobs.client import ClusterLostError, cause_of_failure, follow
    from tailsweep.orchestrator.jobs.job import RUN_DIRECTORY

    try:
        ended = follow(client, submission_id, _write)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_left_running(submission_id, parsed)) from None
    except ClusterLostError as error:
        logger.error(str(error))
        return 1
    took = _duration(ended)
    if ended.status == "SUCCEEDED":
        logger.info(f"job {submission_id} succeeded after {took}")
        return 0
    run = (ended.metadata or {}).get(RUN_DIRECTORY)
    resume_hint = "" if run is None else f"; if its sweep had begun, `{_hint('resume', run, parsed)}` resumes it"
    if ended.status == "STOPPED":
        logger.error(f"job {submission_id} was stopped after {took}{resume_hint}")
        return 1
    refused = ended.driver_exit_code == 2
    logger.error(f"job {submission_id} failed after {took}: {cause_of_failure(ended)}{'' if refused else resume_hint}")
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
        when = "; Ray ends it once its environment is ready" if job.status == "PENDING" else ""
        again = f"check again with `{_hint('status', parsed.id, parsed)}`"
        logger.error(f"job {parsed.id} was asked to end and is still {job.status}{when}: {again}")
        return 1
    run = (job.metadata or {}).get(RUN_DIRECTORY)
    print(f"job {parsed.id}: {job.status}" + (f"; to continue: `{_hint('resume', run, parsed)}`" if run else ""))
    return 0


COMMANDS = {"submit": _submit, "resume": _resume, "status": _status, "logs": _logs, "stop": _stop}


def _client(parsed: argparse.Namespace, definition: "Definition | None") -> "JobClient":
    from tailsweep.clusters.jobs.client import connect

    address = parsed.address or (definition and definition.address) or os.environ.get("RAY_API_SERVER_ADDRESS")
    if not address:
        where = f"{parsed.cluster} has no `address`" if parsed.cluster else "neither --cluster nor --address is given"
        raise InputError(f"which cluster? {where}: name its job server, as --address http://HEAD:8265")
    return connect(address)


def _named(client: "JobClient", submission_id: str) -> "JobDetails":
    """Return the job of this id as ``JobDetails``.

    Raises:
        InputError: There is no such job.
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
        f"no longer following; job {submission_id} continues. Follow it: `{_hint('logs', submission_id, parsed)} "
        f"--follow`; end it: `{_hint('stop', submission_id, parsed)}`"
    )


def _hint(command: str, argument: str, parsed: argparse.Namespace) -> str:
    """Return the command line of another command on the same cluster."""
    import shlex

    return shlex.join(["tailsweep", "cluster", command, argument, *_cluster(parsed)])


def _cluster(parsed: argparse.Namespace) -> list[str]:
    """Return the arguments that name the cluster, as they were given."""
    by_file = ["--cluster", str(parsed.cluster)] if parsed.cluster else []
    return [*by_file, *(["--address", parsed.address] if parsed.address else [])]


def _started(job: "JobDetails") -> str:
    if not job.start_time:
        return "-"
    return f"{datetime.fromtimestamp(job.start_time / 1000, UTC):%Y-%m-%d %H:%M} UTC"


def _duration(job: "JobDetails") -> str:
    from tailsweep.orchestrator.monitoring.console import duration

    if not job.start_time:
        return "-"
    return duration((job.end_time or time.time() * 1000) / 1000 - job.start_time / 1000)


def _write(text: str) -> None:
    """Write to stdout without delay, and stop following if its reader is gone."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains at exit
        raise KeyboardInterrupt from None
