"""Wait until the Ray at $RAY_ADDRESS has so many nodes.

Use: ``python -m tailsweep.clusters.nodes.wait_for_nodes NODES SECONDS``.

Exit status 0 once it has, 1 where it has not after that time, with what is missing.
"""

import logging
import os
import socket
import sys
import time


def num_joined(address: str) -> int:
    """Nodes that are alive; 0 where no Ray answers."""
    import ray

    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError:
        return 0  # Ray would try for long, and say so
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL, ignore_reinit_error=True)
        return sum(node["Alive"] for node in ray.nodes())
    except Exception:  # of many kinds, while the head starts (Ray 2.60)
        ray.shutdown()
        return 0


def main(nodes: int, seconds: float, address: str) -> int:
    until = time.monotonic() + seconds
    while (joined := num_joined(address)) < nodes:
        if time.monotonic() > until:
            what = "no Ray answers" if not joined else f"{joined} of {nodes} nodes have joined Ray"
            print(f"tailsweep: {what} at {address} after {seconds:g} s: see the output of the others", file=sys.stderr)
            return 1
        time.sleep(0.5)
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2]), os.environ["RAY_ADDRESS"]))
