"""Pieces of bash that the rendered scripts share. Each ends its script with status 2 and one line for bad input."""

# Before anything is started: an environment that was not activated is found out here, by its name.
DEMAND_PACKAGE = r"""
find='from importlib.util import find_spec as find; assert find("tailsweep.clusters") and find("ray")'
if ! python -c "$find" 2> /dev/null; then
    echo "tailsweep: this python has no tailsweep: install it there, or activate its environment first" >&2
    exit 2
fi
""".strip()

# Makes a token for the Ray to be started, in a file that only its owner reads. Needs $RAY_AUTH_TOKEN_PATH, and a umask.
MAKE_TOKEN = r"""
unset RAY_AUTH_TOKEN
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH
python -c 'import secrets; print(secrets.token_hex(32))' > "$RAY_AUTH_TOKEN_PATH"
""".strip()

# Once nodes are told to end there is nothing left on them to drain, for which Ray would take 30 s.
DRAIN_NOTHING = "export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0"

# A node's own four ports are given to ray start, since a raylet (Ray 2.60) grants its agents 15 s to choose some, and
# ends where a slow file system or a busy machine does not (ray#65983).
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

# Runs in the background: ends once as many nodes as $1 have joined the Ray at $RAY_ADDRESS. The others in the
# background, ${rays[@]}, are Ray's own processes: where one of them is the first to end, the script does. They are
# looked at again and again: `wait -n` (bash 5.2) goes on waiting where one has ended before it was called.
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

# Waits for $sweep, and sets $status to its exit status: a wait that a signal ended has none of the sweep's.
AWAIT_SWEEP = r"""
signalled=yes
while [ -n "$signalled" ]; do
    signalled='' status=0
    wait "$sweep" || status=$?
done
""".strip()


def end_all(folder: str, signals: str) -> str:
    """Ends the sweep, $sweep, and Ray's processes, ${rays[@]}, with the script; both are empty yet.

    Args:
        folder: the variable with the folder that is removed then.
        signals: that end the script, until the sweep runs.
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
