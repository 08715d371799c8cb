"""A definition as a script for ``sbatch``: one Ray over all nodes of the job, for one sweep, until the job ends.

The script starts the head on the first node and a raylet on each other one by srun, waits until all have joined, and
runs the sweep on the first node. Before the time limit it stops the sweep and queues the job again, and the job then
resumes the run directory. ``run --resume`` decides whether there is one, since only it can read every storage.
"""

import math
from collections.abc import Sequence

from tailsweep.clusters.definition import Definition
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

# In an argument, the shell replaces this by the job's number, which stays the same when the job is queued again.
JOB_ID = "${SLURM_JOB_ID}"
JOIN_SECONDS = 600  # for all nodes to join: a shared file system may take minutes to import Ray


def sbatch_script(definition: Definition, sweep: str, arguments: Sequence[str]) -> str:
    """Return the script.

    Args:
        definition: Of the cluster.
        sweep: The path of the sweep file, absolute or relative to the folder in which sbatch is called.
        arguments: Those of ``run`` after the file; they may contain ``JOB_ID``.
    """
    (group,) = definition.groups
    # The shell expands the number only: everything else stays within single quotes.
    command = entrypoint(sweep, arguments).replace(JOB_ID, f"'\"{JOB_ID}\"'")
    setup = "\n".join(definition.slurm.setup)
    return "\n\n".join(
        block
        for block in (
            _header(definition),
            f"# The nodes' own setup.\n{setup}" if setup else "",
            "set -euo pipefail\numask 077",
            export_secrets(definition, "export it before sbatch, whose default is --export=ALL"),
            DEMAND_PACKAGE,
            f"cpus={group.cpus} gpus={group.gpus} join_seconds={JOIN_SECONDS}",
            _PREPARE.strip(),
            MAKE_TOKEN,
            FREE_PORTS,
            DRAIN_NOTHING,
            _START.strip().replace("@END_ALL@", end_all("shared", "TERM USR1")),
            AWAIT_NODES,
            f"{_READY.strip()}\n{command} &\n{_ON_SIGNALS.strip()}\n{AWAIT_SWEEP}\n{_QUEUE_AGAIN.strip()}\n",
        )
        if block
    )


def issues(definition: Definition) -> list[str]:
    """Return what of the definition Slurm does not support."""
    issues = []
    if len(definition.groups) > 1:
        names = ", ".join(group.name for group in definition.groups)
        issues.append(f"groups: are {names}, but a Slurm job has nodes of one kind: write a definition for each")
    for place, group in enumerate(definition.groups):
        if group.min_nodes == 0:
            issues.append(f"groups.{place}.nodes.min: is 0, but a Slurm job must have at least one node")
    for field in ("image", "environment"):
        if getattr(definition, field) is not None:
            issues.append(f"{field}: Slurm starts what its nodes have: leave it out, and make it ready in slurm.setup")
    if definition.time_limit_hours is not None:
        notice = definition.slurm.notice_minutes
        if notice >= definition.time_limit_hours * 60:
            issues.append(
                f"slurm.notice_minutes: is {notice}, but must be less than time_limit_hours "
                f"({definition.time_limit_hours:g} h): the sweep would be stopped as it starts"
            )
    return issues


def notes(definition: Definition) -> list[str]:
    """Return notes on settings that have no effect here."""
    notes = []
    if "head" in definition.model_fields_set:
        notes.append("head has no effect on Slurm: Ray's head shares the first node")
    if any(group.spot for group in definition.groups):
        notes.append("spot has no effect on Slurm: choose a partition that can be preempted; the job is queued again")
    return notes


def _header(definition: Definition) -> str:
    options = "\n".join(f"#SBATCH {option}" for option in _options(definition))
    return f"""#!/bin/bash
# {definition.name}: one Ray over the nodes of a Slurm job, for one sweep. Rendered by tailsweep; from a folder that
# all nodes share:
#     sbatch FILE
{options}"""


def _options(definition: Definition) -> list[str]:
    """Return the options of sbatch."""
    (group,) = definition.groups
    slurm = definition.slurm
    nodes = str(group.nodes) if isinstance(group.nodes, int) else f"{group.min_nodes}-{group.max_nodes}"
    options = [
        f"--job-name={definition.name}",
        f"--nodes={nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={group.cpus}",
        f"--mem={math.ceil(group.memory_gb * 1024)}M",
    ]
    if group.gpus:
        options.append(f"--gres=gpu:{f'{group.accelerator}:' if group.accelerator else ''}{group.gpus}")
    for option in ("partition", "account", "qos"):
        if (value := getattr(slurm, option)) is not None:
            options.append(f"--{option}={value}")
    if definition.time_limit_hours is not None:
        seconds = slurm.notice_minutes * 60
        options += [f"--time={math.ceil(definition.time_limit_hours * 60)}", f"--signal=B:USR1@{seconds}"]
    # A node that fails does not end the job; one that is preempted is queued again, its output continuing in one file.
    options += ["--no-kill", "--requeue", "--open-mode=append", f"--output={definition.name}-%j.log"]
    return [*options, *slurm.options]


_PREPARE = r"""
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
num_nodes=${#hosts[@]} head=${hosts[0]}
# The address by which the other nodes reach the head; Debian gives a host's own name 127.0.1.1.
address=$(getent ahostsv4 "$head" | awk '$1 !~ /^127\.0\.1\./ && !seen++ { print $1 }')
address=${address:-$(hostname -I | awk '{ print $1 }')}
# Twenty ports of this job alone, below those that the kernel gives to outgoing connections.
first_port=$((10000 + SLURM_JOB_ID % 1000 * 20))
# For the token of this job alone, in a folder that all nodes see.
shared=$PWD/.tailsweep-$SLURM_JOB_ID
mkdir -p "$shared"
RAY_AUTH_TOKEN_PATH=$shared/token
export cpus gpus first_port
"""

_START = r"""
mapfile -t ports < <(free_ports "$first_port" 3)
export RAY_ADDRESS=$address:${ports[0]}

start_ray() { # on one node, until it is stopped
    # For Ray's sockets and logs of this job alone, with a short path.
    folder=/tmp/ts-$SLURM_JOB_ID-$SLURM_STEP_ID-$SLURM_PROCID
    rm -rf "$folder"
    mkdir -m 700 "$folder" || exit 1
    trap 'rm -rf "$folder"' EXIT
    trap 'exit 1' TERM INT
    mapfile -t own < <(free_ports "$((first_port + 4 + SLURM_STEP_ID % 2 * 4))" 4)
    read -ra options < <(ports_of_node "${own[@]}")
    ray start "$@" "${options[@]}" --num-cpus="$cpus" --num-gpus="$gpus" --temp-dir="$folder" \
        --disable-usage-stats --block > "$folder/ray-start.out" 2>&1 &
    is_stopped=
    trap 'is_stopped=yes; kill "$!" 2> /dev/null || true' TERM INT
    while kill -0 "$!" 2> /dev/null; do wait "$!" || true; done
    if [ -z "$is_stopped" ]; then tail -n 30 "$folder/ray-start.out" >&2; fi
}
export -f start_ray free_ports ports_of_node

@END_ALL@

step() { # one task on each of $1 nodes: $2 says which, the others are options of ray start
    srun --overlap --no-kill --kill-on-bad-exit=0 --nodes="$1" --ntasks="$1" --ntasks-per-node=1 \
        --cpus-per-task="$cpus" "$2" bash -c 'start_ray "$@"' start_ray "${@:3}" &
    rays+=("$!")
}
step 1 --nodelist="$head" --head --node-ip-address="$address" --port="${ports[0]}" --dashboard-host="$address" \
    --dashboard-port="${ports[1]}" --ray-client-server-port="${ports[2]}"
if ((num_nodes > 1)); then
    step "$((num_nodes - 1))" --exclude="$head" --address="$RAY_ADDRESS"
fi
"""

_READY = r"""
echo "Ray on $num_nodes node(s) at $RAY_ADDRESS; dashboard at http://$address:${ports[1]}"
"""

_ON_SIGNALS = r"""
sweep=$! noticed=
trap 'signalled=yes noticed=yes; kill "$sweep" 2> /dev/null || true' USR1 # the time limit is near
trap 'signalled=yes; kill "$sweep" 2> /dev/null || true' TERM # preempted, and queued again by Slurm; or cancelled
"""

_QUEUE_AGAIN = r"""
if [ -n "$noticed" ] && [ "$status" -ne 0 ]; then
    echo "the time limit is near: the job is queued again, and resumes this run"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""
