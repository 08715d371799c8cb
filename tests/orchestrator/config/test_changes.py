"""What may change about a sweep that has begun."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tailsweep.orchestrator.config.changes import change_sweep, leaves, settings_of_results
from tailsweep.orchestrator.config.sweep import Sweep, SweepConfigError, load_sweep, override_sweep, to_yaml
from tailsweep.orchestrator.config.yaml_io import parse_yaml

TEXT = """
name: one
num_trials: 3
max_wallclock_seconds: 60
data: {train: rows.csv}
stage_one: {learning_rate: {loguniform: [1e-5, 1e-2]}, trainable: {choice: [head, {top_layers: 1}]}, epochs: 3}
"""


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Sweep]:
    path = tmp_path / "one.yaml"
    path.write_text(TEXT)
    return lambda *overrides: load_sweep(path, overrides)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.train=other.csv", 'data.train: "rows.csv" -> "other.csv": results depend on it'),
        ("stage_one.epochs=5", "stage_one.epochs: 3 -> 5: results depend on it"),
        ("stage_one.trainable=head", 'stage_one.trainable: {"choice": ["head", {"top_layers": 1}]} -> "head": results'),
        ("stage_one.learning_rate={loguniform: [1e-5, 1e-3]}", "stage_one.learning_rate: "),
        ("stage_two.loss={name: focal}", "stage_two.loss.name: "),
        ("model.trust_remote_code=true", "model.trust_remote_code: false -> true"),
        ("model.name=other", "model.name: "),
        ("seed=1", "seed: 0 -> 1"),
        ("method=vanilla", 'method: "two_stage" -> "vanilla"'),
        ("metric=validation/accuracy", "metric: "),
        ("asha=null", "asha: "),
        ("promote=2", 'promote: "all" -> 2'),
        ("features.dtype=bf16", 'features.dtype: "fp32" -> "bf16"'),
        ("postprocess.temperature=true", "postprocess."),
        ("num_trials=2", "num_trials: 3 -> 2: a run that has begun can have more trials, but not fewer"),
    ],
)
def test_what_results_depend_on_is_refused_with_field_old_and_new(
    load: Callable[..., Sweep], override: str, message: str
) -> None:
    with pytest.raises(SweepConfigError) as raised:
        change_sweep(load(), load(override), "runs/one")
    assert message in str(raised.value)
    assert raised.value.source == "runs/one"


def test_every_refused_setting_is_named_at_once(load: Callable[..., Sweep]) -> None:
    with pytest.raises(SweepConfigError) as raised:
        change_sweep(load(), load("seed=1", "stage_one.epochs=5", "retries=9"), "runs/one")
    assert [issue.split(":")[0] for issue in raised.value.issues] == ["seed", "stage_one.epochs"]


@pytest.mark.parametrize(
    "override",
    [
        "max_concurrent=2",
        "retries=0",
        "max_consecutive_failures=9",
        "wandb.mode=disabled",
        "selection={prefer: simplicity}",
        "wandb.tags=[a]",
        "resources.stage_two.workers=2",
        "features.dir=/tmp/elsewhere",
    ],
)
def test_where_and_how_trials_run_is_adopted(load: Callable[..., Sweep], override: str) -> None:
    changed = change_sweep(load(), load(override), "runs/one")
    assert changed.sweep.config == load(override).config
    assert [change.field for change in changed.changes] == [override.partition("=")[0]]
    assert not changed.has_more_seconds


def test_more_trials_and_more_seconds_extend_the_sweep(load: Callable[..., Sweep]) -> None:
    changed = change_sweep(load(), load("num_trials=50", "max_wallclock_seconds=90"), "runs/one")
    assert (changed.sweep.num_trials, changed.sweep.config.num_trials) == (50, 50)
    assert changed.has_more_seconds
    assert change_sweep(load(), load("max_wallclock_seconds=null"), "runs/one").has_more_seconds
    assert not change_sweep(load(), load("max_wallclock_seconds=30"), "runs/one").has_more_seconds
    assert load().trials() == load("num_trials=50").trials()[:3]


def test_the_place_of_the_run_is_no_setting(load: Callable[..., Sweep]) -> None:
    changed = change_sweep(load(), load("name=two", "storage=/elsewhere"), "runs/one")
    assert (changed.changes, changed.sweep.name, changed.sweep.config) == ((), "one", load().config)


def test_a_resolved_sweep_takes_overrides_as_its_file_does(load: Callable[..., Sweep]) -> None:
    sweep = load()
    assert override_sweep(sweep, [], "x") is sweep
    assert override_sweep(sweep, ["retries=9"], "x").config == load("retries=9").config
    with pytest.raises(SweepConfigError, match=r"stage_one\.epoch: unknown field"):
        override_sweep(sweep, ["stage_one.epoch=2"], "x")


def test_settings_of_results_are_those_that_are_neither_adopted_nor_extended(load: Callable[..., Sweep]) -> None:
    settings = settings_of_results(load())
    assert settings == settings_of_results(load("num_trials=9", "retries=1", "wandb.mode=online", "name=two"))
    assert settings != settings_of_results(load("stage_one.epochs=5"))
    assert settings["stage_one.learning_rate"] == {"loguniform": [1e-5, 1e-2]}
    assert set(settings) < set(dict(leaves(parse_yaml(to_yaml(load())))))
