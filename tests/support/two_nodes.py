"""A process that holds a Ray cluster of two nodes until it is killed.

    python two_nodes.py DASHBOARD_PORT CACHES [GPUS_OF_HEAD]

Each node has two CPUs, one declared GPU, and a cache of its own in the folder CACHES: ``node0``, ``node1``. Where the
head declares no GPU, there are two nodes next to it. At SIGUSR1 the last node is removed.
"""

import os
import signal
import sys

from ray.cluster_utils import Cluster

NODE = {"num_cpus": 2, "num_gpus": 1}


def main(dashboard_port: int, caches: str, gpus_of_head: int = 1) -> None:
    os.environ["TAILSWEEP_CACHE"] = f"{caches}/node0"
    dashboard = {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": dashboard_port}
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_gpus": gpus_of_head, **dashboard})
    for number in range(1, 2 if gpus_of_head else 3):
        last = cluster.add_node(**NODE, env_vars={"TAILSWEEP_CACHE": f"{caches}/node{number}"})
    signal.signal(signal.SIGUSR1, lambda *_: cluster.remove_node(last))
    print("address", cluster.address, flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
