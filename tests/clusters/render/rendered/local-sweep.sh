#!/bin/bash
# several: a local multi-node Ray cluster. Rendered by tailsweep:
#     bash FILE

set -euo pipefail
umask 077

find='from importlib.util import find_spec as find; assert find("tailsweep.clusters") and find("ray")'
if ! python -c "$find" 2> /dev/null; then
    echo "tailsweep: this python has no tailsweep: install it there, or activate its environment first" >&2
    exit 2
fi

num_nodes=4 join_seconds=180

folder=$(mktemp -d /tmp/tailsweep-XXXXXX)
RAY_AUTH_TOKEN_PATH=$folder/token

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

# Below the ports that the kernel gives to outgoing connections.
mapfile -t ports < <(free_ports "$((10000 + $$ % 1000 * 20))" "$((3 + 4 * num_nodes))")
export RAY_ADDRESS=127.0.0.2:${ports[0]}
rays=() sweep=
end_all() {
    trap '' TERM INT
    for process in $sweep "${rays[@]}"; do kill "$process" 2> /dev/null || true; done
    for process in $sweep "${rays[@]}"; do wait "$process" 2> /dev/null || true; done
    rm -rf "$folder"
}
trap end_all EXIT
trap 'exit 1' TERM INT

start_ray() { # a node with an address and a folder of its own, as a host has
    local place=${#rays[@]} number options
    number=$((place + 2))
    read -ra options < <(ports_of_node "${ports[@]:3 + 4 * place:4}")
    ray start --node-ip-address="127.0.0.$number" --temp-dir="$folder/$number" --object-store-memory=268435456 \
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

start_ray --head --port="${ports[0]}" --dashboard-port="${ports[1]}" --ray-client-server-port="${ports[2]}" \
    --dashboard-host=127.0.0.2 --num-cpus=0 --num-gpus=0 --resources='{"tailsweep_driver": 12}'
start_ray --address="$RAY_ADDRESS" --num-cpus=2 --num-gpus=0 --resources='{"tailsweep_driver": 1}' # cpu
start_ray --address="$RAY_ADDRESS" --num-cpus=1 --num-gpus=1 --resources='{"tailsweep_driver": 1}' # gpu
start_ray --address="$RAY_ADDRESS" --num-cpus=1 --num-gpus=1 --resources='{"tailsweep_driver": 1}' # gpu

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

echo "Ray on $num_nodes raylets at $RAY_ADDRESS; dashboard at http://127.0.0.2:${ports[1]}"

python -m tailsweep run orchestrator/sweeps/demo.yaml --resume --storage /tmp/tailsweep-runs --set name=demo --set data.max_length=48 &
sweep=$!
trap 'signalled=yes; kill "$sweep" 2> /dev/null || true' TERM INT
signalled=yes
while [ -n "$signalled" ]; do
    signalled='' status=0
    wait "$sweep" || status=$?
done
exit "$status"
