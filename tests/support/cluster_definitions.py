"""Small definitions for the tests, and the shipped ones."""

from pathlib import Path
from typing import Any

from tailsweep.clusters.definition import Definition

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "clusters" / "definitions"


def definition(**changes: Any) -> Definition:
    """Four nodes with a GPU; ``changes`` replace whole fields."""
    tree: dict[str, Any] = {
        "name": "rare",
        "groups": [{"name": "gpu", "nodes": 4, "cpus": 8, "memory_gb": 32, "gpus": 1}],
        "storage": {"uri": "s3://bucket/runs"},
    }
    return Definition.model_validate(tree | changes)


SPOT = {"name": "spot", "nodes": {"min": 0, "max": 8}, "cpus": 8, "memory_gb": 32, "gpus": 1, "spot": True}
GPU = {"name": "gpu", "nodes": 1, "cpus": 8, "memory_gb": 32, "gpus": 1}
