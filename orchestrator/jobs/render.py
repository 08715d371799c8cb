"""``tailsweep cluster render KIND``: print a cluster's definition, and the sweep it runs, as a file of that kind.

Everything that can be checked without a cluster is checked first, and all errors are reported together: those of the
definition, what its kind does not support, those of the sweep, and resources that the nodes will not have.
"""

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import yaml
from tailsweep.clusters.capacity import workers_on
from tailsweep.clusters.definition import Definition
from tailsweep.clusters.render import kuberay, local, ray_up, secret_exports, slurm
from tailsweep.clusters.render.entrypoint import PERHAPS_WITH_A_SWEEP, WITH_A_SWEEP
from tailsweep.orchestrator.config.errors import SweepConfigError
from tailsweep.orchestrator.config.sweep import Sweep, folder_name, is_named, load_sweep
from tailsweep.orchestrator.jobs.definition_file import load_definition
from tailsweep.trainables.errors import InputError

logger = logging.getLogger(__name__)


def main(parsed: argparse.Namespace) -> int:
    """Print the text to standard output and the notes to standard error."""
    text, notes = render(parsed.kind, parsed.cluster, parsed.sweep, parsed.overrides)
    for note in notes:
        logger.info(f"note: {note}")
    sys.stdout.write(text)
    return 0


@dataclass(frozen=True)
class Job:
    """A sweep that a cluster runs."""

    file: Path
    sweep: Sweep
    named: bool  # by its file or an override, not by the time
    overrides: Sequence[str]

    def arguments(self, name: str) -> list[str]:
        """Return the arguments of ``run`` after the file; ``name`` is that of the run directory."""
        overrides = [override for override in self.overrides if override.partition("=")[0] != "name"]
        words = [f"name={name}", *overrides]
        return ["--storage", self.sweep.config.storage, *(word for each in words for word in ("--set", each))]


def render(kind: str, cluster: Path, sweep: Path | None, overrides: Sequence[str]) -> tuple[str, list[str]]:
    """Return the text, and notes for the user.

    Args:
        kind: One of ``KINDS``.
        cluster: The file with the cluster's definition.
        sweep: The sweep file, for kinds that run one.
        overrides: ``KEY=VALUE`` each, for the sweep.

    Raises:
        SweepConfigError: With all errors of the definition, or of the sweep.
        InputError: The kind and the arguments do not fit.
    """
    definition = load_definition(cluster)
    if sweep is None and kind in WITH_A_SWEEP:
        raise InputError(f"{kind} runs one sweep: name its file, `tailsweep cluster render {kind} SWEEP.yaml ...`")
    if sweep is not None and kind not in (*WITH_A_SWEEP, *PERHAPS_WITH_A_SWEEP):
        raise InputError(
            f"{kind} is a cluster that accepts jobs: render it without {sweep}, start it, then `tailsweep cluster "
            f"submit {sweep} --cluster {cluster}`"
        )
    if sweep is None and overrides:
        raise InputError("--set changes a field of a sweep file: name one")
    job = None
    if sweep is not None:
        loaded = load_sweep(sweep, overrides, definition.storage.location)
        job = Job(sweep, loaded, is_named(sweep, overrides), overrides)
    issues, notes = _checked_by_kind(kind, definition)
    if job is not None:
        issues += _sweep_issues(kind, definition, job)
    if issues:
        raise SweepConfigError(str(cluster), issues)
    return _text(kind, definition, job), notes


def _text(kind: str, definition: Definition, job: Job | None) -> str:
    name = "" if job is None else job.sweep.name
    match kind:
        case "rayjob":
            assert job is not None
            arguments, text = job.arguments(name), job.file.read_text(encoding="utf-8-sig")
            return _yaml("kubectl apply -f FILE", kuberay.ray_job(definition, text, arguments, version("ray")))
        case "raycluster":
            return _yaml("kubectl apply -f FILE", kuberay.ray_cluster(definition, version("ray")))
        case "slurm":
            assert job is not None
            name = name if job.named else f"{folder_name(job.file)}-{slurm.JOB_ID}"
            return slurm.sbatch_script(definition, str(job.file), job.arguments(name))
        case "local":
            arguments = [] if job is None else job.arguments(name)
            return local.local_script(definition, None if job is None else str(job.file), arguments)
        case _:
            provider = _provider(kind)
            return _yaml("ray up FILE", [ray_up.ray_up_config(definition, provider)])


def _checked_by_kind(kind: str, definition: Definition) -> tuple[list[str], list[str]]:
    """Return what of the definition the kind does not support, and what has no effect there."""
    match kind:
        case "rayjob" | "raycluster":
            return kuberay.issues(definition), kuberay.notes(definition)
        case "slurm":
            return slurm.issues(definition), slurm.notes(definition)
        case "local":
            return local.issues(definition) + _secrets_here(definition), local.notes(definition)
        case _:
            provider = _provider(kind)
            issues = ray_up.issues(definition, provider) + _secrets_here(definition)
            return issues, ray_up.notes(definition, provider)


def _secrets_here(definition: Definition) -> list[str]:
    if definition.secrets_file is None or not definition.secrets:
        return []
    return secret_exports.issues(definition.secrets_file, list(definition.secrets))


def _provider(kind: str) -> ray_up.Provider:
    return next(provider for provider in ray_up.PROVIDERS if provider == kind)


def _sweep_issues(kind: str, definition: Definition, job: Job) -> list[str]:
    """Return what of the sweep the cluster cannot do, as far as can be known here."""
    issues = _resource_issues(definition, job)
    return [*issues, *_wandb_issues(definition, job), *_data_issues(definition, job)] if kind == "rayjob" else issues


def _resource_issues(definition: Definition, job: Job) -> list[str]:
    config = job.sweep.config
    issues = []
    stages = ["stage_two"] if job.sweep.two_phase is None else ["stage_one", "stage_two"]
    for stage in stages:
        requested = getattr(config.resources, stage)
        cpus, gpus = requested.cpus_per_worker, requested.gpus_per_worker
        fewest = requested.min_workers or requested.workers
        capacity = sum(
            workers_on({"CPU": group.cpus, "GPU": group.gpus}, cpus, gpus) * group.max_nodes
            for group in definition.groups
        )
        if capacity < fewest:
            nodes = ", ".join(
                f"{group.name}: {group.max_nodes} of {group.cpus} CPU and {group.gpus} GPU"
                for group in definition.groups
            )
            issues.append(
                f"groups: hold {capacity} worker(s) of {cpus:g} CPU and {gpus:g} GPU each, but resources.{stage} of "
                f"{job.file} asks for {fewest} ({nodes}): ask for less, or add nodes"
            )
    return issues


def _wandb_issues(definition: Definition, job: Job) -> list[str]:
    if job.sweep.config.wandb.mode != "online" or "WANDB_API_KEY" in definition.secrets:
        return []
    return [f"secrets.WANDB_API_KEY: missing, but {job.file} has wandb: {{mode: online}}: name the Secret with the key"]


def _data_issues(definition: Definition, job: Job) -> list[str]:
    """Return the files of this machine that pods would not find."""
    mounted = definition.storage.path
    sources = [(field, job.sweep.config.data.get(field)) for field in ("train", "validation", "test")]
    return [
        f"storage: {source}, data.{field} of {job.file}, is a file of this machine: put it where every pod reads it, "
        "on the volume that is mounted there, and name it by its path there"
        for field, source in sources
        if isinstance(source, str)
        and "://" not in source
        and Path(source).exists()
        and (mounted is None or not Path(source).is_relative_to(mounted))
    ]


class _Dumper(yaml.SafeDumper):
    """A dumper that writes texts of several lines as blocks, without aliases."""

    def ignore_aliases(self, data: object) -> bool:
        return True


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, "|" if "\n" in text else None),
)


def _yaml(command: str, documents: Sequence[Mapping[str, object]]) -> str:
    texts = [yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=10**6) for document in documents]
    return f"# Rendered by tailsweep; to start it: {command}\n" + "---\n".join(texts)
