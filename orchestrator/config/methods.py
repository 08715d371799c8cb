"""``method`` as a dimension of a sweep: several methods that share its examples, its trials and its run directory.

``method: [vanilla, two_stage]`` resolves to a mapping from each method to its settings, preset and defaults filled in.
Each has a :class:`~tailsweep.orchestrator.config.sweep.Sweep` of its own; their trials take turns, so that a longer
sweep begins with the trials of a shorter one.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, PlainSerializer
from tailsweep.orchestrator.config.errors import ConfigIssue, did_you_mean, show
from tailsweep.orchestrator.config.tree import FrozenTree, Tree, thaw
from tailsweep.trainables.config.presets import METHODS

AUTO = ("vanilla", "reweighting", "two_stage")  # the methods of ``method: auto``
METHOD = "method"  # the field, and the name of the value that says of a trial whose it is
OWN_SECTIONS = ("data", "model", "stage_one", "stage_two", "promote")  # what a method may set for itself
OWN_OF_DATA = ("augmentation",)  # all methods share the examples
TRIALS_EACH = 4  # of a method, where num_trials is left out


def _as_mapping(method: object) -> object:
    """Turn ``auto`` and lists into mappings; leave anything else for the check to refuse."""
    if method == "auto":
        return {name: {} for name in AUTO}
    if isinstance(method, list | tuple):
        names = [name if isinstance(name, str) else show(name) for name in method]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"names {twice[0]} twice: give each method once")
        return {name: {} for name in names}
    if isinstance(method, Mapping):
        return {name: {} if own is None else own for name, own in method.items()}
    return method


def _known(method: str | Mapping[str, Tree]) -> object:
    names = [method] if isinstance(method, str) else list(method)
    if not names:
        raise ValueError("is empty, but must name a method, several, or auto")
    for name in names:
        if name not in METHODS:
            raise ValueError(f"is {show(name)}, but must be a method{did_you_mean(name, METHODS)}")
    return method if isinstance(method, str) else FrozenTree(method)


def _plain(method: str | Mapping[str, Tree]) -> str | Tree:
    return method if isinstance(method, str) else thaw(method)


# A method, or several with the settings of each; in a file also a list of names, or auto.
MethodField = Annotated[
    str | Mapping[str, Tree], BeforeValidator(_as_mapping), AfterValidator(_known), PlainSerializer(_plain)
]


def several_methods(tree: Tree) -> dict[str, Tree] | None:
    """Return the methods of a sweep's tree with their own settings; None if there is one, or no valid ones."""
    try:
        methods = _as_mapping(tree.get(METHOD))
    except ValueError:
        return None
    if not isinstance(methods, Mapping) or not methods:
        return None
    if not all(name in METHODS and isinstance(own, Mapping) for name, own in methods.items()):
        return None
    return {name: thaw(own) for name, own in methods.items()}


def own_issues(methods: Mapping[str, Tree]) -> list[ConfigIssue]:
    """Return what a method sets that is not its own to set."""
    issues = []
    for method, own in methods.items():
        issues += [
            ConfigIssue((METHOD, method, name), f"is no setting of a method: valid are {', '.join(OWN_SECTIONS)}")
            for name in own
            if name not in OWN_SECTIONS
        ]
        data = own.get("data")
        issues += [
            ConfigIssue((METHOD, method, "data", name), "all methods share their examples: write it under data")
            for name in (data if isinstance(data, Mapping) else {})
            if name not in OWN_OF_DATA
        ]
    return issues


def shared_issues(issues: Mapping[str, Sequence[str]], prefix: str) -> list[str]:
    """Return the issues of several methods, those of all of them once.

    Args:
        issues: By method; none for a method without.
        prefix: What the name of a method is put after, where an issue is not that of all.
    """
    methods_with: dict[str, list[str]] = {}  # by issue
    for method, texts in issues.items():
        for text in texts:
            methods_with.setdefault(text, []).append(method)
    lines = []
    for text, methods in methods_with.items():
        lines += [text] if len(methods) == len(issues) else [f"{prefix}.{method}: {text}" for method in methods]
    return lines
