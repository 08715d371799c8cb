"""Rules between the fields of a sweep, beyond what each field says of itself. Each function gives the mistakes it
finds; ``trials`` are those that probe every distribution at its bounds or values, one at a time.
"""

import importlib.util
import itertools
from collections.abc import Mapping, Sequence

from tailsweep.orchestrator.config.errors import Mistake, did_you_mean, find_mistakes, show
from tailsweep.orchestrator.config.schema import AshaConfig, RoundTwoConfig, StageResources, SweepConfig
from tailsweep.orchestrator.config.search_space import (
    LISTS,
    MAX_CANDIDATES,
    Distribution,
    find_distributions,
    num_different,
    point_values,
    settings,
    stage_two_distributions,
    substitute,
)
from tailsweep.trainables.config.losses import LDAM, LossConfig
from tailsweep.trainables.config.presets import METHODS
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.report_keys import EPOCH_DECIMALS, STAGE_ONE, STAGE_TWO, STAGES, shown_epochs

LARGEST_PLAIN_SCALE = 10.0
SMALLEST_TELLING_BETA = 0.999


def count_mistakes(config: SweepConfig) -> list[Mistake]:
    """Candidates that cannot all be different."""
    distributions = find_distributions(config.drawn_tree)
    different, asked = num_different(distributions), config.num_candidates
    path = ("num_candidates",)
    if config.search == "grid":
        assert different is not None
        by_method = f"; {lists}" if (lists := _lists_of_method(config)) else ""
        if different > MAX_CANDIDATES:
            rule = f"the grid has {different} points, but must have at most {MAX_CANDIDATES}"
            return [Mistake(path, f"{rule}{by_method}")]
        doubled = [
            Mistake(tuple(field.split(".")), "names a value twice: its candidates would be the same")
            for field, distribution in find_distributions(config.trial_tree).items()
            if distribution.num_values() != len(distribution.values)
        ]
        if asked not in (None, different) and not doubled:
            rule = f"is {asked}, but the grid has {different} points: leave num_candidates out"
            return [Mistake(path, f"{rule}{by_method}")]
        return doubled
    if asked is None or different is None or asked <= different:
        return []
    if not distributions:
        return [
            Mistake(path, f"is {asked}, but no field is swept, so that all would be the same: say 1, or sweep a field")
        ]
    return [
        Mistake(
            path, f"is {asked}, but only {different} different candidates can be drawn: say {different}, or sweep more"
        )
    ]


def _lists_of_method(config: SweepConfig) -> str | None:
    """What a grid goes through because the method does, which the file need not show; None: nothing."""
    swept, of_method = find_distributions(config.trial_tree), find_distributions(dict(METHODS[config.method]))
    fields = [field for field, distribution in of_method.items() if swept.get(field) == distribution]
    if not fields:
        return None
    return f"method {config.method} sweeps {', '.join(fields)}: give those a value that the grid is not to go through"


def search_mistakes(config: SweepConfig, distributions: Mapping[str, Distribution]) -> list[Mistake]:
    """Points that are no points of the space, and what an adaptive search cannot draw."""
    mistakes = []
    if config.search == "optuna" and config.max_seconds is not None:
        rule = "goes with search: random or grid; how many candidates optuna draws is for num_candidates to say"
        mistakes.append(Mistake(("max_seconds",), f"is {config.max_seconds:g}, but {rule}"))
    for number, point in enumerate(config.points):
        path: tuple[str | int, ...] = ("points", number)
        if config.search == "grid":
            mistakes.append(Mistake(path, "a grid has its points already: leave points out, or say search: random"))
        values, others = point_values(point, distributions)
        for other in others:
            text = f"is not swept{did_you_mean('.'.join(map(str, other)), distributions)}"
            mistakes.append(Mistake((*path, *other), text))
        for field, value in values.items():
            if not distributions[field].holds(value):
                text = f"is {show(value)}, but is never drawn from {_written(distributions[field])}"
                mistakes.append(Mistake((*path, *field.split(".")), text))
    if config.search == "optuna":
        if importlib.util.find_spec("optuna") is None:
            mistakes.append(
                Mistake(("search",), "is optuna, but Optuna is not installed: pip install optuna, or say random")
            )
        for field, distribution in distributions.items():
            if decides_features(field) and distribution.kind not in LISTS:
                rule = "must be fixed or {choice: [...]} with search: optuna: features are made for every value of it"
                mistakes.append(Mistake(tuple(field.split(".")), f"is {_written(distribution)}, but {rule}"))
    return mistakes


def _written(distribution: Distribution) -> str:
    return show({distribution.kind: list(distribution.values)})


def decides_features(field: str) -> bool:
    """Whether rows or features depend on a field, see ``records.made_of``."""
    within = (
        "data.", "model.", "stage_one.trains", "stage_one.frozen_dropout", "stage_one.epochs", "stage_one.rows",
        "stage_two.rows",
    )  # fmt: skip
    return field.startswith(within)


def asha_mistakes(config: SweepConfig, trials: Sequence[TrialConfig]) -> list[Mistake]:
    """A first rung before the first report, and brackets without a rung.

    That even the first bracket has none is a note only: ASHA is on unless switched off.
    """
    mistakes = []
    for asha, stage, path in _ashas(config):
        stages = [getattr(trial, stage) for trial in trials]
        evaluations = min((one.evaluations_per_epoch for one in stages if one.epochs), default=1)
        epochs = max(one.epochs for one in stages)
        grace = asha.grace_epochs
        if epochs and not _reports_by(grace, evaluations):
            rule = f"must be at least {shown_epochs(1 / evaluations)}: {stage}.evaluations_per_epoch is {evaluations}"
            enough = next(number for number in itertools.count(evaluations) if _reports_by(grace, number))
            text = f"is {show(grace)}, but {rule}; set that to {enough}, or raise this"
            mistakes.append(Mistake((*path, "grace_epochs"), text))
            continue
        first_rungs = [grace]
        while round(first_rungs[-1], EPOCH_DECIMALS) <= epochs:
            first_rungs.append(first_rungs[-1] * asha.reduction_factor)
        held = len(first_rungs) - 1  # brackets with a rung
        if asha.brackets > max(held, 1):
            rule = f"at most {held}" if held else "1"
            reason = f"the first rung of bracket {max(held, 1)} (from 0) lies beyond {stage}'s {epochs} epochs"
            mistakes.append(Mistake((*path, "brackets"), f"is {asha.brackets}, but must be {rule}: {reason}"))
    return mistakes


def _reports_by(epoch: float, evaluations: int) -> bool:
    """Whether a stage evaluated so often per epoch has been evaluated by then."""
    return round(1 / evaluations, EPOCH_DECIMALS) <= round(epoch, EPOCH_DECIMALS)


def _ashas(config: SweepConfig) -> list[tuple[AshaConfig, str, tuple[str, ...]]]:
    """Each ASHA there is, its stage, and the path of its section."""
    written = ((config.asha, STAGE_ONE, ("asha",)), (config.round_two.asha, STAGE_TWO, ("round_two", "asha")))
    return [(asha, stage, path) for asha, stage, path in written if asha is not None]


def round_two_mistakes(config: SweepConfig) -> list[Mistake]:
    """Settings of stage two that cannot all be different, and a second round where there is none."""
    asked = config.round_two
    if config.promote == "all":
        rule = "needs a tournament: say promote: K, or leave round_two out"
        return [] if asked == RoundTwoConfig() else [Mistake(("round_two",), rule)]
    path = ("round_two", "settings")
    distributions = stage_two_distributions(config.trial_tree)
    different = num_different(distributions)
    if asked.settings == 1 or different is None or asked.settings <= different:
        if config.search == "grid" and asked.settings not in (1, different):
            rule = f"must be {different}, the points of stage two's grid, or 1: all are candidates of round one then"
            return [Mistake(path, f"is {asked.settings}, but {rule}")]
        return []
    rule = f"only {different} different settings of stage two can be drawn: say {different}, or sweep more of stage_two"
    return [Mistake(path, f"is {asked.settings}, but {rule}")]


def tournament_mistakes(config: SweepConfig, trials: Sequence[TrialConfig]) -> list[Mistake]:
    """What a first round needs: a stage one to rank by, a stage two to be promoted to, and more to choose from."""
    if config.promote == "all":
        return []
    assert config.num_candidates is not None
    mistakes = []
    if config.promote > config.num_candidates:
        rule = f"must be at most num_candidates ({config.num_candidates}), or all"
        mistakes.append(Mistake(("promote",), f"is {config.promote}, but {rule}"))
    for stage in STAGES:
        if any(getattr(trial, stage).epochs == 0 for trial in trials):
            reason = "promotion is by rank after stage one, for stage two: say promote: all"
            mistakes.append(
                Mistake((stage, "epochs"), f"is 0, but must be at least 1 where promote is a number; {reason}")
            )
    if config.resources.stage_one.workers != 1:
        found = config.resources.stage_one.workers
        rule = "must be 1: a first round's candidate trains in one process, and many do at once"
        mistakes.append(Mistake(("resources", "stage_one", "workers"), f"is {found}, but {rule}"))
    return mistakes


def candidate_mistakes(config: SweepConfig) -> list[Mistake]:
    """Rules between fields that only a whole candidate can break. One candidate is named for each."""
    assert config.num_candidates is not None
    found: dict[Mistake, str] = {}
    tree = config.drawn_tree
    drawn = settings(
        tree, search=config.search, num_candidates=config.num_candidates, seed=config.seed, points=config.point_values
    )
    for number, values in enumerate(drawn):
        where = f"candidate c{number:03d}: {', '.join(f'{field} = {show(value)}' for field, value in values.items())}"
        for mistake in find_mistakes(TrialConfig, substitute(tree, values)):
            found.setdefault(mistake, where)
    return [Mistake(mistake.path, f"{mistake.text} ({where})") for mistake, where in found.items()]


def _loss_notes(losses: Sequence[LossConfig]) -> list[str]:
    """Settings that are right elsewhere, and do little or harm here."""
    found = []
    scale = max((loss.scale for loss in losses if isinstance(loss, LDAM)), default=0)
    if scale > LARGEST_PLAIN_SCALE:
        found.append(
            f"ldam's scale is {scale:g}, which goes with a normalised head, whose logits are cosines; the heads here "
            "are plain, and want about 1"
        )
    betas = [beta for loss in losses if 0 < (beta := getattr(loss, "beta", 0)) < SMALLEST_TELLING_BETA]
    if betas:
        found.append(
            f"beta {min(betas):g} tells classes apart up to about {1 / (1 - min(betas)):.0f} rows; larger ones all "
            "weigh the same"
        )
    return found


def notes(config: SweepConfig, distributions: Mapping[str, Distribution], trials: Sequence[TrialConfig]) -> list[str]:
    """For the user: what is allowed, but may not be what was meant."""
    found = []
    if not distributions:
        found.append("no field is swept: there is one candidate")
    if config.search == "grid" and (lists := _lists_of_method(config)):
        found.append(lists)
    for asha, stage, path in _ashas(config):
        epochs = max(getattr(trial, stage).epochs for trial in trials)
        if epochs < asha.grace_epochs:
            found.append(
                f"{'.'.join(path)} prunes nothing: its first rung comes after epoch {shown_epochs(asha.grace_epochs)} "
                f"of {stage.replace('_', ' ')}, which has {epochs}"
            )
    for stage in STAGES:
        swept = [field for field in distributions if field.startswith(f"{stage}.") and field != f"{stage}.epochs"]
        if swept and all(getattr(trial, stage).epochs == 0 for trial in trials):
            found.append(f"sweeping {', '.join(swept)} changes nothing: {stage}.epochs is 0")
        stages = [getattr(trial, stage) for trial in trials]
        evaluations = max(one.epochs * one.evaluations_per_epoch for one in stages)
        patience = min((one.patience for one in stages if one.patience is not None), default=0)
        if patience >= evaluations > 0:
            found.append(
                f"{stage}.patience changes nothing: it is {patience}, and {stage.replace('_', ' ')} is evaluated "
                f"{evaluations} times"
            )
        if any(one.layer_decay < 1 for one in stages) and all(one.trains in ("head", "pooler") for one in stages):
            found.append(f"{stage}.layer_decay changes nothing: no encoder layer trains in {stage.replace('_', ' ')}")
        found += [f"{stage}.loss: {text}" for text in _loss_notes([one.loss for one in stages if one.epochs > 0])]
    if trials[0].data.augmentation is not None and not any(trial.needs_augmented_rows for trial in trials):
        found.append("data.augmentation has no effect: no stage has rows: augmented")
    if config.promote == "all" and config.resources.stage_one != StageResources():
        found.append(
            "resources.stage_one has no effect with promote: all; both stages run on the workers of resources.stage_two"
        )
    resources = config.resources.stage_two
    if resources.workers > 1 and 0 < resources.gpus_per_worker < 1:
        found.append(
            f"{resources.workers} workers with {resources.gpus_per_worker} of a GPU each may share one: they talk over "
            "gloo, as NCCL needs a GPU per worker"
        )
    return found
