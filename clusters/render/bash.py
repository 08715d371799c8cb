"""Pieces of bash that the rendered scripts share. Each ends its script with status 2 and one line for bad input."""

# Before anything is started: detect an environment that was not activated.
DEMAND_PACKAGE = r"""
find='from importlib.util import find_spec as find; assert find("tailsweep.clusters") and find("ray")'
if ! python -c "$find" 2> /dev/null; then
    echo "tailsweep: this python has no tailsweep: install it there, or activate its environment first" >&2
    exit 2
fi
""".strip()

# Create a token for the Ray to be started, in a file that only its owner reads. Needs $RAY_AUTH_TOKEN_PATH and a umask.
MAKE_TOKEN = r"""
unset RAY_AUTH_TOKEN
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH
python -c 'import secrets; print(secrets.token_hex(32))' > "$RAY_AUTH_TOKEN_PATH"
""".strip()

# When nodes are asked to end, nothing is left on them to drain; Ray would wait 30 s for it.
DRAIN_NOTHING = "export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0"

# ray start gets the four ports of a node: a raylet (Ray 2.60) waits 15 s for its agents to choose some, and ends if a
# slow file system or a busy machine takes longer (ray#65983).
FREE_PORTS = r"""
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
""".strip()

# A background process ends once $num_nodes nodes have joined the Ray at $RAY_ADDRESS. The other background processes,
# ${rays[@]}, are Ray's own: if one of them is the first to end, the script ends. The script polls them, since
# `wait -n` (bash 5.2) keeps waiting for one that has ended before the call.
AWAIT_NODES = r"""
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
""".strip()

# Wait for $sweep and set $status to its exit status; a wait that a signal ended returns another status.
AWAIT_SWEEP = r"""
signalled=yes
while [ -n "$signalled" ]; do
    signalled='' status=0
    wait "$sweep" || status=$?
done
""".strip()


def end_all(folder: str, signals: str) -> str:
    """Return bash that ends the sweep, $sweep, and Ray's processes, ${rays[@]}, with the script.

    Args:
        folder: The variable with the folder to remove then.
        signals: The signals that end the script, until the sweep runs.
    """
    return f"""
rays=() sweep=
end_all() {{
    trap '' {signals}
    for process in $sweep "${{rays[@]}}"; do kill "$process" 2> /dev/null || true; done
    for process in $sweep "${{rays[@]}}"; do wait "$process" 2> /dev/null || true; done
    rm -rf "${folder}"
}}
trap end_all EXIT
trap 'exit 1' {signals}
""".strip()
