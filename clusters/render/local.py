"""A definition as a bash script: a local multi-node Ray cluster with one raylet per node, to try a sweep's requests.

GPUs are declared to Ray, not detected. Each raylet has a loopback address of its own (Linux has plenty), and Ray
requires a token, since Ray 2.60 listens on every interface as soon as there may be more than one node. The script ends
what it started by process numbers.
"""

import json
from collections.abc import Sequence

from tailsweep.clusters.definition import DRIVER_RESOURCE, Definition
from tailsweep.clusters.render.bash import (
    AWAIT_NODES,
    AWAIT_SWEEP,
    DEMAND_PACKAGE,
    DRAIN_NOTHING,
    FREE_PORTS,
    MAKE_TOKEN,
    end_all,
)
from tailsweep.clusters.render.entrypoint import entrypoint
from tailsweep.clusters.render.secret_exports import export_secrets

JOIN_SECONDS = 180
OBJECT_STORE_BYTES = 256 * 2**20  # of each raylet; examples and features are files


def local_script(definition: Definition, sweep: str | None, arguments: Sequence[str]) -> str:
    """Return the script: with a sweep it ends with the sweep's exit status, without one it waits for Ctrl-C.

    Args:
        definition: Of the cluster.
        sweep: The path of the sweep file.
        arguments: Those of ``run`` after the file.
    """
    num_nodes = 1 + sum(group.max_nodes for group in definition.groups)
    run_sweep = "" if sweep is None else f"{entrypoint(sweep, arguments)} &\n{_ON_SIGNALS.strip()}\n{AWAIT_SWEEP}"
    blocks = (
        f"#!/bin/bash\n# {definition.name}: a local multi-node Ray cluster. Rendered by tailsweep:\n#     bash FILE",
        "set -euo pipefail\numask 077",
        export_secrets(definition, "export it first"),
        DEMAND_PACKAGE,
        f"num_nodes={num_nodes} join_seconds={JOIN_SECONDS}",
        "folder=$(mktemp -d /tmp/tailsweep-XXXXXX)\nRAY_AUTH_TOKEN_PATH=$folder/token",
        MAKE_TOKEN,
        FREE_PORTS,
        DRAIN_NOTHING,
        _START.strip().replace("@STORE@", str(OBJECT_STORE_BYTES)).replace("@END_ALL@", end_all("folder", "TERM INT")),
        "\n".join(_starts(definition)),
        AWAIT_NODES,
        _READY.strip(),
        f'{run_sweep}\nexit "$status"' if run_sweep else _WAIT.strip(),
    )
    return "\n\n".join(block for block in blocks if block) + "\n"


def issues(definition: Definition) -> list[str]:
    """Return what of the definition one machine does not support."""
    return [
        f"{field}: this machine starts what it has: leave it out, and activate the environment before the script"
        for field in ("image", "environment")
        if getattr(definition, field) is not None
    ]


def notes(definition: Definition) -> list[str]:
    """Return notes on settings that have no effect here."""
    notes = ["memory_gb has no effect on one machine, whose memory all its raylets share"]
    if any(group.min_nodes < group.max_nodes for group in definition.groups):
        notes.append("nodes.min has no effect on one machine: all nodes up to max are started")
    if definition.time_limit_hours is not None:
        notes.append("time_limit_hours has no effect on one machine")
    return notes


def _starts(definition: Definition) -> list[str]:
    drivers = _resources(definition.head.driver_slots)
    head = '--head --port="${ports[0]}" --dashboard-port="${ports[1]}" --ray-client-server-port="${ports[2]}"'
    lines = [f"start_ray {head} \\\n    --dashboard-host=127.0.0.2 --num-cpus=0 --num-gpus=0 {drivers}"]
    for group in definition.groups:
        drivers = "" if group.spot else f" {_resources(group.driver_slots)}"
        line = f'start_ray --address="$RAY_ADDRESS" --num-cpus={group.cpus} --num-gpus={group.gpus}{drivers}'
        lines += [f"{line} # {group.name}"] * group.max_nodes
    return lines


def _resources(driver_slots: int) -> str:
    return f"--resources='{json.dumps({DRIVER_RESOURCE: driver_slots})}'"


_START = r"""
# Below the ports that the kernel gives to outgoing connections.
mapfile -t ports < <(free_ports "$((10000 + $$ % 1000 * 20))" "$((3 + 4 * num_nodes))")
export RAY_ADDRESS=127.0.0.2:${ports[0]}
@END_ALL@

start_ray() { # a node with an address and a folder of its own, as a host has
    local place=${#rays[@]} number options
    number=$((place + 2))
    read -ra options < <(ports_of_node "${ports[@]:3 + 4 * place:4}")
    ray start --node-ip-address="127.0.0.$number" --temp-dir="$folder/$number" --object-store-memory=@STORE@ \
        "${options[@]}" --disable-usage-stats --block "$@" > "$folder/$number.out" 2>&1 &
    rays+=("$!")
    # One after another: Ray (2.60) gives each 30 s to start.
    for ((waited = 0; waited < 300; waited++)); do
        if grep -q "Ray runtime started" "$folder/$number.out"; then break; fi
        if ! kill -0 "$!" 2> /dev/null; then
            tail -n 30 "$folder/$number.out" >&2
            break
        fi
        sleep 0.2
    done
}
"""

_READY = r"""
echo "Ray on $num_nodes raylets at $RAY_ADDRESS; dashboard at http://127.0.0.2:${ports[1]}"
"""

_WAIT = r"""
echo "From another terminal: export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$RAY_AUTH_TOKEN_PATH"
echo "then: tailsweep run SWEEP.yaml --address $RAY_ADDRESS; Ctrl-C here ends the cluster"
wait "${rays[@]}"
"""

_ON_SIGNALS = r"""
sweep=$!
trap 'signalled=yes; kill "$sweep" 2> /dev/null || true' TERM INT
"""
