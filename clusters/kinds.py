"""The kinds of file that a cluster's definition can be rendered as."""

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
