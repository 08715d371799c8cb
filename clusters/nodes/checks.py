"""What the nodes of a Ray cluster must have in common before work starts on them: facts in, findings out.

Knows nothing of what the work is, and needs no Ray: ``node_facts.py`` looks the facts up. Each finding says what is
wrong, where, and how to mend it.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tailsweep.clusters.nodes.probe import Facts, Node

Severity = Literal["error", "warning", "note"]

SHOWN_NODES = 3  # of those that one finding is about; the others are counted

# A trial's numbers, and whether nodes can read each other's pickles, depend on these.
MUST_AGREE = ("ray", "torch", "transformers", "tokenizers")


@dataclass(frozen=True)
class Finding:
    severity: (
        Severity  # error: nothing should start; warning: it can, and may not do what was meant; note: good to know
    )
    what: str
    remedy: str
    where: tuple[str, ...] = ()  # names of nodes; none: this machine, or the cluster as a whole

    def __str__(self) -> str:
        """In one line."""
        place = ", ".join(self.where[:SHOWN_NODES])
        if len(self.where) > SHOWN_NODES:
            place += f" and {len(self.where) - SHOWN_NODES} more"
        text = "; ".join(part for part in (self.what, self.remedy) if part)
        return " ".join((f"{place}: {text}" if place else text).split())


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    passed: str  # what to say where nothing was found
    findings: tuple[Finding, ...] = ()

    @classmethod
    def of(cls, name: str, passed: str, findings: Iterable[Finding]) -> "Check":
        """Findings that differ in their nodes only become one."""
        where: dict[tuple[Severity, str, str], tuple[str, ...]] = {}
        for finding in findings:
            same = (finding.severity, finding.what, finding.remedy)
            where[same] = where.get(same, ()) + finding.where
        return cls(name, passed, tuple(Finding(*same, where=nodes) for same, nodes in where.items()))


def nodes_check(nodes: Sequence[Node], silent: Mapping[str, str]) -> Check:
    remedy = "look at it in `ray status`, then start its Ray again or take it out of the cluster"
    findings = [Finding("error", silent[node.id], remedy, (node.name,)) for node in nodes if node.id in silent]
    return Check.of("nodes", f"all {len(nodes)} answer" if len(nodes) > 1 else "the only one answers", findings)


def versions_check(driver: Facts, nodes: Sequence[Node], facts: Mapping[str, Facts], ours: str) -> Check:
    """Python, packages and our own source, against the driver's.

    Args:
        ours: what the packages in ``Question.code`` are called.
    """
    findings = []
    for node in nodes:
        if node.id not in facts:
            continue
        there, where = facts[node.id], (node.name,)
        if there["python"] != driver["python"]:
            severity: Severity = "error" if _minor(there["python"]) != _minor(driver["python"]) else "warning"
            what = f"Python is {there['python']}, but {driver['python']} here"
            findings.append(Finding(severity, what, "use the same Python everywhere", where))
        for name, version in driver["packages"].items():
            other = there["packages"][name]
            if other == version or (name == ours and there["code"] == driver["code"]):
                continue
            severity = "error" if name in MUST_AGREE or other is None else "warning"
            remedy = f"install {name}=={version} there" if version else f"install {name} here or remove it there"
            is_there = "is missing" if other is None else f"is {other}"
            findings.append(Finding(severity, f"{name} {is_there}, but {version or 'missing'} here", remedy, where))
        if there["code"] is None:
            what = f"{ours} cannot be imported"
            remedy = f"install {ours} there, or submit by `ray job submit --working-dir .`, which brings it along"
            findings.append(Finding("error", what, remedy, where))
        elif there["code"] != driver["code"]:
            remedy = "install the same version there, or submit by `ray job submit --working-dir .`"
            findings.append(Finding("error", f"{ours} is of another source than here", remedy, where))
    told = ", ".join(f"{name} {version or 'missing'}" for name, version in driver["packages"].items())
    return Check.of("versions", f"Python {driver['python']}, {told}", findings)


def state_api_check(nodes: Sequence[Node], facts: Mapping[str, Facts]) -> Check:
    """Ray Train frees what a stopped trial held only where the State API answers it, on whatever node it runs."""
    remedy = (
        "install ray[default] on every node and start the head with its dashboard, where other nodes reach it "
        "(`ray start --head --include-dashboard=true --dashboard-host=ITS-ADDRESS`): without it, what a pruned "
        "candidate held stays taken"
    )
    findings = [
        Finding("error", f"Ray's State API does not answer: {reason}", remedy, (node.name,))
        for node in nodes
        if node.id in facts and (reason := facts[node.id]["state_api"]) is not None
    ]
    return Check.of("state API", "answers", findings)


def token_check(driver: Facts, nodes: Sequence[Node], facts: Mapping[str, Facts]) -> Check:
    """That all processes authenticate alike, by the same token or none."""
    findings = []
    for node in nodes:
        if node.id not in facts or facts[node.id]["token"] == driver["token"]:
            continue
        there = facts[node.id]["token"]
        if there is None or driver["token"] is None:
            off, on = ("there", "here") if there is None else ("here", "there")
            what = f"token authentication is on {on} and off {off}"
        else:
            what = "its token is another than this machine's"
        remedy = (
            "give every node the same ~/.ray/auth_token (`ray get-auth-token --generate` makes one) and export "
            "RAY_AUTH_MODE=token before `ray start` and before tailsweep"
        )
        findings.append(Finding("error", what, remedy, (node.name,)))
    how = "off everywhere" if driver["token"] is None else "on everywhere, by one token"
    return Check.of("token", f"authentication is {how}", findings)


def storage_check(
    storage: str, refused: str | None, nodes: Sequence[Node], facts: Mapping[str, Facts], heard: Collection[str]
) -> Check:
    """That all write and read the same storage.

    Args:
        refused: why the driver itself cannot write there; None: it can.
        heard: ids of the nodes whose writing the driver sees.
    """
    if refused is not None:
        remedy = "choose another place by --storage, or mend the access to it"
        return Check("storage", "", (Finding("error", f"{storage} cannot be written: {refused}", remedy),))
    remedy = "let --storage name a folder that every node mounts at this path, or a URI such as s3://BUCKET/runs"
    findings = []
    for node in nodes:
        if node.id not in facts:
            continue
        reason = facts[node.id]["storage"]
        if reason is None and node.id not in heard:
            reason = "what the node writes there is not seen here"
        if reason is not None:
            findings.append(Finding("error", f"{storage} is not the driver's: {reason}", remedy, (node.name,)))
    seen_by = "written and read here" if len(nodes) == 1 else f"shared by this machine and {len(nodes)} nodes"
    return Check.of("storage", f"{storage} is {seen_by}", findings)


def gpu_check(nodes: Sequence[Node], facts: Mapping[str, Facts]) -> Check:
    """GPUs that Ray declares must be seen by torch, and be of one kind."""
    findings = []
    kinds: dict[str, list[str]] = {}
    seen = 0
    for node in nodes:
        if not node.gpus or node.id not in facts or (found := facts[node.id]["gpus"]) is None:
            continue
        seen += len(found)
        for kind in sorted({name or node.accelerator or "" for name in found} - {""}):
            kinds.setdefault(kind, []).append(node.name)
        declared = f"Ray declares {node.gpus:g} GPU(s) of this node"
        if not found and node.accelerator is None:
            what = f"{declared}, but there is none: what asks for one runs on the CPU"
            findings.append(Finding("warning", what, "start its Ray without --num-gpus", (node.name,)))
        elif not found:
            why = facts[node.id]["gpus_failed"] or "torch.cuda sees none"
            remedy = "install a torch built for CUDA and a driver that is new enough for it"
            findings.append(Finding("error", f"{declared}, but torch cannot use them: {why}", remedy, (node.name,)))
        elif len(found) < node.gpus:
            remedy = "start its Ray with as many --num-gpus as there are"
            findings.append(Finding("warning", f"{declared}, but torch sees {len(found)}", remedy, (node.name,)))
    if len(kinds) > 1:
        told = ", ".join(f"{kind} ({nodes_[0]}{' ...' if len(nodes_) > 1 else ''})" for kind, nodes_ in kinds.items())
        remedy = "the slowest sets the pace of workers that train together, and their numbers differ in the last digits"
        findings.append(Finding("warning", f"GPUs are of {len(kinds)} kinds: {told}", remedy))
    declared_gpus = sum(node.gpus for node in nodes)
    told = f"{seen} x {', '.join(kinds) or 'GPU'}, seen by torch" if seen else "not looked at"
    return Check.of("GPUs", told if declared_gpus else "none declared", findings)


def _minor(python: str) -> list[str]:
    return python.split(".")[:2]
