"""``tailsweep cluster render KIND``: a cluster's definition, and the sweep it is to run, as the text of their kind.

All that can be known without a cluster is checked first, and all mistakes are told at once: the definition's own, what
its kind cannot make of it, the sweep's, and what the sweep asks for against what the nodes will have.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from tailsweep.clusters.capacity import workers_on
from tailsweep.clusters.definition import Definition
from tailsweep.clusters.render import kuberay, local, ray_up, secrets, slurm
from tailsweep.clusters.render.entrypoint import PERHAPS_WITH_A_SWEEP, WITH_A_SWEEP
from tailsweep.orchestrator.config.errors import SweepConfigError
from tailsweep.orchestrator.config.sweep import Sweep, folder_name, is_named, load_sweep
from tailsweep.orchestrator.jobs.definition_file import load_definition
from tailsweep.trainables.errors import InputError


def main(parsed: argparse.Namespace) -> int:
    """Print the text; what is only worth knowing goes to standard error."""
    text, notes = render(parsed.kind, parsed.cluster, parsed.sweep, parsed.overrides)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    sys.stdout.write(text)
    return 0


@dataclass(frozen=True)
class Job:
    """The sweep that a cluster is to run."""

    file: Path
    sweep: Sweep
    named: bool  # by its file or an override, not by the time
    overrides: Sequence[str]

    def arguments(self, name: str) -> list[str]:
        """Of ``run``, after the file; ``name`` is the run directory's."""
        overrides = [override for override in self.overrides if override.partition("=")[0] != "name"]
        words = [f"name={name}", *overrides]
        return ["--storage", self.sweep.config.storage, *(word for each in words for word in ("--set", each))]


def render(kind: str, cluster: Path, sweep: Path | None, overrides: Sequence[str]) -> tuple[str, list[str]]:
    """The text, and what else the user may want to know.

    Raises:
        SweepConfigError: with all mistakes of the definition, or of the sweep.
    """
    definition = load_definition(cluster)
    if sweep is None and kind in WITH_A_SWEEP:
        raise InputError(f"{kind} runs one sweep: name its file, `tailsweep cluster render {kind} SWEEP.yaml ...`")
    if sweep is not None and kind not in (*WITH_A_SWEEP, *PERHAPS_WITH_A_SWEEP):
        raise InputError(
            f"{kind} is a cluster that takes jobs: render it without {sweep}, start it, then `tailsweep cluster submit "
            f"{sweep} --cluster {cluster}`"
        )
    if sweep is None and overrides:
        raise InputError("--set changes a field of a sweep file: name one")
    job = None
    if sweep is not None:
        loaded = load_sweep(sweep, overrides, definition.storage.location)
        job = Job(sweep, loaded, is_named(sweep, overrides), overrides)
    found, notes = _told_by_kind(kind, definition)
    if job is not None:
        found += _sweep_mistakes(kind, definition, job)
    if found:
        raise SweepConfigError(str(cluster), found)
    return _text(kind, definition, job), notes


def _text(kind: str, definition: Definition, job: Job | None) -> str:
    name = "" if job is None else str(job.sweep.config.name)
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


def _told_by_kind(kind: str, definition: Definition) -> tuple[list[str], list[str]]:
    """What the kind cannot make of the definition, and what in it has no effect there."""
    match kind:
        case "rayjob" | "raycluster":
            return kuberay.mistakes(definition), kuberay.notes(definition)
        case "slurm":
            return slurm.mistakes(definition), slurm.notes(definition)
        case "local":
            return local.mistakes(definition) + _secrets_here(definition), local.notes(definition)
        case _:
            provider = _provider(kind)
            found = ray_up.mistakes(definition, provider) + _secrets_here(definition)
            return found, ray_up.notes(definition, provider)


def _secrets_here(definition: Definition) -> list[str]:
    if definition.secrets_file is None or not definition.secrets:
        return []
    return secrets.mistakes(definition.secrets_file, list(definition.secrets))


def _provider(kind: str) -> ray_up.Provider:
    return next(provider for provider in ray_up.PROVIDERS if provider == kind)


def _sweep_mistakes(kind: str, definition: Definition, job: Job) -> list[str]:
    """What of the sweep the cluster cannot do, as far as that can be known here."""
    config = job.sweep.config
    found = []
    stages = ["stage_two"] if config.promote == "all" else ["stage_one", "stage_two"]
    for stage in stages:
        asked = getattr(config.resources, stage)
        cpus, gpus = asked.cpus_per_worker, asked.gpus_per_worker
        fewest = asked.min_workers or asked.workers
        hold = sum(
            workers_on({"CPU": group.cpus, "GPU": group.gpus}, cpus, gpus) * group.max_nodes
            for group in definition.groups
        )
        if hold < fewest:
            nodes = ", ".join(
                f"{group.name}: {group.max_nodes} of {group.cpus} CPU and {group.gpus} GPU"
                for group in definition.groups
            )
            found.append(
                f"groups: hold {hold} worker(s) of {cpus:g} CPU and {gpus:g} GPU each, but resources.{stage} of "
                f"{job.file} asks for {fewest} ({nodes}): ask for less, or add nodes"
            )
    if kind == "rayjob":
        if config.wandb.mode == "online" and "WANDB_API_KEY" not in definition.secrets:
            found.append(
                f"secrets.WANDB_API_KEY: missing, but {job.file} has wandb: {{mode: online}}: name the Secret with the "
                "key"
            )
        mounted = definition.storage.path
        for field in ("train", "validation", "test"):
            source = config.data.get(field)
            if not isinstance(source, str) or "://" in source or not Path(source).exists():
                continue
            if mounted is None or not Path(source).is_relative_to(mounted):
                found.append(
                    f"storage: {source}, data.{field} of {job.file}, is of this machine: put it where every pod reads "
                    "it, on the volume that is mounted there, and name it by its path there"
                )
    return found


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as such; no aliases."""

    def ignore_aliases(self, data: object) -> bool:
        return True


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, "|" if "\n" in text else None),
)


def _yaml(command: str, documents: Sequence[dict[str, Any]]) -> str:
    texts = [yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=10**6) for document in documents]
    return f"# Rendered by tailsweep; to start it: {command}\n" + "---\n".join(texts)
