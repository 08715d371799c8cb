"""Whether a sweep can start: this machine, the nodes of its Ray and its settings, looked at before anything is written.

``tailsweep doctor`` prints every check; ``run``, ``resume`` and ``compare`` make the same ones and refuse to start
where one finds an error. What every node must have whatever runs on it is in ``clusters/nodes/checks.py``, what a sweep
needs of a node in ``node_needs.py``.
"""

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import ray
from rich.console import Console
from tailsweep.clusters.nodes.checks import (
    Check,
    Finding,
    gpu_check,
    nodes_check,
    state_api_check,
    storage_check,
    token_check,
    versions_check,
)
from tailsweep.clusters.nodes.probe import (
    Facts,
    Node,
    Question,
    SharedStorage,
    alive_nodes,
    ask_nodes,
    free_bytes,
    look,
)
from tailsweep.orchestrator.config.sweep import Sweep
from tailsweep.orchestrator.planning.disk_usage import Forecast
from tailsweep.orchestrator.planning.preparation import prepare_trials
from tailsweep.orchestrator.planning.ray_session import ray_session
from tailsweep.orchestrator.planning.resources import ClusterError
from tailsweep.orchestrator.preflight.checks import disk_check, look_at_wandb, model_check, request_check
from tailsweep.orchestrator.preflight.needs import Needs, needs_of
from tailsweep.orchestrator.preflight.node_probe import NodeNeeds, look_for_sweep
from tailsweep.orchestrator.runs.directory import RunDirectory
from tailsweep.trainables.errors import InputError
from tailsweep.trainables.models.hub import PACKAGED_MODEL, PACKAGED_MODULE
from tailsweep.trainables.storage.filesystem import soon_refused

PACKAGES = ("ray", "torch", "transformers", "tokenizers", "datasets", "pyarrow", "numpy", "wandb", "tailsweep")
OUR_CODE = ("tailsweep.trainables", "tailsweep.orchestrator", "tailsweep.clusters")

DEFAULT_STORAGE = "runs"


class NotReady(InputError):
    """A sweep cannot start; the message has every finding."""


def refuse_unready(needs: Needs, started_here: bool, say: Callable[[str], None]) -> None:
    """The checks before a start: warnings are said.

    Args:
        started_here: as :func:`ray_session` yields it.

    Raises:
        NotReady: with all errors; nothing has been left anywhere.
    """
    checks = look_at_cluster(needs, started_here, thorough=False).checks
    checks += look_at_wandb(needs)
    found = [(check.name, finding) for check in checks for finding in check.findings]
    for name, finding in found:
        if finding.severity != "error":
            say(f"note: {name}: {finding}")
    errors = [f"{name}: {finding}" for name, finding in found if finding.severity == "error"]
    if len(errors) == 1:
        raise NotReady(f"not started: {errors[0]}")
    if errors:
        raise NotReady("\n  ".join([f"not started, {len(errors)} findings:", *errors]))


def doctor(sweep: Sweep | None, storage: str | None, address: str | None, as_json: bool, console: Console) -> int:
    """Make every check and print it; returns the exit status: 0, or 2 where something must be mended.

    Args:
        sweep: whose needs are looked at too; None: only what any sweep needs.
        storage: in place of the sweep's own, and of ``runs``.
        console: for what is said meanwhile; the result goes to standard output.

    Raises:
        RunDirectoryError: storage is no folder and no URI, or holds a key.
    """
    checks: list[Check] = []
    needs = Needs(storage or DEFAULT_STORAGE)
    RunDirectory(needs.storage if sweep is None else sweep.config.storage)  # what is no location at all is refused
    if sweep is not None:
        check, needs = _prepare(sweep, lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True))
        checks.append(check)
    looked = Looked([], [], {}, {})
    try:
        with ray_session(address) as started_here:
            looked = look_at_cluster(needs, started_here, thorough=True)
    except ClusterError as error:
        what, _, remedy = str(error).rpartition("; ")
        checks.append(Check("Ray", "", (Finding("error", what, remedy),)))
    checks += looked.checks
    checks += look_at_wandb(needs)
    print(json.dumps(_document(checks, looked), indent=2) if as_json else table(checks))
    return 2 if any(finding.severity == "error" for check in checks for finding in check.findings) else 0


def _prepare(sweep: Sweep, say: Callable[[str], None]) -> tuple[Check, Needs]:
    """What ``run`` does before it connects: rows read, tokenised and cached, models loaded, features planned."""
    config = sweep.config
    trials = [trial.model_dump(mode="json") for trial in (c.trial for c in sweep.candidates())]
    trials = trials or [trial.model_dump(mode="json") for trial in sweep.representatives()]
    try:
        prepared = prepare_trials(trials, config.metric, config.features, say, config.finish)
    except InputError as error:
        finding = Finding("error", str(error), "")  # it says what to do
        return Check("rows and model", "", (finding,)), needs_of(sweep, trials, None)
    notes = [Finding("note", note, "") for note in (*sweep.notes, *prepared.notes)]
    rows = ", ".join(f"{int(data.class_counts.sum()):,} rows to train on" for data in prepared.data.values())
    needs = needs_of(sweep, trials, prepared)
    return Check("rows and model", f"{rows}; {', '.join(needs.models)}", tuple(notes)), needs


@dataclass(frozen=True)
class Looked:
    """At a cluster."""

    checks: list[Check]
    nodes: list[Node]
    facts: dict[str, Facts]  # by the nodes' ids
    needs: dict[str, NodeNeeds]  # likewise


def look_at_cluster(needs: Needs, started_here: bool, thorough: bool) -> Looked:
    """Ask every node of the Ray that is connected, and judge the answers.

    Args:
        started_here: its one node is this machine with this environment, which answers without a task.
        thorough: look at GPUs nobody asks for, and in a process of its own even here.
    """
    nodes = alive_nodes()
    asks_for_gpus = any(asked["gpus_per_worker"] for _, asked in needs.placements)
    gpus: Literal["no", "count", "names"] = "no"
    if (thorough or asks_for_gpus) and any(node.gpus for node in nodes):
        gpus = "count" if started_here and not thorough else "names"
    with SharedStorage(soon_refused(needs.storage)) as storage:
        question = Question(
            packages=PACKAGES,
            code=OUR_CODE,
            salt=uuid.uuid4().hex,
            gcs_address=ray.get_runtime_context().gcs_address,
            storage=storage.location,
            gpus=gpus,
        )
        known = needs.forecast or Forecast({}, {}, 0, 0)
        models = {name: PACKAGED_MODULE if name == PACKAGED_MODEL else None for name in needs.models}
        of_sweep = (known.tokens, known.features, needs.features_dir)
        if started_here:
            facts = {node.id: look(node.id, question) for node in nodes}
            silent: dict[str, str] = {}
            driver = facts[nodes[0].id]
            found = {node.id: look_for_sweep(node.id, *of_sweep, {}) for node in nodes}  # the models were loaded here
        else:
            driver = look("driver", {**question, "gcs_address": "", "storage": None, "gpus": "no"})
            answers = ask_nodes(nodes, look, question)
            facts, silent = answers.facts, answers.silent
            with_code = [node for node in nodes if node.id in facts and facts[node.id]["code"] is not None]
            answers = ask_nodes(with_code, look_for_sweep, *of_sweep, models)
            found, silent = answers.facts, silent | answers.silent
        heard = storage.heard(nodes)
    checks = [
        nodes_check(nodes, silent),
        versions_check(driver, nodes, facts, ours="tailsweep"),
        token_check(driver, nodes, facts),
        state_api_check(nodes, facts),
        storage_check(needs.storage, storage.refused, nodes, facts, heard),
    ]
    if gpus != "no" or thorough:
        checks.append(gpu_check(nodes, facts))
    checks.append(request_check(needs.placements))
    free = None if "://" in needs.storage else free_bytes(Path(needs.storage).expanduser().absolute())
    rooms = [(node.name, room) for node in nodes if node.id in found for room in found[node.id]["rooms"]]
    checks.append(disk_check(needs.storage, free, rooms, needs.forecast))
    if needs.models:
        checks.append(model_check({node.name: found[node.id]["models"] for node in nodes if node.id in found}))
    return Looked(checks, nodes, facts, found)


def table(checks: Sequence[Check]) -> str:
    """A line for each thing that is as it should be, and for each finding."""
    rows = []
    for check in checks:
        if all(finding.severity == "note" for finding in check.findings):
            rows.append(("ok", check.name, check.passed))
        rows += [(finding.severity, check.name, str(finding)) for finding in check.findings]
    width = max(len(name) for _, name, _ in rows)
    lines = [f"{severity:<7}  {name:<{width}}  {text}" for severity, name, text in rows]
    errors, warnings = (sum(severity == wanted for severity, _, _ in rows) for wanted in ("error", "warning"))
    end = "nothing stands in the way" if not errors else f"{errors} to mend before a sweep can start"
    return "\n".join([*lines, "", end + (f"; {warnings} warning(s)" if warnings else "")])


def _document(checks: Sequence[Check], looked: Looked) -> dict[str, Any]:
    nodes = []
    for node in looked.nodes:
        facts: Mapping[str, Any] = looked.facts.get(node.id, {})
        shown = {"python": facts.get("python"), "packages": facts.get("packages"), "gpus_seen": facts.get("gpus")}
        rooms = looked.needs[node.id]["rooms"] if node.id in looked.needs else []
        nodes.append({**asdict(node), "answered": bool(facts), **shown, "rooms": rooms})
    return {
        "ok": not any(finding.severity == "error" for check in checks for finding in check.findings),
        "checks": [asdict(check) for check in checks],
        "nodes": nodes,
    }
