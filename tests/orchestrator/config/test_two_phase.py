"""Which sweeps are two-phase when the file does not say, and how their trials are shared out."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from tailsweep.orchestrator.config.changes import change_sweep
from tailsweep.orchestrator.config.distributions import find_distributions
from tailsweep.orchestrator.config.sweep import (
    Sweep,
    SweepConfigError,
    load_sweep,
    override_sweep,
    sweep_of,
    to_yaml,
)
from tailsweep.orchestrator.config.two_phase import TwoPhase, drawn_tree
from tailsweep.orchestrator.config.yaml_io import parse_yaml
from tailsweep.trainables.config.presets import METHODS

TWO_STAGES = [name for name, preset in METHODS.items() if "/" not in name and preset["stage_one"] != {"epochs": 0}]
ONE_STAGE = [name for name, preset in METHODS.items() if preset["stage_one"] == {"epochs": 0}]


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Sweep]:
    def load(fields: str) -> Sweep:
        path = tmp_path / "sweep.yaml"
        path.write_text(f"{{data: {{train: rows.csv}}, {fields}}}")
        return load_sweep(path)

    return load


@pytest.mark.parametrize("method", TWO_STAGES)
def test_a_method_with_two_stages_is_two_phase(load: Callable[..., Sweep], method: str) -> None:
    assert load(f"method: {method}").two_phase == TwoPhase(promoted=2, settings=4)
    assert load(f"method: {method}, promote: all").two_phase is None


@pytest.mark.parametrize(
    "fields",
    [
        *(f"method: {name}" for name in ONE_STAGE),
        "method: two_stage/paper",  # one trial
        "max_wallclock_seconds: 60",
        "search: grid, method: lp_ft",
        "resources: {stage_one: {workers: 2}}",
        "stage_one: {epochs: {choice: [0, 1]}}",
        "stage_two: {epochs: {randint: [0, 2]}}",
        "num_trials: 100",  # of so many settings there are fewer in stage one
        "stage_one: {learning_rate: 0.001, epochs: 1}",  # stage two alone is swept
    ],
)
def test_what_has_nothing_to_promote_by_does_both_stages(load: Callable[..., Sweep], fields: str) -> None:
    assert load(fields).two_phase is None


@pytest.mark.parametrize("num_trials", [2, 3, 4, 5, 6, 7, 8, 11, 16, 30, 97, 1000])
def test_phase_two_has_about_as_many_trials_as_phase_one(load: Callable[..., Sweep], num_trials: int) -> None:
    """So that a method with two stages tries as many settings of stage two as one without."""
    rate = "stage_one: {learning_rate: {loguniform: [0.001, 0.1]}}, stage_two: {learning_rate: {uniform: [0.001, 0.1]}}"
    two_phase = load(f"num_trials: {num_trials}, {rate}").two_phase
    assert two_phase is not None
    assert 1 <= two_phase.promoted <= max(1, num_trials / 3)
    assert abs(two_phase.num_trials - num_trials) <= max(1, num_trials / 8)


def test_no_more_settings_than_there_are(load: Callable[..., Sweep]) -> None:
    stage_one = "stage_one: {learning_rate: {loguniform: [1.0e-4, 1.0e-2]}}"
    stage_two = f"{stage_one}, stage_two: {{learning_rate: {{choice: [1.0e-4, 2.0e-4]}}, epochs: 2, batch_size: 16}}"
    assert load(f"{stage_two}, num_trials: 40").two_phase == TwoPhase(promoted=10, settings=2)
    fixed = f"{stage_one}, stage_two: {{learning_rate: 1.0e-4, epochs: 2, batch_size: 16}}"
    assert load(f"{fixed}, num_trials: 40").two_phase == TwoPhase(promoted=10, settings=1)
    assert load(f"{fixed}, num_trials: 40, promote: 3").two_phase == TwoPhase(promoted=3, settings=1)
    assert load(f"{stage_two}, promote: 3, stage_two_search: {{settings: 1}}").two_phase == TwoPhase(3, 1)


def test_a_promoted_trial_is_tried_with_several_settings_of_stage_two(load: Callable[..., Sweep]) -> None:
    sweep = load("num_trials: 8")
    parent = sweep.trials()[3]
    children = sweep.expand_promoted(parent.name, parent.values)
    assert [child.name for child in children] == ["t003.1", "t003.2", "t003.3", "t003.4"]
    assert {str(child.config.stage_one) for child in children} == {str(parent.config.stage_one)}
    assert max(Counter(str(child.config.stage_two) for child in children).values()) == 1
    assert len({str(trial.config.stage_one) for trial in sweep.trials()}) == 8, "each a setting of stage one"
    assert len({str(trial.config.stage_two) for trial in sweep.trials()}) == 1


def test_an_initial_point_says_which_settings_of_stage_two_come_first(load: Callable[..., Sweep]) -> None:
    sweep = load(
        "initial_points: [{stage_one: {learning_rate: 3.0e-4}, stage_two: {learning_rate: 2.0e-5, epochs: 2}}]"
    )
    parent, other = sweep.trials()[:2]
    assert parent.config.stage_one.learning_rate == 3e-4
    first, *others = sweep.expand_promoted(parent.name, parent.values)
    assert (first.config.stage_two.learning_rate, first.config.stage_two.epochs) == (2e-5, 2)
    assert {(child.config.stage_two.learning_rate, child.config.stage_two.epochs) for child in others} != {(2e-5, 2)}
    assert len(sweep.expand_promoted(other.name, other.values)) == 4


def test_tpe_draws_settings_of_stage_one(load: Callable[..., Sweep]) -> None:
    sweep = load("search: optuna, num_trials: 8")
    assert sweep.two_phase == TwoPhase(2, 4)
    assert all(field.startswith("stage_one.") for field in find_distributions(drawn_tree(sweep.config)))


@pytest.mark.parametrize(
    ("fields", "override", "change"),
    [
        ("num_trials: 8", "num_trials=16", 'promote: "auto" -> "all"'),  # stage one has 12 settings
        ("num_trials: 8", "max_wallclock_seconds=60", 'promote: "auto" -> "all"'),
        ("num_trials: 8", "num_trials=12", None),
        ("num_trials: 1", "num_trials=12", None),
        ("max_wallclock_seconds: 60, num_trials: 8", "max_wallclock_seconds=null", None),
    ],
)
def test_a_run_stays_in_its_mode_when_it_is_extended(
    load: Callable[..., Sweep], fields: str, override: str, change: str | None
) -> None:
    sweep = load(fields)
    recorded = sweep_of(parse_yaml(to_yaml(sweep)), "run")
    assert recorded == sweep
    wanted = override_sweep(recorded, [override], "run")
    if change is not None:
        with pytest.raises(SweepConfigError, match=change):
            change_sweep(recorded, wanted, "run")
    else:
        changed = change_sweep(recorded, wanted, "run").sweep
        assert (changed.two_phase is None) == (sweep.two_phase is None)


def test_more_trials_promote_more(load: Callable[..., Sweep]) -> None:
    """The numbers follow from num_trials, so that a sweep can be extended during its phase one."""
    assert [load(f"num_trials: {number}").two_phase for number in (8, 12)] == [TwoPhase(2, 4), TwoPhase(3, 4)]
