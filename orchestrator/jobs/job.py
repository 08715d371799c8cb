"""Describe a sweep or a comparison as a job of a Ray cluster: its command, files, environment and id.

This module finds all errors that can be found before anything is sent. It starts nothing and contacts no cluster.
"""

import itertools
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol

from tailsweep.clusters.definition import Definition
from tailsweep.clusters.jobs.upload import EXCLUDES, Upload, UploadError, upload_of
from tailsweep.clusters.sizes import describe_bytes
from tailsweep.orchestrator.comparison.config import is_comparison, load_comparison
from tailsweep.orchestrator.config.redaction import HINT, has_a_secret, has_a_secret_within
from tailsweep.orchestrator.config.sweep import Sweep, load_sweep
from tailsweep.orchestrator.config.yaml_io import read_sweep_file
from tailsweep.orchestrator.jobs.package import PACKAGES, PackageFolder, package_folder
from tailsweep.trainables.errors import InputError

if TYPE_CHECKING:
    from ray.job_submission import JobStatus

RUN = "tailsweep_run"  # keys of a job's metadata: the run directory's name and location
RUN_DIRECTORY = "tailsweep_run_directory"
ROW_FILES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
LARGE_BYTES = 100_000_000  # an upload from this size gets a note: the head keeps it in memory
# Between SIGTERM and SIGKILL when a job is stopped: the time for a sweep to end its trials. Ray's default is 3.
STOP_SECONDS = 120


class JobError(InputError):
    """A sweep that cannot be submitted as it is."""


@dataclass(frozen=True)
class Job:
    """A job in the form that Ray's client accepts."""

    run: str  # the run directory's name: the same sweep is not run twice at once
    run_directory: str
    command: str  # for a shell
    runtime_env: dict[str, object]
    uploads: list[Upload]  # the working directory; then tailsweep's own packages, if they are uploaded
    notes: list[str] = field(default_factory=list)  # for the user: what is allowed, but may be unintended
    package: PackageFolder | None = None  # if the nodes do not have it; kept until the job is submitted

    @property
    def metadata(self) -> dict[str, str]:
        """Return the metadata that identifies the run."""
        return {RUN: self.run, RUN_DIRECTORY: self.run_directory}


@dataclass(frozen=True)
class _Work:
    """The command and the sweeps that a file describes."""

    command: str
    name: str
    storage: str
    sweeps: list[Sweep]  # one; of a comparison each method's search


def job_of_file(
    file: Path,
    overrides: Sequence[str],
    storage: str | None,
    definition: Definition | None,
    folder: Path,
) -> Job:
    """Return the job that runs ``python -m tailsweep run FILE``, or ``compare FILE``, in a copy of ``folder``.

    Args:
        file: The sweep or comparison file, in ``folder`` or below it.
        overrides: ``KEY=VALUE`` each.
        storage: Takes precedence over ``overrides``, then the definition, then the file.
        definition: The cluster's definition, if there is one.
        folder: The working directory to upload.

    Raises:
        SweepConfigError: With all errors of the file.
        JobError: The file cannot run on a cluster as it is.
    """
    if storage is None and definition is not None and not any(text.startswith("storage=") for text in overrides):
        storage = definition.storage.location
    work = _work_of(file, overrides, storage)
    refuse_unreachable(work.storage, "storage", "--storage")
    upload = _uploaded(folder)
    relative = _in_upload(file, upload)
    sources = list(dict.fromkeys(source for sweep in work.sweeps for source in _sources(sweep)))
    _refuse_missing_files(sources, upload)
    arguments = [work.command, relative]
    for override in overrides:
        arguments += ["--set", override]
    if not any(override.startswith("name=") for override in overrides):
        arguments += ["--set", f"name={work.name}"]  # which may be of the file and this moment
    arguments += ["--storage", work.storage]
    notes = [
        f'{setting} is "{source}": the nodes\' own, which each must have at this path'
        for setting, source in sources
        if _is_the_nodes_own(source)
    ]
    if "://" not in work.storage and (definition is None or definition.storage.location != work.storage):
        notes.append(f"storage is {work.storage}: a folder that all nodes must share")
    return _job(work.name, f"{work.storage.rstrip('/')}/{work.name}", arguments, definition, upload, notes)


def _work_of(file: Path, overrides: Sequence[str], storage: str | None) -> _Work:
    if not is_comparison(read_sweep_file(file)):
        sweep = load_sweep(file, overrides, storage)
        return _Work("run", sweep.name, sweep.config.storage, [sweep])
    comparison = load_comparison(file, overrides, storage)
    config = comparison.config
    sweeps = [comparison.first_search(method) for method in config.methods]
    return _Work("compare", config.name, config.storage, sweeps)


def job_of_resume(location: str, overrides: Sequence[str], definition: Definition | None, folder: Path) -> Job:
    """Return the job that runs ``python -m tailsweep resume RUN`` in a copy of ``folder``.

    ``overrides`` are ``dotted.field=value`` each, as `resume` takes them.

    Raises:
        JobError: The run cannot be resumed on a cluster.
    """
    if has_a_secret(location):
        raise JobError(f"the run directory's URI holds a key or a password: {HINT}")
    refuse_unreachable(location, "RUN", "RUN")
    location = location.rstrip("/")
    said = [word for override in overrides for word in ("--set", override)]
    return _job(PurePosixPath(location).name, location, ["resume", location, *said], definition, _uploaded(folder))


def refuse_unreachable(location: str, setting: str, argument: str) -> None:
    """Refuse a relative folder: on a cluster it would lie in the job's copy of the upload, on one node.

    Args:
        location: A folder or URI.
        setting: What the location is, for the message.
        argument: The argument that sets it, for the message.

    Raises:
        JobError: ``location`` is a relative folder.
    """
    if "://" not in location and not location.startswith(("/", "~")):
        raise JobError(
            f'{setting} is "{location}", a folder relative to this one: on the cluster it would lie in the job\'s own '
            f"copy of the upload, which Ray removes; name by {argument} a folder that all nodes share (/shared/runs) "
            "or a URI (s3://BUCKET/runs)"
        )


class SubmittedJob(Protocol):
    """A job of a cluster, as Ray's client describes it."""

    submission_id: str
    status: "JobStatus"
    metadata: dict[str, str] | None


def free_id(run: str, jobs: Iterable[SubmittedJob], cluster: Sequence[str] = ()) -> str:
    """Return the id for a job of this run: its name, or ``NAME-2``, ``NAME-3`` ... after jobs of that id have ended.

    Args:
        run: The name of the run.
        jobs: All jobs of the cluster, with ``submission_id``, ``status`` and ``metadata``.
        cluster: The arguments that name the cluster, for the message.

    Raises:
        JobError: A job already works on this run.
    """
    taken = set()
    for job in jobs:
        taken.add(job.submission_id)
        if run in (job.submission_id, (job.metadata or {}).get(RUN)) and not job.status.is_terminal():
            see, end = (
                shlex.join(["tailsweep", "cluster", command, job.submission_id, *cluster])
                for command in ("status", "stop")
            )
            raise JobError(
                f"job {job.submission_id} is {job.status} already and works on {run}: see `{see}`, end it by `{end}`, "
                "or give this sweep another name (`--set name=...`)"
            )
    names = itertools.chain([run], (f"{run}-{number}" for number in itertools.count(2)))
    return next(name for name in names if name not in taken)


def _job(
    run: str,
    run_directory: str,
    arguments: Sequence[str],
    definition: Definition | None,
    upload: Upload,
    notes: Sequence[str] = (),
) -> Job:
    environment = _environment(definition)
    runtime_env: dict[str, object] = {
        "working_dir": str(upload.folder),
        "excludes": list(EXCLUDES),
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)},
        **environment,
    }
    uploads, notes = [upload], list(notes)
    package = None
    if not _is_checkout(upload) and not _is_there_already(definition):
        package = package_folder()
        runtime_env["py_modules"] = [str(package.path)]
        uploads.append(upload_of(package.path))
    if upload.num_bytes > LARGE_BYTES:
        notes.append(
            f"an upload of {describe_bytes(upload.num_bytes)} stays in the memory of the cluster's head: see .rayignore"
        )
    if definition is not None and definition.secrets:
        notes.append(f"{', '.join(definition.secrets)}: a job carries no keys, the nodes' environment must hold them")
    if definition is not None and definition.time_limit_hours is not None:
        notes.append(
            "time_limit_hours: Ray's job server has no time limit; set `max_wallclock_seconds` in the sweep file"
        )
    _refuse_secrets(arguments, environment)
    command = shlex.join(["python", "-m", "tailsweep", *arguments])
    return Job(run, run_directory, command, runtime_env, uploads, notes, package)


def _uploaded(folder: Path) -> Upload:
    try:
        return upload_of(folder)
    except UploadError as error:
        raise JobError(str(error)) from None


def _is_there_already(definition: Definition | None) -> bool:
    """Return whether the definition provides this project: by its image, or among the installed packages."""
    if definition is not None and definition.image is not None:
        return True
    return any(line.strip().startswith("tailsweep") for lines in _environment(definition).values() for line in lines)


def _environment(definition: Definition | None) -> dict[str, list[str]]:
    """Return ``{"pip": [...]}``, ``{"uv": [...]}`` or nothing."""
    if definition is None or definition.environment is None:
        return {}
    return definition.environment.model_dump(exclude_none=True)


def _is_checkout(upload: Upload) -> bool:
    """Return whether the working directory holds this project's own code.

    Raises:
        JobError: It holds another package of this name, which the job would import in place of ours.
    """
    if not upload.holds("tailsweep/__init__.py"):
        return False
    if not all(upload.holds(f"{package}/__init__.py") for package in PACKAGES):
        raise JobError(
            f"{upload.folder} holds a package `tailsweep` of its own, which the job would import in place of this "
            "project: rename it, or submit from another folder"
        )
    return True


def _in_upload(file: Path, upload: Upload) -> str:
    relative = os.path.relpath(file.absolute(), upload.folder)
    if relative.startswith("..") or not upload.holds(relative):
        why = "lies outside of" if relative.startswith("..") else "is kept out (by .gitignore or .rayignore) of"
        raise JobError(
            f"{file} {why} {upload.folder}, the folder that is uploaded: go to a folder above it that holds all the "
            "sweep reads, or copy it here"
        )
    return PurePosixPath(relative).as_posix()


def _refuse_missing_files(sources: Iterable[tuple[str, str]], upload: Upload) -> None:
    """Refuse relative files that a job would not find in its copy of the folder."""
    for setting, source in sources:
        if _is_the_nodes_own(source):
            continue
        path = upload.folder / source
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        absent = [file for file in files if not upload.holds(os.path.relpath(file, upload.folder))]
        if absent:
            raise JobError(
                f'{setting} is "{source}", but {os.path.relpath(absent[0], upload.folder)} is not in the upload: kept '
                "out by .gitignore or .rayignore, or outside of this folder; let it in, or put it where all nodes "
                "reach it and give that path"
            )
        if not path.exists() and PurePosixPath(source).suffix.lower() in ROW_FILES:
            raise JobError(f'{setting} is "{source}", but there is no such file in {upload.folder}')


def _is_the_nodes_own(source: str) -> bool:
    return source.startswith(("/", "~"))


def _sources(sweep: Sweep) -> Iterator[tuple[str, str]]:
    """Yield the settings that may be paths, of data and models. Names on a hub are among them."""
    config = sweep.config
    named: list[tuple[str, object]] = [
        (f"data.{role}", config.data.get(role)) for role in ("train", "validation", "test")
    ]
    augmentation = config.data.get("augmentation")
    if isinstance(augmentation, Mapping):
        named.append(("data.augmentation.file", augmentation.get("file")))
    model = config.model.get("name")
    choices = next(iter(model.values())) if isinstance(model, Mapping) else (model,)
    named += [("model.name", choice) for choice in choices]
    yield from ((setting, value) for setting, value in named if isinstance(value, str) and "://" not in value)


def _refuse_secrets(arguments: Sequence[str], environment: Mapping[str, list[str]]) -> None:
    """Refuse keys: whoever reaches the cluster can read a job's command and environment."""
    places = [
        *(("the command", text) for text in arguments),
        *((name, line) for name, lines in environment.items() for line in lines),
    ]
    for place, text in places:
        if has_a_secret_within(text):
            raise JobError(
                f"{place} holds a URI with a key or a password, and whoever reaches the cluster can read a job's "
                "command and environment: let the nodes' own environment hold it (PIP_INDEX_URL or a netrc file for "
                "packages), or build an image (the value is not shown)"
            )
