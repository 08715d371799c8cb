"""How a sweep's trials go through the two stages: at a stretch, or in two phases with promotion between them.

In two phases, what is pruned and promoted by stage one is a setting of stage one alone: settings of stage two, of which
stage one knows nothing, are tried for each of those that are promoted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tailsweep.orchestrator.config.distributions import (
    Distribution,
    num_different,
    stage_two_distributions,
    substitute,
)
from tailsweep.orchestrator.config.schema import DEFAULT_TRIALS, SweepConfig
from tailsweep.orchestrator.config.tree import Tree
from tailsweep.trainables.report_keys import STAGE_TWO, STAGES

PROMOTED_SHARE = 4  # of so many trials of phase one, one is promoted


@dataclass(frozen=True)
class TwoPhase:
    """The numbers of a two-phase sweep."""

    promoted: int  # trials of phase one that continue
    settings: int  # of stage two, for each of them

    def __str__(self) -> str:
        each = f", each with {self.settings} settings of stage two" if self.settings > 1 else ""
        return f"the best {self.promoted} after stage one continue{each}"

    @classmethod
    def together(cls, several: Sequence["TwoPhase"]) -> "TwoPhase":
        """Return the numbers of several methods' sweeps as one: of the settings, the most of any."""
        return cls(sum(phases.promoted for phases in several), max(phases.settings for phases in several))

    @property
    def num_trials(self) -> int:
        """The trials of phase two."""
        return self.promoted * self.settings


def two_phase(config: SweepConfig, num_trials: int) -> TwoPhase | None:
    """Return the numbers of a sweep in two phases; None where each trial does both stages at a stretch.

    ``promote: auto`` promotes a quarter of the trials. With ``settings: auto`` stage two has about as many trials as
    there are in phase one, so that a method with two stages tries as many settings of stage two as one without.

    Args:
        config: the sweep.
        num_trials: of phase one.
    """
    if config.promote == "all" or (config.promote == "auto" and why_at_a_stretch(config, num_trials)):
        return None
    promoted = max(1, round(num_trials / PROMOTED_SHARE)) if config.promote == "auto" else config.promote
    asked = config.stage_two_search.settings
    if asked != "auto":
        return TwoPhase(promoted, asked)
    settings = 1 if config.search == "grid" else max(1, round(num_trials / promoted))
    different = num_different(stage_two_distributions(config.trial_tree))
    return TwoPhase(promoted, settings if different is None else min(settings, different))


def drawn_tree(config: SweepConfig, num_trials: int | None = None) -> Tree:
    """Return the sections of a trial as a sweep draws its trials from them.

    Where each promoted trial is tried with several settings of stage two, the trials of phase one have none: its fields
    are at their first values there.

    Args:
        config: the sweep.
        num_trials: in place of the sweep's own.
    """
    phases = two_phase(config, num_trials or config.num_trials or DEFAULT_TRIALS)
    if phases is None or phases.settings == 1:
        return config.trial_tree
    firsts = {field: swept.values[0] for field, swept in stage_two_distributions(config.trial_tree).items()}
    return substitute(config.trial_tree, firsts)


def drawn_distributions(config: SweepConfig, num_trials: int | None = None) -> dict[str, Distribution]:
    """Return the distributions of :func:`drawn_tree` by dotted field."""
    phases = two_phase(config, num_trials or config.num_trials or DEFAULT_TRIALS)
    return config.trial_distributions if phases is None or phases.settings == 1 else _phase_one_distributions(config)


def _phase_one_distributions(config: SweepConfig) -> dict[str, Distribution]:
    swept = config.trial_distributions
    return {field: swept[field] for field in swept if not field.startswith(f"{STAGE_TWO}.")}


def why_at_a_stretch(config: SweepConfig, num_trials: int) -> str | None:
    """Return why ``promote: auto`` is ``all`` in a sweep; None where it is two-phase."""
    if config.search == "grid":
        return "a grid tries each of its points"
    if num_trials < 2:
        return "there is one trial"
    if config.max_wallclock_seconds is not None:
        return "max_wallclock_seconds decides how many trials there are"
    if config.resources.stage_one.workers != 1:
        return "resources.stage_one asks for several workers"
    for stage in STAGES:
        if 0 in _epochs(config, stage):
            return f"{stage} is left out"
    in_phase_one = _phase_one_distributions(config)
    if not in_phase_one:
        return "only stage_two is swept"
    different = num_different(in_phase_one)
    if different is not None and different < num_trials:
        return f"stage one has {different} different settings, fewer than num_trials ({num_trials})"
    return None


def most_epochs(config: SweepConfig, stage: str) -> float:
    """Return the most epochs of a stage that a trial may have."""
    return max(float(epochs) for epochs in _epochs(config, stage) if isinstance(epochs, int | float))


def _epochs(config: SweepConfig, stage: str) -> Sequence[object]:
    """Return the epochs that a stage may have, bounds of an interval included."""
    swept, section = config.trial_distributions.get(f"{stage}.epochs"), config.trial_tree[stage]
    assert isinstance(section, dict)
    return (section.get("epochs", 1),) if swept is None else swept.values
