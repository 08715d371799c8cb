"""The checks of a sweep's needs; each returns one finding."""

from collections.abc import Mapping, Sequence
from typing import Literal

from tailsweep.clusters.nodes.checks import (
    Check,
    Finding,
)
from tailsweep.clusters.sizes import describe_bytes
from tailsweep.orchestrator.monitoring.wandb_account import WandbAccount, wandb_account
from tailsweep.orchestrator.planning.disk_usage import Forecast
from tailsweep.orchestrator.planning.resources import ClusterError, trial_slots
from tailsweep.orchestrator.preflight.needs import Needs
from tailsweep.orchestrator.preflight.node_probe import Room
from tailsweep.trainables.distributed.settings import Placement
from tailsweep.trainables.report_keys import Stage

LEAST_FREE = 5e9  # bytes, below which a disk is worth a warning where no sweep says what it needs


def inspect_wandb(needs: Needs) -> list[Check]:
    """Check the W&B account, where the sweep uses one."""
    if needs.wandb is None:
        return []
    mode = needs.wandb.mode
    return [wandb_check(mode, wandb_account() if mode == "online" else None)]


def request_check(placements: Sequence[tuple[Stage, Placement]]) -> Check:
    """Compare what a trial requests with what the nodes of the connected Ray have."""
    findings = []
    passed = []
    for stage, asked in placements:
        workers, share = asked.workers, asked.gpus_per_worker
        try:
            slots = trial_slots(asked, stage)
        except ClusterError as error:
            problem, _, hint = str(error).rpartition(": ")
            findings.append(Finding("error", problem, hint))
            continue
        passed.append(f"{slots} trial(s) at once in {stage}")
        if workers > 1 and 0 < share < 1:
            problem = (
                f"resources.{stage}: {workers} workers have {share:g} of a GPU each, and so exchange gradients by gloo "
                "over the CPU: NCCL refuses two workers on one GPU"
            )
            findings.append(Finding("note", problem, "with gpus_per_worker: 1 they use NCCL"))
    return Check("request", ", ".join(passed) or "no sweep was given", tuple(findings))


def disk_check(storage: str, free: int | None, rooms: Sequence[tuple[str, Room]], known: Forecast | None) -> Check:
    """Compare the free space with what will be written.

    Args:
        free: bytes in storage; None: nothing tells.
        rooms: of the nodes' caches, with the nodes' names.
        known: what the sweep will write; None: then too little is whatever is below ``LEAST_FREE``.
    """
    findings = []
    hint = "free some, or choose another place by --storage"
    if free is not None:
        has = f"{storage} has {describe_bytes(free)} free"
        if known is None and free < LEAST_FREE:
            findings.append(Finding("warning", f"{has}, less than {describe_bytes(LEAST_FREE)}", hint))
        elif known is not None and free < known.storage_least:
            needs = f"but even one trial needs {describe_bytes(known.storage_least)} there"
            findings.append(Finding("error", f"{has}, {needs}", hint))
        elif known is not None and free < known.storage_most:
            problem = f"{has}, but checkpoints may take up to {describe_bytes(known.storage_most)} there"
            findings.append(Finding("warning", problem, hint))
    hint = "make room by `tailsweep cache remove`, set TAILSWEEP_CACHE or features.dir to a larger disk, or set "
    hint += "features.cache=off"
    least = None
    for node, room in rooms:
        if room["free"] is None:
            continue
        least = room["free"] if least is None else min(least, room["free"])
        has = f"the cache {room['folder']} has {describe_bytes(room['free'])} free"
        if room["free"] < room["lacking"]:
            problem = f"{has}, but the sweep's rows and features take {describe_bytes(room['lacking'])} more"
            findings.append(Finding("error", problem, hint, (node,)))
        elif known is None and room["free"] < LEAST_FREE:
            findings.append(Finding("warning", f"{has}, less than {describe_bytes(LEAST_FREE)}", hint, (node,)))
    passed = [] if free is None else [f"{describe_bytes(free)} free in storage"]
    passed += (
        [] if least is None else [f"{describe_bytes(least)} in the cache" + (" of each node" if len(rooms) > 1 else "")]
    )
    if known is not None:
        in_cache = sum(known.tokens.values()) + sum(known.features.values())
        passed.append(
            f"the sweep takes up to {describe_bytes(known.storage_most)} and {describe_bytes(in_cache)} of these"
        )
    return Check.merged("disk", "; ".join(passed) or "the free space is unknown", findings)


def model_check(missing: Mapping[str, Mapping[str, str]]) -> Check:
    """Report the models whose files cannot be found on some node.

    Args:
        missing: by node, by model, why its files cannot be found there.
    """
    hint = "give a folder that every node mounts at this path, or have it downloaded into the node's hub cache"
    findings = [
        Finding("error", f"model.name: {name}: {reason}", hint, (node,))
        for node, reasons in missing.items()
        for name, reason in reasons.items()
    ]
    return Check.merged("model", "its files can be had wherever trials may run", findings)


def wandb_check(mode: Literal["offline", "online", "disabled"], account: WandbAccount | None) -> Check:
    """Report whether W&B can be used.

    Args:
        mode: the setting ``wandb.mode``.
        account: the account; None: nothing is to be sent.
    """
    if account is None:
        passed = {"offline": "offline: written into the run directory, for `wandb sync`", "disabled": "disabled"}
        return Check("W&B", passed[mode])
    hint = "until then runs are written offline, for `wandb sync`"
    if not account.has_key:
        problem = f"wandb.mode is online, but neither WANDB_API_KEY nor the netrc file has a key for {account.server}"
        return Check("W&B", "", (Finding("warning", problem, f"export one or run `wandb login`; {hint}"),))
    if account.problem is not None:
        problem = f"wandb.mode is online, but {account.server} cannot be used: {account.problem}"
        return Check("W&B", "", (Finding("warning", problem, f"fix the key or the network; {hint}"),))
    return Check("W&B", f"{account.server} takes the key")
