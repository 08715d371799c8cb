"""The kinds of cluster, and the one command line by which each of them starts a sweep."""

import shlex
from collections.abc import Sequence


def entrypoint(sweep: str, arguments: Sequence[str]) -> str:
    """Return the shell command that runs a sweep, or resumes it if an earlier job has begun it.

    Args:
        sweep: The sweep file's path where it is run.
        arguments: Those of ``run`` after the file.
    """
    return shlex.join(["python", "-m", "tailsweep", "run", sweep, "--resume", *arguments])


KINDS = {
    "rayjob": "one sweep on a KubeRay cluster of its own, for kubectl apply",
    "raycluster": "a KubeRay cluster that accepts jobs, for kubectl apply",
    "slurm": "one sweep on the nodes of a Slurm job, for sbatch",
    "aws": "a cluster that accepts jobs, for ray up",
    "gcp": "a cluster that accepts jobs, for ray up",
    "azure": "a cluster that accepts jobs, for ray up",
    "local": "a local multi-node Ray cluster, for bash",
}
WITH_A_SWEEP = ("rayjob", "slurm")
PERHAPS_WITH_A_SWEEP = ("local",)
