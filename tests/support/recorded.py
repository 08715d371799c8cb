"""What `tailsweep cluster render` printed when it was last looked at: ``rendered/``.

Record anew, and look at the difference: PYTHONPATH=. python tests/support/recorded.py
"""

from importlib.metadata import version
from pathlib import Path

from tailsweep.orchestrator.jobs.render import render

ROOT = Path(__file__).resolve().parents[2]
RENDERED = ROOT / "tests" / "clusters" / "render" / "rendered"
SWEEP = Path("orchestrator/sweeps/demo.yaml")

# File -> kind, shipped definition, sweep
CASES: dict[str, tuple[str, str, Path | None]] = {
    "rayjob.yaml": ("rayjob", "kubernetes", SWEEP),
    "raycluster.yaml": ("raycluster", "kubernetes", None),
    "slurm.sh": ("slurm", "slurm", SWEEP),
    "aws.yaml": ("aws", "aws", None),
    "gcp.yaml": ("gcp", "gcp", None),
    "azure.yaml": ("azure", "azure", None),
    "local.sh": ("local", "local", None),
    "local-sweep.sh": ("local", "local", SWEEP),
}


def rendered_now(file: str) -> str:
    """From the project's folder; Ray's version is left open."""
    kind, definition, sweep = CASES[file]
    overrides = ["name=demo", "data.max_length=48"] if sweep and kind != "slurm" else []
    text, _ = render(kind, Path(f"clusters/definitions/{definition}.yaml"), sweep, overrides)
    return text.replace(f"rayVersion: {version('ray')}\n", "rayVersion: RAY\n")


if __name__ == "__main__":
    for name in CASES:
        (RENDERED / name).write_text(rendered_now(name))
