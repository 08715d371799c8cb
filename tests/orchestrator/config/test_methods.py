"""``method`` as a dimension: several methods in one sweep."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tailsweep.orchestrator.config.methods import AUTO
from tailsweep.orchestrator.config.search_space import Trial
from tailsweep.orchestrator.config.sweep import Sweep, SweepConfigError, load_sweep, sweep_of, to_yaml
from tailsweep.orchestrator.runs.directory import RunDirectory
from tailsweep.orchestrator.runs.grants import grants_of

Load = Callable[..., Sweep]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """``load(*overrides, **fields)``: the sweep of a file with these fields."""

    def write(*overrides: str, **fields: Any) -> Sweep:
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump({"name": "several", "data": {"train": "rows.csv"}, **fields}, sort_keys=False))
        return load_sweep(path, overrides)

    return write


def refused(load: Load, *overrides: str, **fields: Any) -> list[str]:
    with pytest.raises(SweepConfigError) as caught:
        load(*overrides, **fields)
    return caught.value.issues


def without_method(trial: Trial) -> dict[str, object]:
    return {field: value for field, value in trial.values.items() if field != "method"}


def test_auto_is_plain_reweighted_and_two_stage_fine_tuning(load: Load) -> None:
    sweep = load(method="auto")
    assert tuple(sweep.methods) == AUTO == ("vanilla", "reweighting", "two_stage")
    assert sweep.num_trials == 12
    assert [trial.values["method"] for trial in sweep.trials()] == list(AUTO) * 4


@pytest.mark.parametrize("num_trials", [2, 5, 8])
def test_a_methods_trials_are_those_of_its_own_sweep(load: Load, num_trials: int) -> None:
    names = ["two_stage", "vanilla"]
    sweep = load(method=names, num_trials=num_trials)
    assert [trial.name for trial in sweep.trials()] == [f"t{number:03d}" for number in range(num_trials)]
    for place, name in enumerate(names):
        own = [trial for trial in sweep.trials() if trial.values["method"] == name]
        alone = load(method=name, num_trials=len(range(place, num_trials, 2)))
        assert [without_method(trial) for trial in own] == [dict(trial.values) for trial in alone.trials()]
        assert [trial.config for trial in own] == [trial.config for trial in alone.trials()]


def test_a_longer_sweep_begins_with_the_trials_of_a_shorter_one(load: Load) -> None:
    methods = {"vanilla": {}, "reweighting": {}}
    shorter, longer = load(method=methods, num_trials=4), load(method=methods, num_trials=9)
    assert longer.trials()[:4] == shorter.trials()


def test_a_promoted_trial_tries_the_settings_that_it_would_alone(load: Load) -> None:
    sweep, alone = load(method=["vanilla", "two_stage"], num_trials=16), load(method="two_stage", num_trials=8)
    third_alone = alone.trials()[2]
    third = sweep.trials()[5]
    assert without_method(third) == dict(third_alone.values)
    children = sweep.expand_promoted(third.name, third.values)
    expected = alone.expand_promoted(third_alone.name, third_alone.values)
    assert [child.name for child in children] == [f"t005.{place}" for place in range(1, 1 + len(expected))]
    assert len(expected) > 1
    assert [child.config for child in children] == [child.config for child in expected]
    assert {child.values["method"] for child in children} == {"two_stage"}


def test_every_method_has_as_many_settings_of_stage_two(load: Load) -> None:
    sweep = load(method="auto", num_trials=24)
    assert sweep.two_phase is not None
    in_phase_two = {
        name: own.num_trials if own.two_phase is None else own.two_phase.num_trials
        for name, own in sweep.methods.items()
    }
    assert in_phase_two == dict.fromkeys(AUTO, 8)
    assert sweep.num_in_phase_two == 24


def test_methods_without_a_stage_one_are_in_one_phase(load: Load) -> None:
    assert load(method=["vanilla", "oversampling"]).two_phase is None
    promoting = load(method="auto", num_trials=12, promote=2, stage_two_search={"settings": 3})
    assert promoting.two_phase is not None
    assert (promoting.two_phase.promoted, promoting.two_phase.settings) == (2, 3)
    assert promoting.notes == []


def test_a_swept_field_of_stage_one_draws_no_trial_twice_for_methods_without_one(load: Load) -> None:
    rates = {"choice": [1e-4, 1e-3]}
    sweep = load(
        method=["vanilla", "two_stage"],
        num_trials=4,
        stage_one={"learning_rate": rates, "epochs": 1},
        stage_two={"learning_rate": rates, "epochs": 1, "batch_size": 8},
    )
    drawn = [trial.values for trial in sweep.trials() if trial.values["method"] == "vanilla"]
    assert sorted(values["stage_two.learning_rate"] for values in drawn) == [1e-4, 1e-3]
    assert all("stage_one.learning_rate" not in values for values in drawn)


def test_shared_settings_are_those_of_all_methods_and_those_below_a_method_its_own(load: Load) -> None:
    sweep = load(
        method={"vanilla": {"stage_two": {"epochs": 5}}, "two_stage": None},
        stage_two={"batch_size": 4, "epochs": 3},
    )
    stages = {trial.values["method"]: trial.config.stage_two for trial in sweep.trials()}
    assert (stages["vanilla"].epochs, stages["two_stage"].epochs) == (5, 3)
    assert {stage.batch_size for stage in stages.values()} == {4}


@pytest.mark.parametrize(
    "method", ["auto", ["two_stage_augmented", "vanilla"], {"lp_ft": {"promote": 1}, "vanilla": {}}]
)
def test_a_resolved_file_is_read_back_as_the_same_sweep(load: Load, method: object, tmp_path: Path) -> None:
    sweep = load(method=method, num_trials=9)
    text = to_yaml(sweep)
    again = sweep_of(yaml.safe_load(text), "again")
    assert again.config == sweep.config
    assert to_yaml(again) == text
    assert again.trials() == sweep.trials()
    assert {name: own.config for name, own in again.methods.items()} == {
        name: own.config for name, own in sweep.methods.items()
    }
    assert {name: own.two_phase for name, own in again.methods.items()} == {
        name: own.two_phase for name, own in sweep.methods.items()
    }


def test_one_method_in_a_list_is_that_method(load: Load) -> None:
    sweep = load(method=["vanilla"])
    assert sweep.config == load(method="vanilla").config
    assert sweep.methods == {}


@pytest.mark.parametrize(
    ("fields", "issue"),
    [
        ({"method": ["vanila", "two_stage"]}, 'method: is "vanila", but must be a method; did you mean "vanilla"?'),
        ({"method": []}, "method: is empty, but must name a method, several, or auto"),
        ({"method": 3}, "method: is 3, but must be"),
        ({"method": ["vanilla", "vanilla"]}, "method: names vanilla twice: give each method once"),
        ({"method": {"vanilla": 3, "two_stage": {}}}, "method.vanilla: is 3, but must be a mapping"),
        ({"method": {"vanilla": {"promote": "x"}, "two_stage": {}}}, 'method.vanilla: promote: is "x", but must be'),
        ({"method": ["vanilla", 3]}, 'method: is "3", but must be a method'),
        ({"method": "auto", "num_trials": 2}, "num_trials: is 2, but must be at least 3, one for each method"),
        ({"method": "auto", "num_trials": "many"}, 'num_trials: is "many", but must be'),
        ({"method": "auto", "search": "optuna"}, 'search: is "optuna", but must be random with several methods'),
        ({"method": "auto", "search": "grid"}, 'search: is "grid", but must be random with several methods'),
        ({"method": "auto", "initial_points": [{"stage_two": {"epochs": 2}}]}, "initial_points: go with one method"),
        ({"method": {"vanilla": {"seed": 1}, "two_stage": {}}}, "method.vanilla.seed: is no setting of a method"),
        (
            {"method": {"vanilla": {"data": {"train": "other.csv"}}, "two_stage": {}}},
            "method.vanilla.data.train: all methods share their examples: write it under data",
        ),
        (
            {"method": {"vanilla": {"stage_two": {"epoch": 1}}, "two_stage": {}}},
            "method.vanilla: stage_two.epoch: unknown",
        ),
        ({"method": "auto", "stage_two": {"epoch": 1}}, "stage_two.epoch: unknown field"),
    ],
)
def test_bad_input_is_one_message_with_its_fix(load: Load, fields: dict[str, Any], issue: str) -> None:
    issues = refused(load, **fields)
    assert [line for line in issues if line.startswith(issue)], issues
    assert len(issues) == 1, "what is wrong for all methods is said once"


def test_a_setting_of_one_method_can_be_set_on_the_command_line(load: Load) -> None:
    sweep = load("method.vanilla.stage_two.epochs=5", method={"vanilla": {}, "two_stage": {}})
    epochs = {trial.values["method"]: trial.config.stage_two.epochs for trial in sweep.trials()[:2]}
    assert epochs["vanilla"] == 5
    assert load("method=auto").methods.keys() == set(AUTO)


def test_a_method_grants_no_more_than_a_sweep(load: Load, tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path / "run"))
    own = {"vanilla": {"model": {"name": "x", "trust_remote_code": True}}, "two_stage": {}}
    granted = [grant.field for grant in grants_of(load(method=own).config.model_dump(), run)]
    assert "method.vanilla.model.trust_remote_code" in granted
