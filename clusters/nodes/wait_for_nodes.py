"""Wait until the Ray cluster at $RAY_ADDRESS has so many nodes.

Use: ``python -m tailsweep.clusters.nodes.wait_for_nodes NODES SECONDS``.

The exit status is 0 once they have joined, and 1 with a message if they have not after that time.
"""

import logging
import os
import socket
import sys
import time


def num_joined(address: str) -> int:
    """Return the number of nodes that are alive; 0 if no Ray answers."""
    import ray

    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError:
        return 0  # Ray would retry for long, and log it
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL, ignore_reinit_error=True)
        return sum(node["Alive"] for node in ray.nodes())
    except Exception:  # of many kinds, while the head starts (Ray 2.60)
        ray.shutdown()
        return 0


def main(nodes: int, seconds: float, address: str) -> int:
    """Wait for the nodes and return the exit status."""
    until = time.monotonic() + seconds
    while (joined := num_joined(address)) < nodes:
        if time.monotonic() > until:
            problem = "no Ray answers" if not joined else f"{joined} of {nodes} nodes have joined Ray"
            print(
                f"tailsweep: {problem} at {address} after {seconds:g} s: see the output of the others", file=sys.stderr
            )
            return 1
        time.sleep(0.5)
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2]), os.environ["RAY_ADDRESS"]))
