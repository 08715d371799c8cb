"""The checks of a sweep's needs; each returns one finding."""

from collections.abc import Mapping, Sequence
from typing import Literal

from tailsweep.clusters.nodes.checks import (
    Check,
    Finding,
)
from tailsweep.orchestrator.monitoring.wandb_account import WandbAccount, wandb_account
from tailsweep.orchestrator.planning.disk_usage import Forecast, in_words
from tailsweep.orchestrator.planning.resources import ClusterError, trial_slots
from tailsweep.orchestrator.preflight.needs import Needs
from tailsweep.orchestrator.preflight.node_probe import Room
from tailsweep.trainables.distributed.train_run import Placement

LEAST_FREE = 5e9  # bytes, below which a disk is worth a warning where no sweep says what it needs


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
