"""Whether a sweep can start: this machine, the nodes of its Ray and its settings, looked at before anything is written.

``tailsweep doctor`` prints every check; ``run``, ``resume`` and ``compare`` make the same ones and refuse to start
where one finds an error. What every node must have whatever runs on it is in ``clusters/nodes/checks.py``, what a sweep
needs of a node in ``node_needs.py``.
"""

import json
import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import ray
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
    Node,
    NodeInfo,
    ProbeRequest,
    SharedStorage,
    alive_nodes,
    free_bytes,
    probe_node,
    run_on_nodes,
)
from tailsweep.orchestrator.config.sweep import Sweep
from tailsweep.orchestrator.planning.disk_usage import Forecast
from tailsweep.orchestrator.planning.plan import Table, format_class_table, plan_sweep, plan_unprepared
from tailsweep.orchestrator.planning.ray_session import ray_session
from tailsweep.orchestrator.planning.resources import ClusterError
from tailsweep.orchestrator.preflight.checks import disk_check, inspect_wandb, model_check, request_check
from tailsweep.orchestrator.preflight.needs import Needs, needs_of
from tailsweep.orchestrator.preflight.node_probe import NodeNeeds, inspect_for_sweep
from tailsweep.orchestrator.runs.directory import RunDirectory
from tailsweep.trainables.errors import InputError
from tailsweep.trainables.models.hub import PACKAGED_MODEL, PACKAGED_MODULE
from tailsweep.trainables.storage.filesystem import soon_refused

PACKAGES = ("ray", "torch", "transformers", "tokenizers", "datasets", "pyarrow", "numpy", "wandb", "tailsweep")
OUR_CODE = ("tailsweep.trainables", "tailsweep.orchestrator", "tailsweep.clusters")

DEFAULT_STORAGE = "runs"
LOG_LEVELS = {"note": logging.INFO, "warning": logging.WARNING}  # by the severity of a finding

logger = logging.getLogger(__name__)


class NotReady(InputError):
    """A sweep cannot start; the message has every finding."""


def require_ready(needs: Needs, started_here: bool) -> None:
    """Make the checks before a start, and log what they warn of.

    Args:
        started_here: as :func:`ray_session` yields it.

    Raises:
        NotReady: with all errors; nothing has been left anywhere.
    """
    checks = inspect_cluster(needs, started_here, thorough=False).checks
    checks += inspect_wandb(needs)
    findings = [(check.name, finding) for check in checks for finding in check.findings]
    for name, finding in findings:
        if finding.severity != "error":
            logger.log(LOG_LEVELS[finding.severity], "note: %s: %s", name, finding)
    errors = [f"{name}: {finding}" for name, finding in findings if finding.severity == "error"]
    if len(errors) == 1:
        raise NotReady(f"not started: {errors[0]}")
    if errors:
        raise NotReady("\n  ".join([f"not started, {len(errors)} findings:", *errors]))


def doctor(sweep: Sweep | None, storage: str | None, address: str | None, as_json: bool) -> int:
    """Make every check and print it; returns the exit status: 0, or 2 where something must be fixed.

    Args:
        sweep: whose needs are looked at too; None: only what any sweep needs.
        storage: in place of the sweep's own, and of ``runs``.
        as_json: print one JSON document in place of the lines.

    Raises:
        RunDirectoryError: storage is no folder and no URI, or holds a key.
    """
    checks: list[Check] = []
    tables: list[Table] = []
    needs = Needs(storage or DEFAULT_STORAGE)
    RunDirectory(needs.storage if sweep is None else sweep.config.storage)  # what is no location at all is refused
    if sweep is not None:
        check, needs, tables = _prepare(sweep)
        checks.append(check)
    report = ClusterReport([], [], {}, {})
    try:
        with ray_session(address) as started_here:
            report = inspect_cluster(needs, started_here, thorough=True)
    except ClusterError as error:
        problem, _, hint = str(error).rpartition("; ")
        checks.append(Check("Ray", "", (Finding("error", problem, hint),)))
    checks += report.checks
    checks += inspect_wandb(needs)
    if as_json:
        print(json.dumps(_document(checks, report, tables), indent=2))
    else:
        print("\n\n".join([*map(format_class_table, tables), table(checks)]))
    return 2 if any(finding.severity == "error" for check in checks for finding in check.findings) else 0


def _prepare(sweep: Sweep) -> tuple[Check, Needs, list[Table]]:
    """Do what ``run`` does before it connects: read, tokenize and cache rows, load models, plan features.

    Returns:
        The check, what the sweep needs, and the tables of its classes.
    """
    try:
        plan = plan_sweep(sweep)
    except InputError as error:
        finding = Finding("error", str(error), "")  # it says what to do
        return Check("rows and model", "", (finding,)), needs_of(plan_unprepared(sweep)), []
    assert plan.prepared is not None
    notes = [Finding("note", note, "") for note in plan.notes]
    rows = ", ".join(f"{int(data.class_counts.sum()):,} rows to train on" for data in plan.prepared.data.values())
    needs = needs_of(plan)
    check = Check("rows and model", f"{rows}; {', '.join(needs.models)}", tuple(notes))
    return check, needs, list(plan.class_tables)


@dataclass(frozen=True)
class ClusterReport:
    """The checks of a cluster and what its nodes answered."""

    checks: list[Check]
    nodes: list[Node]
    infos: dict[str, NodeInfo]  # by the nodes' ids
    needs: dict[str, NodeNeeds]  # likewise


def inspect_cluster(needs: Needs, started_here: bool, thorough: bool) -> ClusterReport:
    """Ask every node of the connected Ray, and check the answers.

    Args:
        started_here: its one node is this machine with this environment, which answers without a task.
        thorough: count GPUs that no trial requests too, and in a process of its own even here.
    """
    nodes = alive_nodes()
    asks_for_gpus = any(asked.gpus_per_worker for _, asked in needs.placements)
    gpus: Literal["no", "count", "names"] = "no"
    if (thorough or asks_for_gpus) and any(node.gpus for node in nodes):
        gpus = "count" if started_here and not thorough else "names"
    with SharedStorage(soon_refused(needs.storage)) as storage:
        question = ProbeRequest(
            packages=PACKAGES,
            code=OUR_CODE,
            salt=uuid.uuid4().hex,
            gcs_address=ray.get_runtime_context().gcs_address,
            storage=storage.location,
            gpus=gpus,
        )
        known = needs.forecast or Forecast({}, {}, 0, 0)
        models = {name: PACKAGED_MODULE if name == PACKAGED_MODEL else None for name in needs.models}
        sweep_needs = (known.tokens, known.features, needs.features_dir)
        if started_here:
            infos = {node.id: probe_node(node.id, question) for node in nodes}
            silent: dict[str, str] = {}
            driver = infos[nodes[0].id]
            needs_by_node = {  # the models were loaded here
                node.id: inspect_for_sweep(node.id, *sweep_needs, {}) for node in nodes
            }
        else:
            driver = probe_node("driver", {**question, "gcs_address": "", "storage": None, "gpus": "no"})
            answers = run_on_nodes(nodes, probe_node, question)
            infos, silent = answers.results, answers.silent
            with_code = [node for node in nodes if node.id in infos and infos[node.id]["code"] is not None]
            sweep_answers = run_on_nodes(with_code, inspect_for_sweep, *sweep_needs, models)
            needs_by_node, silent = sweep_answers.results, silent | sweep_answers.silent
        reported = storage.reported(nodes)
    checks = [
        nodes_check(nodes, silent),
        versions_check(driver, nodes, infos, ours="tailsweep"),
        token_check(driver, nodes, infos),
        state_api_check(nodes, infos),
        storage_check(needs.storage, storage.refused, nodes, infos, reported),
    ]
    if gpus != "no" or thorough:
        checks.append(gpu_check(nodes, infos))
    checks.append(request_check(needs.placements))
    free = None if "://" in needs.storage else free_bytes(Path(needs.storage).expanduser().absolute())
    rooms = [
        (node.name, room) for node in nodes if node.id in needs_by_node for room in needs_by_node[node.id]["rooms"]
    ]
    checks.append(disk_check(needs.storage, free, rooms, needs.forecast))
    if needs.models:
        checks.append(
            model_check({node.name: needs_by_node[node.id]["models"] for node in nodes if node.id in needs_by_node})
        )
    return ClusterReport(checks, nodes, infos, needs_by_node)


def table(checks: Sequence[Check]) -> str:
    """Return one line for each check that passed, and for each finding."""
    rows = []
    for check in checks:
        if all(finding.severity == "note" for finding in check.findings):
            rows.append(("ok", check.name, check.passed))
        rows += [(finding.severity, check.name, str(finding)) for finding in check.findings]
    width = max(len(name) for _, name, _ in rows)
    lines = [f"{severity:<7}  {name:<{width}}  {text}" for severity, name, text in rows]
    errors, warnings = (sum(severity == wanted for severity, _, _ in rows) for wanted in ("error", "warning"))
    end = "a sweep can start" if not errors else f"{errors} to fix before a sweep can start"
    return "\n".join([*lines, "", end + (f"; {warnings} warning(s)" if warnings else "")])


def _document(checks: Sequence[Check], report: ClusterReport, classes: Sequence[Table]) -> dict[str, Any]:
    nodes = []
    for node in report.nodes:
        info: Mapping[str, Any] = report.infos.get(node.id, {})
        shown = {"python": info.get("python"), "packages": info.get("packages"), "gpus_seen": info.get("gpus")}
        rooms = report.needs[node.id]["rooms"] if node.id in report.needs else []
        nodes.append({**asdict(node), "answered": bool(info), **shown, "rooms": rooms})
    return {
        "ok": not any(finding.severity == "error" for check in checks for finding in check.findings),
        "checks": [asdict(check) for check in checks],
        "nodes": nodes,
        "classes": [[dict(zip(table[0], row, strict=True)) for row in table[1:]] for table in classes],
    }
