"""What may change about a sweep that has begun, and what may not."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tailsweep.orchestrator.config.distributions import is_distribution
from tailsweep.orchestrator.config.errors import show
from tailsweep.orchestrator.config.sweep import Sweep, SweepConfigError
from tailsweep.orchestrator.config.tree import Tree

# These say where and how trials run, and what is chosen among them, and not what they train: fields and sections.
ADOPTED = ("max_concurrent", "retries", "max_consecutive_failures", "resources", "wandb", "features.dir", "selection")
PLACE = ("name", "storage")  # the run directory is where it was found
EXTENDING = ("num_trials", "max_wallclock_seconds")


@dataclass(frozen=True)
class Change:
    """A setting that is not as it was when the run began."""

    field: str  # dotted
    old: object
    new: object

    def __str__(self) -> str:
        return f"{self.field}: {show(self.old)} -> {show(self.new)}"


@dataclass(frozen=True)
class ChangedSweep:
    """A sweep that has begun, with the settings it continues with."""

    sweep: Sweep
    changes: tuple[Change, ...] = ()

    @property
    def has_more_seconds(self) -> bool:
        """Whether ``max_wallclock_seconds`` is above what it was."""
        return any(change.field == "max_wallclock_seconds" and _is_more(change) for change in self.changes)


def change_sweep(recorded: Sweep, wanted: Sweep, source: str) -> ChangedSweep:
    """Return the sweep to continue with, where ``wanted`` is what the user asks for now.

    Settings of where and how trials run, and of the choice among them, are adopted. More trials or more seconds extend
    the sweep.

    Args:
        recorded: the sweep as it began.
        wanted: the same sweep, perhaps with other settings.
        source: the run directory, for messages.

    Raises:
        SweepConfigError: A setting has changed that results depend on.
    """
    if wanted.config.promote == "auto":  # the mode was settled when the run began
        config = wanted.config.model_copy(update={"promote": recorded.config.promote})
        wanted = Sweep.resolved(config, wanted.name, wanted.num_trials)
    changes = tuple(_differences(_settings(recorded), _settings(wanted)))
    issues = [issue for change in changes if (issue := _issue(change)) is not None]
    if issues:
        raise SweepConfigError(source, issues)
    config = wanted.config.model_copy(update={name: getattr(recorded.config, name) for name in PLACE})
    return ChangedSweep(Sweep.resolved(config, recorded.name, wanted.num_trials), changes)


def _settings(sweep: Sweep) -> Tree:
    return {name: value for name, value in sweep.config.model_dump().items() if name not in PLACE}


def leaves(tree: Mapping[str, object], parents: str = "") -> Iterator[tuple[str, object]]:
    """Yield the values of a tree by dotted field; a distribution is one value.

    Example:
        >>> dict(leaves({"seed": 1, "stage_one": {"epochs": {"choice": [1, 2]}}}))
        {'seed': 1, 'stage_one.epochs': {'choice': [1, 2]}}
    """
    for name, value in tree.items():
        field = f"{parents}{name}"
        if isinstance(value, Mapping) and _is_section(value):
            yield from leaves(value, f"{field}.")
        else:
            yield field, value


def settings_of_results(sweep: Sweep) -> Tree:
    """Return the settings that results depend on, by dotted field, apart from how many trials there are."""
    return {
        field: value for field, value in leaves(_settings(sweep)) if not _is_adopted(field) and field not in EXTENDING
    }


def settings_digest(sweep: Sweep) -> str:
    """Return a digest of a sweep's settings that results depend on: its file must not change afterwards."""
    settings = json.dumps(settings_of_results(sweep), sort_keys=True, default=str)
    return hashlib.sha256(settings.encode()).hexdigest()


def _differences(old: object, new: object, field: str = "") -> Iterator[Change]:
    """Yield the smallest sections and values of two trees that differ."""
    if _is_section(old) and _is_section(new):
        assert isinstance(old, Mapping)
        assert isinstance(new, Mapping)
        for name in dict.fromkeys((*old, *new)):
            yield from _differences(old.get(name), new.get(name), f"{field}.{name}" if field else name)
    elif old != new:
        yield Change(field, old, new)


def _is_section(value: object) -> bool:
    return isinstance(value, Mapping) and bool(value) and not is_distribution(value)


def _issue(change: Change) -> str | None:
    """Return why a change is refused, or None."""
    if _is_adopted(change.field) or change.field == "max_wallclock_seconds":
        return None
    if change.field == "num_trials":
        if _is_more(change):
            return None
        return f"{change}: a run that has begun can have more trials, but not fewer; leave num_trials as it was"
    return (
        f"{change}: results depend on it, so it stays as it was when the run began; set it back, or start another "
        "run (--set name=...)"
    )


def _is_adopted(field: str) -> bool:
    return any(field == adopted or field.startswith(f"{adopted}.") for adopted in ADOPTED)


def _is_more(change: Change) -> bool:
    """Whether a number is larger than it was; null has no limit."""
    if change.new is None:
        return True
    return isinstance(change.old, int | float) and isinstance(change.new, int | float) and change.new > change.old
