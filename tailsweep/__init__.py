"""Sweeps of two-stage fine-tuning for text classifiers whose rare classes matter, on Ray.

All code is imported below this one name: `tailsweep.orchestrator` (many trials), `tailsweep.trainables` (one trial) and
`tailsweep.clusters` (where it runs).
"""

from pathlib import Path

# In a checkout that is not installed, and in a job's working directory, the three packages lie next to this folder. A
# wheel holds them inside it, where nothing has to be added.
_checkout = Path(__file__).resolve().parent.parent
if not (Path(__file__).resolve().parent / "orchestrator").is_dir() and (_checkout / "orchestrator").is_dir():
    __path__.append(str(_checkout))
