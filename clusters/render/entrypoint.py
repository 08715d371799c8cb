"""The one command line that every kind of cluster hands over to the sweep's own package."""

import shlex
from collections.abc import Sequence


def entrypoint(sweep: str, arguments: Sequence[str]) -> str:
    """The words a shell runs a sweep by, or goes on with it by where an earlier job has begun it.

    Args:
        sweep: the sweep file's path where it is run.
        arguments: of ``run`` after the file.
    """
    return shlex.join(["python", "-m", "tailsweep", "run", sweep, "--resume", *arguments])


KINDS = {
    "rayjob": "one sweep on a KubeRay cluster of its own, for kubectl apply",
    "raycluster": "a KubeRay cluster that takes jobs, for kubectl apply",
    "slurm": "one sweep on the nodes of a Slurm job, for sbatch",
    "aws": "a cluster that takes jobs, for ray up",
    "gcp": "a cluster that takes jobs, for ray up",
    "azure": "a cluster that takes jobs, for ray up",
    "local": "several raylets of this machine, for bash",
}


WITH_A_SWEEP = ("rayjob", "slurm")


PERHAPS_WITH_A_SWEEP = ("local",)
