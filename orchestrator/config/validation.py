"""Rules between the fields of a sweep, beyond those of each field. Each function returns the issues it finds.

``trial_configs`` are the trials that probe every distribution at its bounds or values, one at a time.
"""

import importlib.util
import itertools
from collections.abc import Mapping, Sequence

from tailsweep.orchestrator.config.distributions import (
    LISTS,
    Distribution,
    find_distributions,
    num_different,
    stage_two_distributions,
    substitute,
)
from tailsweep.orchestrator.config.errors import ConfigIssue, did_you_mean, find_issues, show
from tailsweep.orchestrator.config.schema import AshaConfig, StageResources, SweepConfig
from tailsweep.orchestrator.config.search_space import MAX_TRIALS, point_values, settings
from tailsweep.orchestrator.config.tree import thaw
from tailsweep.orchestrator.config.two_phase import drawn_distributions, drawn_tree, two_phase, why_at_a_stretch
from tailsweep.trainables.config.losses import LDAM, LossConfig
from tailsweep.trainables.config.postprocess import PostprocessConfig
from tailsweep.trainables.config.presets import METHODS
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.report_keys import EPOCH_DECIMALS, STAGE_ONE, STAGE_TWO, STAGES, shown_epochs

LARGEST_PLAIN_SCALE = 10.0
FOR_ONNX = ("onnx", "onnxscript", "onnxruntime")  # packages
SMALLEST_TELLING_BETA = 0.999


def count_issues(config: SweepConfig) -> list[ConfigIssue]:
    """Check that all trials can be different."""
    distributions = drawn_distributions(config)
    different, asked = num_different(distributions), config.num_trials
    path = ("num_trials",)
    if config.search == "grid":
        assert different is not None
        by_method = f"; {lists}" if (lists := _lists_of_method(config)) else ""
        if different > MAX_TRIALS:
            rule = f"the grid has {different} points, but must have at most {MAX_TRIALS}"
            return [ConfigIssue(path, f"{rule}{by_method}")]
        doubled = [
            ConfigIssue(tuple(field.split(".")), "names a value twice: its trials would be the same")
            for field, distribution in config.trial_distributions.items()
            if distribution.num_values() != len(distribution.values)
        ]
        if asked not in (None, different) and not doubled:
            rule = f"is {asked}, but the grid has {different} points: leave num_trials out"
            return [ConfigIssue(path, f"{rule}{by_method}")]
        return doubled
    if asked is None or different is None or asked <= different:
        return []
    if not distributions:
        return [
            ConfigIssue(
                path, f"is {asked}, but no field is swept, so that all would be the same: say 1, or sweep a field"
            )
        ]
    return [
        ConfigIssue(
            path, f"is {asked}, but only {different} different trials can be drawn: say {different}, or sweep more"
        )
    ]


def _lists_of_method(config: SweepConfig) -> str | None:
    """Describe the fields that only the method's preset sweeps; None if there are none."""
    assert isinstance(config.method, str)
    swept, preset = config.trial_distributions, find_distributions(dict(METHODS[config.method]))
    fields = [field for field, distribution in preset.items() if swept.get(field) == distribution]
    if not fields:
        return None
    return f"method {config.method} sweeps {', '.join(fields)}: give those a value that the grid is not to go through"


def search_issues(config: SweepConfig, distributions: Mapping[str, Distribution]) -> list[ConfigIssue]:
    """Check the initial points, and that an adaptive search can draw from the distributions."""
    issues = []
    if config.search == "optuna" and config.max_wallclock_seconds is not None:
        rule = "goes with search: random or grid; how many trials optuna draws is for num_trials to say"
        issues.append(ConfigIssue(("max_wallclock_seconds",), f"is {config.max_wallclock_seconds:g}, but {rule}"))
    for number, point in enumerate(config.initial_points):
        path: tuple[str | int, ...] = ("initial_points", number)
        if config.search == "grid":
            text = "a grid has its points already: leave initial_points out, or say search: random"
            issues.append(ConfigIssue(path, text))
        values, others = point_values(thaw(point), distributions)
        for other in others:
            text = f"is not swept{did_you_mean('.'.join(map(str, other)), distributions)}"
            issues.append(ConfigIssue((*path, *other), text))
        for field, value in values.items():
            if not distributions[field].holds(value):
                text = f"is {show(value)}, but is never drawn from {_written(distributions[field])}"
                issues.append(ConfigIssue((*path, *field.split(".")), text))
    if config.search == "optuna":
        if importlib.util.find_spec("optuna") is None:
            issues.append(
                ConfigIssue(("search",), "is optuna, but Optuna is not installed: pip install optuna, or say random")
            )
        for field, distribution in distributions.items():
            if decides_features(field) and distribution.kind not in LISTS:
                rule = "must be fixed or {choice: [...]} with search: optuna: features are made for every value of it"
                issues.append(ConfigIssue(tuple(field.split(".")), f"is {_written(distribution)}, but {rule}"))
    return issues


def _written(distribution: Distribution) -> str:
    return show({distribution.kind: list(distribution.values)})


def decides_features(field: str) -> bool:
    """Return whether examples or features depend on a field, see ``trials.inputs_key``."""
    within = (
        "data.", "model.", "stage_one.trainable", "stage_one.frozen_dropout", "stage_one.epochs", "stage_one.sampling",
        "stage_two.sampling",
    )  # fmt: skip
    return field.startswith(within)


def asha_issues(config: SweepConfig, trial_configs: Sequence[TrialConfig]) -> list[ConfigIssue]:
    """Check that no rung comes before the first report, and that every bracket has a rung.

    That even the first bracket has none is a note only: ASHA is on unless switched off.
    """
    issues = []
    for asha, stage, path in _ashas(config):
        stages = [getattr(trial_config, stage) for trial_config in trial_configs]
        evaluations = min((described.evaluations_per_epoch for described in stages if described.epochs), default=1)
        epochs = max(described.epochs for described in stages)
        if asha.grace_fraction is not None:
            issues += _fraction_issues(asha, path)
            continue
        grace = asha.grace_epochs
        if epochs and not _reports_by(grace, evaluations):
            rule = f"must be at least {shown_epochs(1 / evaluations)}: {stage}.evaluations_per_epoch is {evaluations}"
            enough = next(number for number in itertools.count(evaluations) if _reports_by(grace, number))
            text = f"is {show(grace)}, but {rule}; set that to {enough}, or raise this"
            issues.append(ConfigIssue((*path, "grace_epochs"), text))
            continue
        first_rungs = [grace]
        while round(first_rungs[-1], EPOCH_DECIMALS) <= epochs:
            first_rungs.append(first_rungs[-1] * asha.reduction_factor)
        usable = len(first_rungs) - 1  # brackets with a rung
        if asha.brackets > max(usable, 1):
            rule = f"at most {usable}" if usable else "1"
            reason = f"the first rung of bracket {max(usable, 1)} (from 0) lies beyond {stage}'s {epochs} epochs"
            issues.append(ConfigIssue((*path, "brackets"), f"is {asha.brackets}, but must be {rule}: {reason}"))
    return issues


def _fraction_issues(asha: AshaConfig, path: tuple[str, ...]) -> list[ConfigIssue]:
    """Check an ASHA whose rungs are shares of a stage."""
    assert asha.grace_fraction is not None
    if "grace_epochs" in asha.model_fields_set and asha.grace_epochs != AshaConfig().grace_epochs:
        rule = f"is {asha.grace_fraction:g}, but grace_epochs is set, too: leave one of them out"
        return [ConfigIssue((*path, "grace_fraction"), rule)]
    if asha.grace_fraction * asha.reduction_factor ** (asha.brackets - 1) >= 1:
        rule = "must be fewer: the first rung of the last bracket lies beyond the end of the stage"
        return [ConfigIssue((*path, "brackets"), f"is {asha.brackets}, but {rule}")]
    return []


def _reports_by(epoch: float, evaluations: int) -> bool:
    """Return whether a stage evaluated so often per epoch has been evaluated by then."""
    return round(1 / evaluations, EPOCH_DECIMALS) <= round(epoch, EPOCH_DECIMALS)


def _ashas(config: SweepConfig) -> list[tuple[AshaConfig, str, tuple[str, ...]]]:
    """Return each ASHA with its stage and the path of its section."""
    written = (
        (config.asha, STAGE_ONE, ("asha",)),
        (config.stage_two_search.asha, STAGE_TWO, ("stage_two_search", "asha")),
    )
    return [(asha, stage, path) for asha, stage, path in written if asha is not None]


def stage_two_search_issues(config: SweepConfig) -> list[ConfigIssue]:
    """Check that the settings of stage two can all be different, and that there is a phase two."""
    asked = config.stage_two_search
    assert config.num_trials is not None
    if asked.settings == "auto":
        return []
    path = ("stage_two_search", "settings")
    if two_phase(config, config.num_trials) is None:
        reason = "promote is all" if config.promote == "all" else why_at_a_stretch(config, config.num_trials)
        rule = f"needs a two-phase sweep, and here {reason}: say promote: K, or leave it out"
        return [] if asked.settings == 1 else [ConfigIssue(path, f"is {asked.settings}, but {rule}")]
    distributions = stage_two_distributions(config.trial_tree)
    different = num_different(distributions)
    if asked.settings == 1 or different is None or asked.settings <= different:
        if config.search == "grid" and asked.settings not in (1, different):
            rule = f"must be {different}, the points of stage two's grid, or 1: all are trials of phase one then"
            return [ConfigIssue(path, f"is {asked.settings}, but {rule}")]
        return []
    rule = f"only {different} different settings of stage two can be drawn: say {different}, or sweep more of stage_two"
    return [ConfigIssue(path, f"is {asked.settings}, but {rule}")]


def two_phase_issues(config: SweepConfig, trial_configs: Sequence[TrialConfig]) -> list[ConfigIssue]:
    """Check that phase one has a stage one to rank by, a stage two to promote to, and enough trials."""
    if config.promote in ("auto", "all"):  # auto is all where it could not be a number
        return []
    assert isinstance(config.promote, int)
    assert config.num_trials is not None
    issues = []
    if config.promote > config.num_trials:
        rule = f"must be at most num_trials ({config.num_trials}), or all"
        issues.append(ConfigIssue(("promote",), f"is {config.promote}, but {rule}"))
    for stage in STAGES:
        if any(getattr(trial_config, stage).epochs == 0 for trial_config in trial_configs):
            reason = "promotion is by rank after stage one, for stage two: say promote: all"
            issues.append(
                ConfigIssue((stage, "epochs"), f"is 0, but must be at least 1 where promote is a number; {reason}")
            )
    if config.resources.stage_one.workers != 1:
        workers = config.resources.stage_one.workers
        rule = "must be 1: a phase one's trial trains in one process, and many do at once"
        issues.append(ConfigIssue(("resources", "stage_one", "workers"), f"is {workers}, but {rule}"))
    return issues


def export_issues(config: SweepConfig) -> list[ConfigIssue]:
    """Check that the packages are installed that the exported files need."""
    if not config.export.onnx or not (missing := [name for name in FOR_ONNX if importlib.util.find_spec(name) is None]):
        return []
    rule = f"is true, but {', '.join(missing)} is not installed: pip install 'tailsweep[onnx]', or say false"
    return [ConfigIssue(("export", "onnx"), rule)]


def selection_issues(config: SweepConfig) -> list[ConfigIssue]:
    """Check that nothing is fitted to validation examples that a model is trained on again."""
    selection = config.selection
    if not selection.trains_again or config.postprocess == PostprocessConfig():
        return []
    field = "refit" if selection.folds is None else "folds"
    rule = "but postprocess is fitted to the validation examples, which a refit trains on: leave one of both out"
    return [ConfigIssue(("selection", field), f"is {show(getattr(selection, field))}, {rule}")]


def whole_trial_issues(config: SweepConfig) -> list[ConfigIssue]:
    """Check every trial as a whole, and name the first trial of each issue."""
    assert config.num_trials is not None
    first_trials: dict[ConfigIssue, str] = {}  # where each issue occurs first
    tree = drawn_tree(config)
    drawn = settings(
        tree, search=config.search, num_trials=config.num_trials, seed=config.seed, points=config.point_values
    )
    for number, values in enumerate(drawn):
        where = f"trial t{number:03d}: {', '.join(f'{field} = {show(value)}' for field, value in values.items())}"
        for issue in find_issues(TrialConfig, substitute(tree, values)):
            first_trials.setdefault(issue, where)
    return [ConfigIssue(issue.path, f"{issue.text} ({where})") for issue, where in first_trials.items()]


def _loss_notes(losses: Sequence[LossConfig]) -> list[str]:
    """Describe settings of losses that do little or harm here."""
    remarks = []
    scale = max((loss.scale for loss in losses if isinstance(loss, LDAM)), default=0)
    if scale > LARGEST_PLAIN_SCALE:
        remarks.append(
            f"ldam's scale is {scale:g}, which goes with a normalized head, whose logits are cosines; the heads here "
            "are plain, and want about 1"
        )
    betas = [beta for loss in losses if 0 < (beta := getattr(loss, "beta", 0)) < SMALLEST_TELLING_BETA]
    if betas:
        remarks.append(
            f"beta {min(betas):g} tells classes apart up to about {1 / (1 - min(betas)):.0f} rows; larger ones all "
            "weigh the same"
        )
    return remarks


def notes(
    config: SweepConfig, distributions: Mapping[str, Distribution], trial_configs: Sequence[TrialConfig]
) -> list[str]:
    """Describe what is allowed, but may not be intended."""
    remarks = []
    if any(trial_config.data.resplit is not None for trial_config in trial_configs):
        remarks.append(
            "data.resplit changes which examples are validation: where trials are trained on them too, no validation "
            "score says how good a model is; selection.refit trains on them after the choice"
        )
    if not distributions:
        remarks.append("no field is swept: there is one trial")
    if config.search == "grid" and (lists := _lists_of_method(config)):
        remarks.append(lists)
    for asha, stage, path in _ashas(config):
        epochs = max(getattr(trial_config, stage).epochs for trial_config in trial_configs)
        if asha.grace_fraction is None and epochs < asha.grace_epochs:
            remarks.append(
                f"{'.'.join(path)} prunes nothing: its first rung comes after epoch {shown_epochs(asha.grace_epochs)} "
                f"of {stage.replace('_', ' ')}, which has {epochs}"
            )
    for stage in STAGES:
        swept = [field for field in distributions if field.startswith(f"{stage}.") and field != f"{stage}.epochs"]
        if swept and all(getattr(trial_config, stage).epochs == 0 for trial_config in trial_configs):
            remarks.append(f"sweeping {', '.join(swept)} changes nothing: {stage}.epochs is 0")
        stages = [getattr(trial_config, stage) for trial_config in trial_configs]
        if f"{stage}.epochs" in distributions and all(described.steps is not None for described in stages):
            remarks.append(f"sweeping {stage}.epochs changes the number of evaluations alone: {stage}.steps is given")
        evaluations = max(described.epochs * described.evaluations_per_epoch for described in stages)
        patience = min((described.patience for described in stages if described.patience is not None), default=0)
        if patience >= evaluations > 0:
            remarks.append(
                f"{stage}.patience changes nothing: it is {patience}, and {stage.replace('_', ' ')} is evaluated "
                f"{evaluations} times"
            )
        no_encoder = all(described.trainable in ("head", "pooler") for described in stages)
        if no_encoder and any(described.layer_decay < 1 for described in stages):
            remarks.append(f"{stage}.layer_decay changes nothing: no encoder layer trains in {stage.replace('_', ' ')}")
        losses = [described.loss for described in stages if described.epochs > 0]
        remarks += [f"{stage}.loss: {text}" for text in _loss_notes(losses)]
    if trial_configs[0].data.augmentation is not None and not any(
        trial_config.needs_augmented_rows for trial_config in trial_configs
    ):
        remarks.append("data.augmentation has no effect: no stage has sampling: augmented")
    assert config.num_trials is not None
    if two_phase(config, config.num_trials) is None and config.resources.stage_one != StageResources():
        remarks.append(
            "resources.stage_one has no effect where each trial does both stages; they run on the workers of "
            "resources.stage_two"
        )
    resources = config.resources.stage_two
    if resources.workers > 1 and 0 < resources.gpus_per_worker < 1:
        remarks.append(
            f"{resources.workers} workers with {resources.gpus_per_worker} of a GPU each may share one: they talk over "
            "gloo, as NCCL needs a GPU per worker"
        )
    return remarks
