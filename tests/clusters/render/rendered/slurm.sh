#!/bin/bash
# rare: one Ray over the nodes of a Slurm job, for one sweep. Rendered by tailsweep; from a folder that
# all nodes share:
#     sbatch FILE
#SBATCH --job-name=rare
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32768M
#SBATCH --gres=gpu:1
#SBATCH --partition=gpu
#SBATCH --time=720
#SBATCH --signal=B:USR1@300
#SBATCH --no-kill
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=rare-%j.log

# The nodes' own setup.
module load python/3.11
source ~/tailsweep/bin/activate

set -euo pipefail
umask 077

secrets_file="$HOME"/.config/tailsweep/secrets.env
if [ "$(stat -c %a -- "$secrets_file" 2>&1)" != 600 ]; then
    echo "tailsweep: $secrets_file must be a file of mode 600, which no one else can read: make it, or chmod 600 it" >&2
    exit 2
fi
while IFS= read -r line || [ -n "$line" ]; do
    case "${line%%=*}" in
        WANDB_API_KEY) export "${line?}" ;;
    esac
done < "$secrets_file"
demand() {
    if [ -z "${!1:-}" ]; then
        echo "tailsweep: $1 has no value: "'add a line NAME=VALUE to ~/.config/tailsweep/secrets.env' >&2
        exit 2
    fi
}
demand WANDB_API_KEY

find='from importlib.util import find_spec as find; assert find("tailsweep.clusters") and find("ray")'
if ! python -c "$find" 2> /dev/null; then
    echo "tailsweep: this python has no tailsweep: install it there, or activate its environment first" >&2
    exit 2
fi

cpus=8 gpus=1 join_seconds=600

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

unset RAY_AUTH_TOKEN
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH
python -c 'import secrets; print(secrets.token_hex(32))' > "$RAY_AUTH_TOKEN_PATH"

free_ports() { # $2 of them, from $1 on
    python - "$@" <<'PYTHON'
import socket, sys
port, count = map(int, sys.argv[1:])
while count:
    with socket.socket() as trial:
        try:
            trial.bind(("", port))
        except OSError:
            count += 1
        else:
            print(port)
    port, count = port + 1, count - 1
PYTHON
}

ports_of_node() { # options of ray start, for four ports
    echo "--dashboard-agent-listen-port=$1 --dashboard-agent-grpc-port=$2 --metrics-export-port=$3" \
        "--runtime-env-agent-port=$4 --min-worker-port=0 --max-worker-port=0"
}

export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0

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

rays=() sweep=
end_all() {
    trap '' TERM USR1
    for process in $sweep "${rays[@]}"; do kill "$process" 2> /dev/null || true; done
    for process in $sweep "${rays[@]}"; do wait "$process" 2> /dev/null || true; done
    rm -rf "$shared"
}
trap end_all EXIT
trap 'exit 1' TERM USR1

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

all_running() {
    local process
    for process; do kill -0 "$process" 2> /dev/null || return 1; done
}
python -m tailsweep.clusters.nodes.wait_for_nodes "$num_nodes" "$join_seconds" &
joining=$!
while all_running "$joining" "${rays[@]}"; do sleep 0.2; done
if kill -0 "$joining" 2> /dev/null || ! wait "$joining"; then
    kill "$joining" 2> /dev/null || true
    echo "tailsweep: Ray did not start on all of $num_nodes nodes: see above" >&2
    exit 1
fi

echo "Ray on $num_nodes node(s) at $RAY_ADDRESS; dashboard at http://$address:${ports[1]}"
python -m tailsweep run orchestrator/sweeps/demo.yaml --resume --storage /shared/runs --set 'name=demo-'"${SLURM_JOB_ID}"'' &
sweep=$! noticed=
trap 'signalled=yes noticed=yes; kill "$sweep" 2> /dev/null || true' USR1 # the time limit is near
trap 'signalled=yes; kill "$sweep" 2> /dev/null || true' TERM # preempted, and queued again by Slurm; or cancelled
signalled=yes
while [ -n "$signalled" ]; do
    signalled='' status=0
    wait "$sweep" || status=$?
done
if [ -n "$noticed" ] && [ "$status" -ne 0 ]; then
    echo "the time limit is near: the job is queued again, and resumes this run"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
