"""Read a cluster's definition and report all its errors together, in the form that sweep files have."""

from collections.abc import Iterator
from pathlib import Path

from tailsweep.clusters.definition import Definition
from tailsweep.orchestrator.config.errors import ConfigIssue, FieldPath, SweepConfigError, find_issues, in_file_order
from tailsweep.orchestrator.config.redaction import has_a_secret, secret_issues
from tailsweep.orchestrator.config.tree import Tree
from tailsweep.orchestrator.config.yaml_io import read_sweep_file

NO_VALUES = (
    "a definition names secrets and never holds their values: write secrets: {NAME: null}, or {name: SECRET, key: KEY} "
    "on Kubernetes, and keep the value there, in secrets_file or in the environment (the value is not shown)"
)


def load_definition(path: Path) -> Definition:
    """Read and check the definition in the file ``path``.

    Raises:
        SweepConfigError: With all errors of the file.
    """
    tree = read_sweep_file(path, example="groups: [{name: gpu, nodes: 2, cpus: 8, memory_gb: 32, gpus: 1}]")
    if secret := [str(ConfigIssue(place, NO_VALUES)) for place in dict.fromkeys(_secrets_in(tree))]:
        raise SweepConfigError(str(path), secret)
    if issues := find_issues(Definition, tree):
        raise SweepConfigError(str(path), list(map(str, in_file_order(issues, tree))))
    return Definition.model_validate(tree)


def _secrets_in(tree: Tree) -> Iterator[FieldPath]:
    """Yield the places of values that nothing should write down."""
    yield from (issue.path for issue in secret_issues(tree))
    secrets, storage = tree.get("secrets"), tree.get("storage")
    if isinstance(secrets, dict):  # whatever the name of the variable
        yield from (("secrets", name) for name, value in secrets.items() if isinstance(value, str))
    if isinstance(storage, dict) and isinstance(uri := storage.get("uri"), str) and has_a_secret(uri):
        yield ("storage", "uri")
