"""Check what the nodes of a Ray cluster must have in common before work starts on them.

The checks do not depend on the work and need no Ray: ``probe.py`` collects the information. Each finding says what is
wrong, where, and how to fix it.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tailsweep.clusters.nodes.probe import Node, NodeInfo

Severity = Literal["error", "warning", "note"]

SHOWN_NODES = 3  # of those that one finding is about; the others are counted

# A trial's numbers, and whether nodes can read each other's pickles, depend on these.
MUST_AGREE = ("ray", "torch", "transformers", "tokenizers")


@dataclass(frozen=True)
class Finding:
    """A problem or a note, with its place and its fix."""

    # error: nothing should start; warning: work can start, but may not do what was intended; note: worth knowing
    severity: Severity
    message: str
    hint: str
    where: tuple[str, ...] = ()  # names of nodes; none: this machine, or the cluster as a whole

    def __str__(self) -> str:
        """Return the finding in one line."""
        place = ", ".join(self.where[:SHOWN_NODES])
        if len(self.where) > SHOWN_NODES:
            place += f" and {len(self.where) - SHOWN_NODES} more"
        text = "; ".join(part for part in (self.message, self.hint) if part)
        return " ".join((f"{place}: {text}" if place else text).split())


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    name: str
    passed: str  # the message if there is no finding
    findings: tuple[Finding, ...] = ()

    @classmethod
    def merged(cls, name: str, passed: str, findings: Iterable[Finding]) -> "Check":
        """Return a check in which findings that differ only in their nodes are one."""
        where: dict[tuple[Severity, str, str], tuple[str, ...]] = {}
        for finding in findings:
            same = (finding.severity, finding.message, finding.hint)
            where[same] = where.get(same, ()) + finding.where
        return cls(name, passed, tuple(Finding(*same, where=nodes) for same, nodes in where.items()))


def nodes_check(nodes: Sequence[Node], silent: Mapping[str, str]) -> Check:
    """Check that every node answers; ``silent`` has the reasons of those that did not, by their ids."""
    hint = "check it in `ray status`, then restart its Ray or remove it from the cluster"
    findings = [Finding("error", silent[node.id], hint, (node.name,)) for node in nodes if node.id in silent]
    return Check.merged("nodes", f"all {len(nodes)} answer" if len(nodes) > 1 else "the only one answers", findings)


def versions_check(driver: NodeInfo, nodes: Sequence[Node], infos: Mapping[str, NodeInfo], ours: str) -> Check:
    """Compare Python, packages and our own source with the driver's.

    Args:
        driver: The driver's own information.
        nodes: All nodes.
        infos: What the nodes answered, by their ids.
        ours: The name of the distribution with the packages in ``ProbeRequest.code``.
    """
    findings = []
    for node in nodes:
        if node.id not in infos:
            continue
        there, where = infos[node.id], (node.name,)
        if there["python"] != driver["python"]:
            severity: Severity = "error" if _minor(there["python"]) != _minor(driver["python"]) else "warning"
            message = f"Python is {there['python']}, but {driver['python']} here"
            findings.append(Finding(severity, message, "use the same Python everywhere", where))
        for name, version in driver["packages"].items():
            other = there["packages"][name]
            if other == version or (name == ours and there["code"] == driver["code"]):
                continue
            severity = "error" if name in MUST_AGREE or other is None else "warning"
            hint = f"install {name}=={version} there" if version else f"install {name} here or remove it there"
            is_there = "is missing" if other is None else f"is {other}"
            findings.append(Finding(severity, f"{name} {is_there}, but {version or 'missing'} here", hint, where))
        if there["code"] is None:
            message = f"{ours} cannot be imported"
            hint = f"install {ours} there, or submit by `ray job submit --working-dir .`, which brings it along"
            findings.append(Finding("error", message, hint, where))
        elif there["code"] != driver["code"]:
            hint = "install the same version there, or submit by `ray job submit --working-dir .`"
            findings.append(Finding("error", f"{ours} has other source code than here", hint, where))
    packages = ", ".join(f"{name} {version or 'missing'}" for name, version in driver["packages"].items())
    return Check.merged("versions", f"Python {driver['python']}, {packages}", findings)


def state_api_check(nodes: Sequence[Node], infos: Mapping[str, NodeInfo]) -> Check:
    """Check that the State API answers on every node: Ray Train needs it to free a stopped trial's resources."""
    hint = (
        "install ray[default] on every node and start the head with its dashboard, where other nodes reach it "
        "(`ray start --head --include-dashboard=true --dashboard-host=ITS-ADDRESS`): without it, the "
        "resources of a pruned trial are never freed"
    )
    findings = [
        Finding("error", f"Ray's State API does not answer: {reason}", hint, (node.name,))
        for node in nodes
        if node.id in infos and (reason := infos[node.id]["state_api"]) is not None
    ]
    return Check.merged("state API", "answers", findings)


def token_check(driver: NodeInfo, nodes: Sequence[Node], infos: Mapping[str, NodeInfo]) -> Check:
    """Check that all processes authenticate with the same token or none."""
    findings = []
    for node in nodes:
        if node.id not in infos or infos[node.id]["token"] == driver["token"]:
            continue
        there = infos[node.id]["token"]
        if there is None or driver["token"] is None:
            off, on = ("there", "here") if there is None else ("here", "there")
            message = f"token authentication is on {on} and off {off}"
        else:
            message = "its token differs from this machine's"
        hint = (
            "give every node the same ~/.ray/auth_token (`ray get-auth-token --generate` makes one) and export "
            "RAY_AUTH_MODE=token before `ray start` and before tailsweep"
        )
        findings.append(Finding("error", message, hint, (node.name,)))
    how = "off everywhere" if driver["token"] is None else "on everywhere, with one token"
    return Check.merged("token", f"authentication is {how}", findings)


def storage_check(
    storage: str, refused: str | None, nodes: Sequence[Node], infos: Mapping[str, NodeInfo], reported: Collection[str]
) -> Check:
    """Check that all nodes write and read the same storage.

    Args:
        storage: The folder or URI.
        refused: Why the driver itself cannot write there; None: it can.
        nodes: All nodes.
        infos: What the nodes answered, by their ids.
        reported: Ids of the nodes whose files the driver sees.
    """
    if refused is not None:
        hint = "choose another place by --storage, or fix the access to it"
        return Check("storage", "", (Finding("error", f"{storage} cannot be written: {refused}", hint),))
    hint = "let --storage name a folder that every node mounts at this path, or a URI such as s3://BUCKET/runs"
    findings = []
    for node in nodes:
        if node.id not in infos:
            continue
        reason = infos[node.id]["storage"]
        if reason is None and node.id not in reported:
            reason = "files that the node writes there do not appear here"
        if reason is not None:
            findings.append(Finding("error", f"{storage} is not the driver's: {reason}", hint, (node.name,)))
    seen_by = "written and read here" if len(nodes) == 1 else f"shared by this machine and {len(nodes)} nodes"
    return Check.merged("storage", f"{storage} is {seen_by}", findings)


def gpu_check(nodes: Sequence[Node], infos: Mapping[str, NodeInfo]) -> Check:
    """Check that torch sees the GPUs that Ray declares, and that they are of one kind."""
    findings = []
    kinds: dict[str, list[str]] = {}
    seen = 0
    for node in nodes:
        if not node.gpus or node.id not in infos or (visible := infos[node.id]["gpus"]) is None:
            continue
        seen += len(visible)
        for kind in sorted({name or node.accelerator or "" for name in visible} - {""}):
            kinds.setdefault(kind, []).append(node.name)
        declared = f"Ray declares {node.gpus:g} GPU(s) of this node"
        if not visible and node.accelerator is None:
            message = f"{declared}, but there is none: what asks for one runs on the CPU"
            findings.append(Finding("warning", message, "start its Ray without --num-gpus", (node.name,)))
        elif not visible:
            why = infos[node.id]["gpus_failed"] or "torch.cuda sees none"
            hint = "install a torch built for CUDA and a driver that is new enough for it"
            findings.append(Finding("error", f"{declared}, but torch cannot use them: {why}", hint, (node.name,)))
        elif len(visible) < node.gpus:
            hint = "start its Ray with as many --num-gpus as there are"
            findings.append(Finding("warning", f"{declared}, but torch sees {len(visible)}", hint, (node.name,)))
    if len(kinds) > 1:
        listed = ", ".join(f"{kind} ({nodes_[0]}{' ...' if len(nodes_) > 1 else ''})" for kind, nodes_ in kinds.items())
        hint = "the slowest sets the pace of workers that train together, and their numbers differ in the last digits"
        findings.append(Finding("warning", f"GPUs are of {len(kinds)} kinds: {listed}", hint))
    declared_gpus = sum(node.gpus for node in nodes)
    passed = f"{seen} x {', '.join(kinds) or 'GPU'}, seen by torch" if seen else "not checked"
    return Check.merged("GPUs", passed if declared_gpus else "none declared", findings)


def _minor(python: str) -> list[str]:
    return python.split(".")[:2]
