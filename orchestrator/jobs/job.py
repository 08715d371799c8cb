"""What a sweep, or a comparison, is as a job of a cluster's Ray: its command, files, environment and id.

All that can be found wrong here is found before anything is sent. Nothing is started, and no cluster is asked.
"""

import itertools
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from tailsweep.clusters.definition import Definition
from tailsweep.clusters.jobs.upload import EXCLUDES, Upload, UploadError, in_bytes, upload_of
from tailsweep.orchestrator.comparison.config import is_comparison, load_comparison
from tailsweep.orchestrator.config.redaction import REMEDY, has_a_secret, has_a_secret_within
from tailsweep.orchestrator.config.sweep import Sweep, load_sweep
from tailsweep.orchestrator.config.yaml_io import read_sweep_file
from tailsweep.orchestrator.jobs.package import PACKAGES, PackageFolder, package_folder
from tailsweep.trainables.errors import InputError

RUN = "tailsweep_run"  # of a job's metadata: the run directory's name, and where it is
RUN_DIRECTORY = "tailsweep_run_directory"
ROW_FILES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
LARGE_BYTES = 100_000_000  # of an upload, worth a word: the head keeps it in memory
# Between SIGTERM and SIGKILL, where the job is stopped: until a sweep has ended its candidates. Ray's default is 3.
STOP_SECONDS = 120


class JobError(InputError):
    """The sweep cannot be sent as it is."""


@dataclass(frozen=True)
class Job:
    """A job as Ray's client takes it."""

    run: str  # the run directory's name: the same sweep is not run twice at once
    run_directory: str
    command: str  # for a shell
    runtime_env: dict[str, Any]
    uploads: list[Upload]  # the working directory; then tailsweep's own packages, where they go along
    notes: list[str] = field(default_factory=list)  # for the user: what is allowed, but may not be what was meant
    package: PackageFolder | None = None  # where the nodes do not have it; lives as long as the job is not submitted

    @property
    def metadata(self) -> dict[str, str]:
        return {RUN: self.run, RUN_DIRECTORY: self.run_directory}


@dataclass(frozen=True)
class _Work:
    """What a file asks for."""

    verb: str
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
    """``python -m tailsweep run FILE``, or ``compare FILE``, in a copy of ``folder``.

    Args:
        storage: before what ``overrides`` say, then the definition, then the file.

    Raises:
        SweepConfigError: with all mistakes of the file.
        JobError: it cannot run on a cluster as it is.
    """
    if storage is None and definition is not None and not any(text.startswith("storage=") for text in overrides):
        storage = definition.storage.location
    work = _work_of(file, overrides, storage)
    refuse_unreachable(work.storage, "storage", "--storage")
    upload = _uploaded(folder)
    relative = _in_upload(file, upload)
    sources = list(dict.fromkeys(source for sweep in work.sweeps for source in _sources(sweep)))
    _refuse_missing_files(sources, upload)
    arguments = [work.verb, relative]
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
        return _Work("run", str(sweep.config.name), sweep.config.storage, [sweep])
    comparison = load_comparison(file, overrides, storage)
    config = comparison.config
    sweeps = [comparison.search(method, comparison.folds[0]) for method in config.methods]
    return _Work("compare", config.name, config.storage, sweeps)


def job_of_resume(location: str, definition: Definition | None, folder: Path) -> Job:
    """``python -m tailsweep resume RUN``, in a copy of ``folder``.

    Raises:
        JobError: it cannot run on a cluster as it is.
    """
    if has_a_secret(location):
        raise JobError(f"the run directory's URI holds a key or a password: {REMEDY}")
    refuse_unreachable(location, "RUN", "RUN")
    location = location.rstrip("/")
    return _job(PurePosixPath(location).name, location, ["resume", location], definition, _uploaded(folder))


def refuse_unreachable(location: str, what: str, argument: str) -> None:
    """Refuse a relative folder: on a cluster it would lie in the job's copy of the upload, on one node.

    Raises:
        JobError: it is one.
    """
    if "://" not in location and not location.startswith(("/", "~")):
        raise JobError(
            f'{what} is "{location}", a folder relative to this one: on the cluster it would lie in the job\'s own '
            f"copy of the upload, which Ray removes; name by {argument} a folder that all nodes share (/shared/runs) "
            "or a URI (s3://BUCKET/runs)"
        )


def free_id(run: str, jobs: Iterable[Any], cluster: Sequence[str] = ()) -> str:
    """The id for a job of this run: its name, or ``NAME-2``, ``NAME-3`` ... where jobs of that id have ended.

    Args:
        jobs: those that the cluster knows, with ``submission_id``, ``status`` and ``metadata``.
        cluster: the arguments that name it, for the message.

    Raises:
        JobError: one of them works on this run.
    """
    taken = set()
    for job in jobs:
        taken.add(job.submission_id)
        if run in (job.submission_id, (job.metadata or {}).get(RUN)) and not job.status.is_terminal():
            see, end = (
                shlex.join(["tailsweep", "cluster", verb, job.submission_id, *cluster]) for verb in ("status", "stop")
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
    runtime_env: dict[str, Any] = {
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
            f"an upload of {in_bytes(upload.num_bytes)} stays in the memory of the cluster's head: see .rayignore"
        )
    if definition is not None and definition.secrets:
        notes.append(f"{', '.join(definition.secrets)}: a job carries no keys, the nodes' environment must hold them")
    if definition is not None and definition.time_limit_hours is not None:
        notes.append("time_limit_hours: Ray's job server keeps no time; `max_seconds` in the sweep file does")
    _refuse_secrets(arguments, environment)
    command = shlex.join(["python", "-m", "tailsweep", *arguments])
    return Job(run, run_directory, command, runtime_env, uploads, notes, package)


def _uploaded(folder: Path) -> Upload:
    try:
        return upload_of(folder)
    except UploadError as error:
        raise JobError(str(error)) from None


def _is_there_already(definition: Definition | None) -> bool:
    """Whether the cluster has this project by the definition's word: in its image, or among the packages installed."""
    if definition is not None and definition.image is not None:
        return True
    return any(line.strip().startswith("tailsweep") for lines in _environment(definition).values() for line in lines)


def _environment(definition: Definition | None) -> dict[str, list[str]]:
    """``{"pip": [...]}``, ``{"uv": [...]}`` or nothing."""
    if definition is None or definition.environment is None:
        return {}
    return definition.environment.model_dump(exclude_none=True)


def _is_checkout(upload: Upload) -> bool:
    """Return whether the working directory holds this project's own code.

    Raises:
        JobError: it holds another package of this name, which the job would import in place of ours.
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
    """Refuse relative files that a job would look for in its copy of the folder, and not find."""
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
    """The settings that may be paths: rows, and models. A hub's names are among them."""
    config = sweep.config
    named: list[tuple[str, Any]] = [(f"data.{role}", config.data.get(role)) for role in ("train", "validation", "test")]
    augmentation = config.data.get("augmentation")
    if isinstance(augmentation, dict):
        named.append(("data.augmentation.file", augmentation.get("file")))
    model = config.model.get("name")
    choices = next(iter(model.values())) if isinstance(model, Mapping) else [model]
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
