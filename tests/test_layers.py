"""The arrows between modules point one way, along the story. Reads imports wherever they stand, in functions too."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Each module may import those before it. A new module goes to its place in the story.
ORDER = {
    "trainables": (
        "keys", "errors", "locations", "checksums", "memory", "config", "finish_config", "methods", "early_stopping",
        "class_balance", "losses", "samplers", "metrics", "demo_rows", "imbalance", "json_rows", "sources", "data",
        "tokenised", "model", "lexicon", "eda", "back_translation", "paraphrases", "augment", "tokens", "packing",
        "cut", "feature_plan", "features",
        "roads", "vocabulary", "optimizer", "runtime", "checkpoint", "stages", "last_layer", "rebalancing", "decision",
        "calibration", "finish", "warm", "mailbox", "recovery", "ray_trial",
    ),
    "orchestrator": (
        "arguments", "mistakes", "secrets", "run_directory", "sweep_file", "cluster_file", "search_space",
        "sweep_schema", "sweep_rules", "config", "records", "run_lock", "scheduler", "tracking", "progress",
        "promotion", "bookkeeping", "results", "page", "report", "cache", "predict", "export", "forecast",
        "preparation", "ray_session", "feature_cache", "adaptive_search", "listed_search", "rounds", "node_needs",
        "wandb_account", "doctor", "launch", "comparison", "significance", "comparison_results", "comparison_report",
        "baselines", "compare", "job", "cluster_render", "cluster_verbs", "__main__",
    ),
}  # fmt: skip
MAY_IMPORT = {"trainables": set(), "orchestrator": {"trainables", "clusters"}, "clusters": set()}
IMPORT_NOTHING = {"trainables.keys"}
RAY_IN_TRAINABLES = "trainables.ray_trial"

FILES = sorted(path.relative_to(ROOT) for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_point_one_way(file: Path):
    assert wrong_imports(".".join(file.with_suffix("").parts), (ROOT / file).read_text()) == []


@pytest.mark.parametrize(
    ("module", "line", "expected"),
    [
        ("trainables.keys", "import os", "imports nothing"),
        ("trainables.config", "from orchestrator.config import SweepConfig", "may not import orchestrator"),
        ("trainables.stages", "def f():\n    import ray.train", "only trainables.ray_trial may import ray"),
        ("trainables.losses", "from trainables.metrics import Confusion", "metrics, which comes later"),
        ("trainables.losses", "from trainables import metrics", "metrics, which comes later"),
        ("trainables.losses", "from . import metrics", "metrics, which comes later"),
        ("trainables.losses", "from .metrics import Confusion", "metrics, which comes later"),
        ("trainables.losses", "import trainables.metrics as m", "metrics, which comes later"),
        ("trainables.__init__", "from trainables import losses", "losses, which comes later"),
        ("trainables.helpers", "import os", "not in ORDER"),
        ("trainables.stages", "from trainables.helpers import f", "helpers, which is not in ORDER"),
        ("orchestrator.config", "from orchestrator.launch import launch", "launch, which comes later"),
        ("clusters.slurm", "import trainables.config", "may not import trainables"),
    ],
)
def test_a_wrong_import_is_found(module: str, line: str, expected: str):
    (found,) = wrong_imports(module, line)
    assert expected in found


def test_right_imports_are_let_pass():
    assert wrong_imports("trainables.ray_trial", "import ray\nfrom trainables.stages import run_stage") == []
    assert wrong_imports("orchestrator.launch", "from trainables import keys\nfrom .records import Records") == []
    assert wrong_imports("clusters.slurm", "import json\nfrom clusters.config import Slurm\nfrom . import local") == []


def wrong_imports(module: str, source: str) -> list[str]:
    """What ``module`` (dotted) imports against the rules, as sentences."""
    package, name = module.split(".")[:2]
    order = (*([] if name != "__init__" else [name]), *ORDER.get(package, ()))
    if package in ORDER and name not in order:
        return [f"{module} is not in ORDER: add it at its place in the story"]
    wrong = []
    for imported in sorted(imported_names(module, source)):
        top, _, rest = imported.partition(".")
        target = rest.partition(".")[0]
        if module in IMPORT_NOTHING:
            wrong.append(f"{module} imports nothing, but here {imported}")
        elif top in MAY_IMPORT and top != package:
            if top not in MAY_IMPORT[package]:
                wrong.append(f"{package} may not import {top}, but {module} imports {imported}")
        elif top == "ray" and package == "trainables" and module != RAY_IN_TRAINABLES:
            wrong.append(f"only {RAY_IN_TRAINABLES} may import ray, but {module} imports {imported}")
        elif top == package and package in ORDER and target != name:
            if target not in order:
                wrong.append(f"{module} imports {target or 'its whole package'}, which is not in ORDER")
            elif order.index(target) > order.index(name):
                wrong.append(f"{module} imports {target}, which comes later")
    return sorted(set(wrong))


def imported_names(module: str, source: str) -> set[str]:
    """Full dotted names of what is imported; of ``from a.b import c`` it is ``a.b.c``, whether c is a module or not."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            start = [*above, *([node.module] if node.module else [])]
            names |= {".".join([*start, alias.name]) for alias in node.names}
    return names
