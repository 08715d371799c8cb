"""What may be swept, and which trials come of it."""

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tailsweep.orchestrator.config.distributions import (
    Distribution,
    distribution_issues,
    find_distributions,
    num_different,
)
from tailsweep.orchestrator.config.search_space import Trial, expand_promoted, probe_issues, settings, trials
from tailsweep.orchestrator.config.sweep import load_sweep

LEARNING_RATE = {"loguniform": [1e-5, 1e-2]}


def tree(**stage_one: Any) -> dict[str, Any]:
    return {"data": {"train": "rows.csv"}, "model": {}, "stage_one": stage_one, "stage_two": {}}


def issues(sections: dict[str, Any], search: Any = "random") -> list[str]:
    misplaced = distribution_issues(sections, search)
    return [str(issue) for issue in misplaced or probe_issues(sections)[0]]


def drawn(sections: dict[str, Any], num_trials: int, seed: int = 0) -> list[Trial]:
    return trials(sections, search="random", num_trials=num_trials, seed=seed)


def test_distributions_are_found_by_their_dotted_field_in_the_order_written() -> None:
    loss = {"name": "ldam", "max_margin": {"uniform": [0.1, 1]}}
    assert find_distributions(
        tree(loss=loss, epochs={"randint": [1, 5]}) | {"model": {"head": {"choice": ["native"]}}}
    ) == {
        "model.head": Distribution("choice", ("native",)),
        "stage_one.loss.max_margin": Distribution("uniform", (0.1, 1)),
        "stage_one.epochs": Distribution("randint", (1, 5)),
    }


def test_every_draw_lies_within_its_distribution() -> None:
    losses = [{"name": "ldam", "scale": 30.0}, {"name": "cross_entropy"}]
    space = tree(
        learning_rate=LEARNING_RATE,
        weight_decay={"uniform": [0, 0.1]},
        epochs={"randint": [1, 4]},
        loss={"choice": losses},
    )
    drawn_trials = drawn(space, 60)
    values = {field: [trial.values[field] for trial in drawn_trials] for field in drawn_trials[0].values}
    assert all(1e-5 <= value <= 1e-2 for value in values["stage_one.learning_rate"])
    assert all(0 <= value <= 0.1 for value in values["stage_one.weight_decay"])
    assert set(values["stage_one.epochs"]) == {1, 2, 3}  # the upper bound is left out
    assert all(loss in losses for loss in values["stage_one.loss"])
    assert {loss["name"] for loss in values["stage_one.loss"]} == {"ldam", "cross_entropy"}
    # loguniform: a third of the draws to each factor of ten; binomial(60, 1/3) is within 8..32 but for trial in 10^4
    decades = np.histogram(np.log10(values["stage_one.learning_rate"]), bins=[-5, -4, -3, -2])[0]
    assert all(8 <= count <= 32 for count in decades)


def test_a_trial_is_the_trial_with_its_values_and_the_sweeps_seed() -> None:
    (trial,) = drawn(tree(learning_rate=LEARNING_RATE), 1, seed=7)
    assert (trial.number, trial.name) == (0, "t000")
    assert trial.config.stage_one.learning_rate == trial.values["stage_one.learning_rate"]
    assert trial.config.seed == 7


def test_a_longer_sweep_extends_a_shorter_one_of_the_same_seed() -> None:
    space = tree(learning_rate=LEARNING_RATE, batch_size={"choice": [8, 16]})
    assert drawn(space, 9)[:4] == drawn(space, 4)
    assert drawn(space, 4, seed=1) != drawn(space, 4)


def test_sweeping_one_more_field_or_another_order_leaves_the_others_draws() -> None:
    alone = [trial.values["stage_one.learning_rate"] for trial in drawn(tree(learning_rate=LEARNING_RATE), 5)]
    more = drawn(tree(warmup_fraction={"uniform": [0, 0.5]}, learning_rate=LEARNING_RATE), 5)
    assert [trial.values["stage_one.learning_rate"] for trial in more] == alone


def test_a_small_space_is_drawn_without_repeating_a_trial() -> None:
    space = tree(trainable={"choice": ["head", "all", {"top_layers": 1}]}, batch_size={"choice": [8, 16]})
    assert num_different(find_distributions(space)) == 6
    drawn_trials = drawn(space, 6)
    assert (
        len({(str(trial.config.stage_one.trainable), trial.config.stage_one.batch_size) for trial in drawn_trials}) == 6
    )


def test_a_grid_is_the_product_with_the_last_field_varying_fastest() -> None:
    space = tree(epochs={"grid": [1, 2]}, trainable={"choice": ["head", "all"]}) | {
        "stage_two": {"epochs": {"grid": [1, 3]}}
    }
    points = [tuple(values.values()) for values in settings(space, search="grid", num_trials=8, seed=0)]
    assert points == list(itertools.product([1, 2], ["head", "all"], [1, 3]))


def family(sections: dict[str, Any], parent: Trial, num_settings: int, search: Any = "random") -> list[Trial]:
    return expand_promoted(sections, parent.name, parent.values, search=search, num_settings=num_settings, seed=7)


def test_a_promoted_trial_resumes_its_own_settings_of_stage_two_and_with_others() -> None:
    sections = tree(learning_rate=LEARNING_RATE) | {"stage_two": {"learning_rate": LEARNING_RATE, "epochs": 2}}
    first, second = drawn(sections, 2, seed=7)
    drawn_trials = family(sections, second, 3)
    assert [trial.name for trial in drawn_trials] == ["t001.1", "t001.2", "t001.3"]
    assert drawn_trials[0].values == second.values
    assert drawn_trials[0].config == second.config
    assert {trial.values["stage_one.learning_rate"] for trial in drawn_trials} == {
        second.values["stage_one.learning_rate"]
    }
    assert {trial.config.stage_one for trial in drawn_trials} == {second.config.stage_one}
    assert len({trial.config.stage_two.learning_rate for trial in drawn_trials}) == 3
    assert family(sections, second, 3) == drawn_trials
    assert family(sections, second, 2) == drawn_trials[:2]
    others = {trial.config.stage_two.learning_rate for trial in family(sections, first, 3)}
    assert others.isdisjoint(trial.config.stage_two.learning_rate for trial in drawn_trials)


def test_few_settings_of_stage_two_are_each_tried_once() -> None:
    sections = tree(learning_rate=LEARNING_RATE) | {"stage_two": {"epochs": {"choice": [1, 2, 3]}}}
    (parent,) = drawn(sections, 1)
    drawn_trials = family(sections, parent, 3)
    assert drawn_trials[0].config.stage_two.epochs == parent.config.stage_two.epochs
    assert sorted(trial.config.stage_two.epochs for trial in drawn_trials) == [1, 2, 3]


def test_a_grid_of_stage_two_is_gone_through_in_its_order() -> None:
    sections = tree(learning_rate=1e-3, epochs={"grid": [1, 2]}) | {"stage_two": {"epochs": {"grid": [3, 1, 2]}}}
    parent = Trial(1, "t001", {"stage_one.epochs": 2}, drawn(tree(epochs=2), 1)[0].config)
    drawn_trials = family(sections, parent, 3, "grid")
    assert [trial.values for trial in drawn_trials] == [
        {"stage_one.epochs": 2, "stage_two.epochs": n} for n in (3, 1, 2)
    ]


def test_settings_of_stage_two_that_make_no_trial_are_left_out() -> None:
    sections = tree() | {"stage_two": {"batch_size": {"choice": [4, 16]}, "gradient_accumulation": 8}}
    parent = Trial(0, "t000", {"stage_two.batch_size": 16}, drawn(tree(), 1)[0].config)
    assert [trial.values for trial in family(sections, parent, 2)] == [{"stage_two.batch_size": 16}]


def test_changing_a_trials_values_does_not_reach_the_space() -> None:
    space = tree(trainable={"choice": [{"top_layers": 1}]})
    assert drawn(space, 1)[0].config.stage_one.model_dump()["trainable"] == {"top_layers": 1}
    assert space == tree(trainable={"choice": [{"top_layers": 1}]})


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ({"seed": {"choice": [0, 1]}}, "seed: cannot be swept: trials differ in settings, not in luck"),
        ({"method": {"choice": ["vanilla"]}}, "method: cannot be swept: a method fills both stages"),
        (
            {"data": {"train": {"choice": ["a", "b"]}}},
            "data.train: cannot be swept: a sweep compares its trials on the",
        ),
        ({"data": {"imbalance": {"kind": "step", "ratio": {"uniform": [0.1, 1]}}}}, "data.imbalance.ratio: cannot be"),
        (
            {"asha": {"grace_epochs": {"randint": [1, 3]}}},
            "asha.grace_epochs: cannot be swept: all trials share it",
        ),
        ({"resources": {"choice": [1]}}, "resources: cannot be swept: all trials share it"),
        (
            {"stage_one": {"choice": [{"epochs": 1}]}},
            "stage_one: cannot be swept as a whole: sweep the fields of stage_one",
        ),
    ],
)
def test_a_distribution_where_none_may_stand_says_why(place: dict[str, Any], reason: str) -> None:
    (issue,) = distribution_issues(place, "random")
    assert str(issue).startswith(reason)


def test_the_length_of_rows_is_the_one_field_of_data_that_may_be_swept() -> None:
    assert issues({"data": {"train": "x", "max_length": {"choice": [64, 128]}}, "stage_one": {}, "stage_two": {}}) == []


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"loguniform": [0, 1e-2]}, "the lower bound of loguniform is 0, but must be a number > 0"),
        ({"uniform": [1e-2, 1e-5]}, "uniform is [0.01, 1e-05], but low must be below high"),
        ({"uniform": [1e-5, 1e-5]}, "low must be below high"),
        ({"uniform": [1e-5]}, "must be two numbers, [low, high]"),
        ({"uniform": ["a", True]}, "must be two numbers, [low, high]"),
        ({"uniform": 3}, "uniform is 3, but must be two numbers"),
        ({"uniform": [-1e308, 1e308]}, "too wide"),
        ({"randint": [1, 2.5]}, "its bounds must be whole numbers"),
        ({"randint": [2, 2]}, "low must be below high (which is left out)"),
        ({"choice": []}, "must be a list of at least one value"),
        ({"choice": 1e-4}, "must be a list of at least one value"),
        ({"choice": [{"uniform": [1, 2]}]}, "choice holds another distribution"),
        ({"choice": [1], "grid": [2]}, "a distribution is a mapping with one key, but this has choice, grid"),
        ({"logunifrom": [1e-5, 1e-2]}, 'there is no distribution "logunifrom"; did you mean "loguniform"?'),
        ({"grid": [1e-5]}, "grid goes with search: grid; say {choice: [...]} here"),
        ({"uniform": [0, 1e-3]}, "is 0.0, but must be a number > 0 (the lower bound of uniform)"),
        ({"choice": [1e-4, "a"]}, 'is "a", but must be a number > 0 (value 2 of choice)'),
    ],
)
def test_an_invalid_distribution_is_reported_with_its_field(written: dict[str, Any], message: str) -> None:
    (issue,) = issues(tree(learning_rate=written))
    assert issue.startswith("stage_one.learning_rate: ")
    assert message in issue


def test_fractions_for_a_whole_number_name_randint() -> None:
    (issue,) = issues(tree(epochs={"uniform": [1, 3]}))
    assert issue == (
        "stage_one.epochs: uniform draws fractions, but this must be a whole number: say {randint: [low, high]}, high "
        "left out"
    )


def test_a_grid_refuses_intervals() -> None:
    (issue,) = issues(tree(learning_rate=LEARNING_RATE), search="grid")
    assert "search: grid goes through lists, but loguniform is none; say {grid: [...]} here" in issue


def test_every_value_of_a_choice_is_checked_and_an_error_inside_a_value_has_its_own_field() -> None:
    choice = [{"name": "ldam"}, {"name": "ldm"}, {"name": "ldam", "scal": 2.0}]
    name, field = issues(tree(loss={"choice": choice}))
    assert name.startswith(
        'stage_one.loss.name: is "ldm", but must be one of cross_entropy, weighted_cross_entropy, ldam'
    )
    assert name.endswith('did you mean "ldam"? (value 2 of choice)')
    assert field == 'stage_one.loss.scal: unknown field; did you mean "scale"? (value 3 of choice)'


def test_a_value_that_breaks_another_field_is_named_with_it() -> None:
    loss = {"name": {"choice": ["ldam", "cross_entropy"]}, "max_margin": 0.5}
    (issue,) = issues(tree(loss=loss))
    assert issue.startswith("stage_one.loss.max_margin: unknown field")
    assert issue.endswith('(with stage_one.loss.name = "cross_entropy", value 2 of choice)')


def test_errors_are_reported_without_importing_ray() -> None:
    program = (
        "import sys; from tailsweep.orchestrator.config.search_space import probe_issues as p;"
        "assert p({'stage_one': {'learning_rate': {'uniform': [0, 1]}}})[0]; assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("kind", "bounds"),
    [
        ("uniform", (0, 0.5)),
        ("uniform", (-3, 7)),
        ("loguniform", (1e-5, 1e-2)),
        ("loguniform", (1, 64)),
        ("randint", (1, 9)),
        ("randint", (-4, 1_000_000)),
    ],
)
def test_draws_equal_those_of_ray_tune_to_the_bit(kind: str, bounds: tuple[float, float]) -> None:
    from ray import tune

    ours = [Distribution(kind, bounds).draw(np.random.default_rng([seed, 1])) for seed in range(1000)]
    domain = getattr(tune, kind)(*bounds)
    assert ours == [domain.sample(random_state=np.random.default_rng([seed, 1])) for seed in range(1000)]


def test_places_in_a_list_equal_those_of_ray_tune() -> None:
    from ray import tune

    ours = [Distribution("choice", tuple("abcde")).draw(np.random.default_rng(seed)) for seed in range(1000)]
    domain = tune.randint(0, 5)
    assert ours == ["abcde"[domain.sample(random_state=np.random.default_rng(seed))] for seed in range(1000)]


@pytest.mark.parametrize(
    ("kind", "values", "drawn"),
    [
        ("uniform", (0, 0.5), 0.31848084366072715),
        ("loguniform", (1e-5, 1e-2), 0.0008144886973076103),
        ("randint", (1, 9), 7),
        ("choice", tuple("abcde"), "e"),
    ],
)
def test_a_seed_gives_a_fixed_draw(kind: str, values: tuple[Any, ...], drawn: object) -> None:
    assert Distribution(kind, values).draw(np.random.default_rng(0)) == drawn


def test_a_renamed_field_is_drawn_as_under_its_first_name(tmp_path: Path) -> None:
    """These are the draws of seed 0 from before `trainable`, `warmup_fraction` and `sampling` had these names."""
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "{method: lp_ft, num_trials: 4, data: {train: rows.csv}, stage_one: {learning_rate: 1.0e-3, epochs: 1, "
        "trainable: {choice: [head, {top_layers: 1}]}, warmup_fraction: {uniform: [0.0, 0.5]}, "
        "sampling: {choice: [original, class_balanced, sqrt]}}, stage_two: {learning_rate: 1.0e-3, batch_size: 8}}"
    )
    drawn = [
        [trial.values[f"stage_one.{name}"] for name in ("trainable", "warmup_fraction", "sampling")]
        for trial in load_sweep(path).trials()
    ]
    assert drawn == [
        ["head", 0.1814179320181522, "class_balanced"],
        ["head", 0.22356955900000886, "original"],
        [{"top_layers": 1}, 0.2649840205047216, "class_balanced"],
        [{"top_layers": 1}, 0.33140894105462, "sqrt"],
    ]
