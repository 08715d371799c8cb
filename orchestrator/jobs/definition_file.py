"""Reads the definition of a cluster, with every mistake at once and in the words that a sweep file's are told in."""

from collections.abc import Iterator
from pathlib import Path

from tailsweep.clusters.definition import Definition
from tailsweep.orchestrator.config.errors import Mistake, SweepConfigError, find_mistakes, in_file_order
from tailsweep.orchestrator.config.errors import Path as FieldPath
from tailsweep.orchestrator.config.redaction import has_a_secret, secret_mistakes
from tailsweep.orchestrator.config.yaml_io import Tree, read_sweep_file

NO_VALUES = (
    "a definition names what is secret and never holds it: write secrets: {NAME: null}, or {name: SECRET, key: KEY} on "
    "Kubernetes, and keep the value there, in secrets_file or in the environment (the value is not shown)"
)


def load_definition(path: Path) -> Definition:
    """The cluster that a file describes.

    Raises:
        SweepConfigError: with all mistakes.
    """
    tree = read_sweep_file(path, example="groups: [{name: gpu, nodes: 2, cpus: 8, memory_gb: 32, gpus: 1}]")
    if secret := [str(Mistake(place, NO_VALUES)) for place in dict.fromkeys(_secrets_in(tree))]:
        raise SweepConfigError(str(path), secret)
    if mistakes := find_mistakes(Definition, tree):
        raise SweepConfigError(str(path), list(map(str, in_file_order(mistakes, tree))))
    return Definition.model_validate(tree)


def _secrets_in(tree: Tree) -> Iterator[FieldPath]:
    """Where a value stands that nobody should write down."""
    yield from (mistake.path for mistake in secret_mistakes(tree))
    secrets, storage = tree.get("secrets"), tree.get("storage")
    if isinstance(secrets, dict):  # whatever its variable is called
        yield from (("secrets", name) for name, value in secrets.items() if isinstance(value, str))
    if isinstance(storage, dict) and isinstance(uri := storage.get("uri"), str) and has_a_secret(uri):
        yield ("storage", "uri")
