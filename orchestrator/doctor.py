"""Whether a sweep can start: this machine, the nodes of its Ray and its settings, looked at before anything is written.

``tailsweep doctor`` prints every check; ``run``, ``resume`` and ``compare`` make the same ones and refuse to start
where one finds an error. What every node must have whatever runs on it is in ``clusters/preflight.py``, what a sweep
needs of a node in ``node_needs.py``.
"""

import json
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import ray
from rich.console import Console

from clusters.node_facts import Facts, Node, Question, SharedStorage, alive_nodes, ask_nodes, free_bytes, look
from clusters.preflight import (
    Check,
    Finding,
    gpu_check,
    nodes_check,
    state_api_check,
    storage_check,
    token_check,
    versions_check,
)
from orchestrator.config import Sweep
from orchestrator.forecast import Forecast, forecast, in_words, load_checkpoint_bytes
from orchestrator.node_needs import NodeNeeds, Room, look_for_sweep
from orchestrator.preparation import PreparedTrials, prepare_trials
from orchestrator.ray_session import ClusterError, ray_session, trial_slots
from orchestrator.records import Records
from orchestrator.rounds import placement
from orchestrator.run_directory import RunDirectory
from orchestrator.sweep_schema import WandbConfig
from orchestrator.wandb_account import WandbAccount, wandb_account
from trainables import keys
from trainables.errors import InputError
from trainables.feature_plan import FeaturePlan
from trainables.locations import parent_location, soon_refused
from trainables.model import PACKAGED_MODEL, PACKAGED_MODULE
from trainables.ray_trial import Placement

PACKAGES = ("ray", "torch", "transformers", "tokenizers", "datasets", "pyarrow", "numpy", "wandb", "tailsweep")
OUR_CODE = ("trainables", "orchestrator", "clusters")
LEAST_FREE = 5e9  # bytes, below which a disk is worth a warning where no sweep says what it needs

DEFAULT_STORAGE = "runs"


class NotReady(InputError):
    """A sweep cannot start; the message has every finding."""


@dataclass(frozen=True)
class Needs:
    """What a sweep will ask for, or several that share storage and cluster, as far as it is known before the start."""

    storage: str
    placements: tuple[tuple[str, Placement], ...] = ()  # with the stage whose resources they are
    models: tuple[str, ...] = ()
    features_dir: str | None = None
    forecast: Forecast | None = None  # None: nothing is known
    wandb: WandbConfig | None = None  # None: nothing is to be sent

    def __or__(self, other: "Needs") -> "Needs":
        """Both, one after the other."""
        known = [one.forecast for one in (self, other) if one.forecast is not None]
        return Needs(
            self.storage,
            self.placements + tuple(asked for asked in other.placements if asked not in self.placements),
            tuple(dict.fromkeys(self.models + other.models)),
            self.features_dir or other.features_dir,
            None if not known else known[0] if len(known) == 1 else known[0] + known[1],
            self.wandb or other.wandb,
        )


def needs_of(sweep: Sweep, trials: Iterable[Mapping[str, Any]], prepared: PreparedTrials | None) -> Needs:
    """Of a sweep that is to begin.

    Args:
        trials: dumped TrialConfigs, of its candidates or of those that stand for them.
        prepared: what was made of them; None: it could not be made.
    """
    known = None
    if prepared is not None:
        tokens = {
            key: sum(file.stat().st_size for file in data.folder.iterdir()) for key, data in prepared.data.items()
        }
        features = {key: plan.num_bytes for key, plan in prepared.plans.items()}
        known = forecast(sweep.config, sweep.num_candidates, tokens, features, prepared.checkpoints)
    return _needs(sweep, sweep.config.storage, trials, known)


def needs_of_run(run: RunDirectory, sweep: Sweep, records: Records, environment: Mapping[str, Any]) -> Needs:
    """Of a sweep that is to go on, wherever its storage is now.

    Args:
        environment: the content of environment.json.
    """
    trials = [candidate.trial for candidate in records.candidates]
    left = sweep.num_candidates - len(records.entered)
    left += sum(candidate.name not in records.outcomes for candidate in records.candidates)
    features = {key: FeaturePlan.load(dumped).num_bytes for key, dumped in environment["features"].items()}
    sizes = load_checkpoint_bytes(environment.get("checkpoint_bytes"))
    known = forecast(sweep.config, left, {}, features, sizes, published=True)
    return _needs(sweep, folder_of_runs(run), trials, known)


def folder_of_runs(run: RunDirectory) -> str:
    """The storage that a run directory lies in."""
    return parent_location(run.location)


def _needs(sweep: Sweep, storage: str, trials: Iterable[Mapping[str, Any]], known: Forecast | None) -> Needs:
    config = sweep.config
    stages = [keys.STAGE_TWO] if config.promote == "all" else list(keys.STAGES)
    placements = tuple((stage, placement(sweep, stage)) for stage in stages)
    models = tuple(dict.fromkeys(trial["model"]["name"] for trial in trials))
    return Needs(storage, placements, models, config.features.dir, known, config.wandb)


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


def look_at_wandb(needs: Needs) -> list[Check]:
    if needs.wandb is None:
        return []
    mode = needs.wandb.mode
    return [wandb_check(mode, wandb_account() if mode == "online" else None)]


def request_check(placements: Sequence[tuple[str, Placement]]) -> Check:
    """What a candidate asks for, against what the nodes of the connected Ray hold."""
    findings = []
    told = []
    for stage, asked in placements:
        workers, share = asked["workers"], asked["gpus_per_worker"]
        try:
            slots = trial_slots(asked, stage)
        except ClusterError as error:
            what, _, remedy = str(error).rpartition(": ")
            findings.append(Finding("error", what, remedy))
            continue
        told.append(f"{slots} candidate(s) at once in {stage}")
        if workers > 1 and 0 < share < 1:
            what = (
                f"resources.{stage}: {workers} workers have {share:g} of a GPU each, and so exchange gradients by gloo "
                "over the CPU: NCCL refuses two workers on one GPU"
            )
            findings.append(Finding("note", what, "with gpus_per_worker: 1 they use NCCL"))
    return Check("request", ", ".join(told) or "no sweep was given", tuple(findings))


def disk_check(storage: str, free: int | None, rooms: Sequence[tuple[str, Room]], known: Forecast | None) -> Check:
    """Free space against what will be written.

    Args:
        free: bytes in storage; None: nothing tells.
        rooms: of the nodes' caches, with the nodes' names.
        known: what the sweep will write; None: then too little is whatever is below ``LEAST_FREE``.
    """
    findings = []
    remedy = "free some, or choose another place by --storage"
    if free is not None:
        has = f"{storage} has {in_words(free)} free"
        if known is None and free < LEAST_FREE:
            findings.append(Finding("warning", f"{has}, less than {in_words(LEAST_FREE)}", remedy))
        elif known is not None and free < known.storage_least:
            needs = f"but even one candidate needs {in_words(known.storage_least)} there"
            findings.append(Finding("error", f"{has}, {needs}", remedy))
        elif known is not None and free < known.storage_most:
            what = f"{has}, but checkpoints may take up to {in_words(known.storage_most)} there"
            findings.append(Finding("warning", what, remedy))
    remedy = "make room by `tailsweep cache remove`, set TAILSWEEP_CACHE or features.dir to a larger disk, or set "
    remedy += "features.cache=off"
    least = None
    for node, room in rooms:
        if room["free"] is None:
            continue
        least = room["free"] if least is None else min(least, room["free"])
        has = f"the cache {room['folder']} has {in_words(room['free'])} free"
        if room["free"] < room["lacking"]:
            what = f"{has}, but the sweep's rows and features take {in_words(room['lacking'])} more"
            findings.append(Finding("error", what, remedy, (node,)))
        elif known is None and room["free"] < LEAST_FREE:
            findings.append(Finding("warning", f"{has}, less than {in_words(LEAST_FREE)}", remedy, (node,)))
    told = [] if free is None else [f"{in_words(free)} free in storage"]
    told += [] if least is None else [f"{in_words(least)} in the cache" + (" of each node" if len(rooms) > 1 else "")]
    if known is not None:
        in_cache = sum(known.tokens.values()) + sum(known.features.values())
        told.append(f"the sweep takes up to {in_words(known.storage_most)} and {in_words(in_cache)} of these")
    return Check.of("disk", "; ".join(told) or "nothing tells how much is free", findings)


def model_check(missing: Mapping[str, Mapping[str, str]]) -> Check:
    """Args:
    missing: by node, by model, why its files cannot be had there.
    """
    remedy = "give a folder that every node mounts at this path, or have it downloaded into the node's hub cache"
    findings = [
        Finding("error", f"model.name: {name}: {reason}", remedy, (node,))
        for node, reasons in missing.items()
        for name, reason in reasons.items()
    ]
    return Check.of("model", "its files can be had wherever candidates may run", findings)


def wandb_check(mode: Literal["offline", "online", "disabled"], account: WandbAccount | None) -> Check:
    """Args:
    account: as it was found; None: nothing is to be sent.
    """
    if account is None:
        told = {"offline": "offline: written into the run directory, for `wandb sync`", "disabled": "disabled"}
        return Check("W&B", told[mode])
    remedy = "until then runs are written offline, for `wandb sync`"
    if not account.has_key:
        what = f"wandb.mode is online, but neither WANDB_API_KEY nor the netrc file has a key for {account.server}"
        return Check("W&B", "", (Finding("warning", what, f"export one or run `wandb login`; {remedy}"),))
    if account.problem is not None:
        what = f"wandb.mode is online, but {account.server} cannot be used: {account.problem}"
        return Check("W&B", "", (Finding("warning", what, f"mend the key or the network; {remedy}"),))
    return Check("W&B", f"{account.server} takes the key")


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
