"""Keys and passwords come from the environment alone: what looks like one elsewhere is refused, and never repeated.

A sweep's settings go to its run directory, to W&B and to a process's arguments, where others can read them.
"""

import re
from collections.abc import Iterable, Iterator

from tailsweep.orchestrator.config.errors import ConfigIssue, FieldPath

NAME = re.compile(
    r"(?:^|.*[_-])(?:(?:api|access|account|private|secret)[_-]?key|secret|token|passw(?:or)?d|credentials?)s?", re.I
)
IN_URI = re.compile(
    r"\w[\w+.-]*://(?:(?!anonymous@)[^/?#]*@|.*[?&;](?:\w*[_-])?(?:key|secret|token|password|sig(?:nature)?)=)", re.I
)

HINT = (
    "keys and passwords are never settings, since others can read these: export WANDB_API_KEY for W&B, HF_TOKEN for "
    "the hub, and for storage what its own client reads (the value is not shown)"
)


def secret_issues(tree: object, path: FieldPath = ()) -> Iterator[ConfigIssue]:
    """Yield an issue for each value that a tree of settings has under the name of a key."""
    items: Iterable[tuple[str | int, object]] = ()
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, list):
        items = enumerate(tree)
    for step, value in items:
        if isinstance(step, str) and NAME.fullmatch(step) and isinstance(value, str | int | float):
            yield ConfigIssue((*path, step), HINT)
        else:
            yield from secret_issues(value, (*path, step))


def secret_set_by(override: str) -> str | None:
    """Return the field of ``field=value`` if that sets a key, as :func:`secret_issues` decides; else None.

    If field and value cannot be told apart, it is ``--set`` alone.
    """
    field = override.partition("=")[0]
    names = re.split(r"[.:\s]", field) + re.findall(r"([\w-]+)['\"]?\s*:", override)
    if not any(map(NAME.fullmatch, names)):
        return None
    return f"--set {field}" if "=" in override and re.fullmatch(r"[\w.-]+", field) else "--set"


def has_a_secret(location: str) -> bool:
    """Return whether a URI holds a key or a password."""
    return IN_URI.match(location) is not None


def has_a_secret_within(text: str) -> bool:
    """Return whether a word of a text is a URI that holds a key or a password.

    Examples are ``--index-url https://NAME:KEY@HOST/simple`` and ``field=s3://KEY:SECRET@BUCKET``.
    """
    return any(has_a_secret(part) for word in text.split() for part in (word, word.partition("=")[2]))
