"""A process that holds a Ray cluster of two nodes until it is killed: ``python two_nodes.py DASHBOARD_PORT``."""

import sys
import threading

from ray.cluster_utils import Cluster

NODE = {"num_cpus": 1, "num_gpus": 1}

if __name__ == "__main__":
    dashboard = {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": int(sys.argv[1])}
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, **dashboard})
    cluster.add_node(**NODE)
    print("address", cluster.address, flush=True)
    threading.Event().wait()
