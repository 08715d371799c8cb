"""What may be swept, and which candidates come of it."""

import itertools
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from tailsweep.orchestrator.config.search_space import (
    Candidate,
    Distribution,
    candidates,
    distribution_mistakes,
    find_distributions,
    num_different,
    offspring,
    probe_mistakes,
    settings,
)

LEARNING_RATE = {"loguniform": [1e-5, 1e-2]}


def tree(**stage_one: Any) -> dict[str, Any]:
    return {"data": {"train": "rows.csv"}, "model": {}, "stage_one": stage_one, "stage_two": {}}


def mistakes(sections: dict[str, Any], search: Any = "random") -> list[str]:
    misplaced = distribution_mistakes(sections, search)
    return [str(mistake) for mistake in misplaced or probe_mistakes(sections)[0]]


def drawn(sections: dict[str, Any], num_candidates: int, seed: int = 0) -> list[Candidate]:
    return candidates(sections, search="random", num_candidates=num_candidates, seed=seed)


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
    found = drawn(space, 60)
    values = {field: [candidate.values[field] for candidate in found] for field in found[0].values}
    assert all(1e-5 <= value <= 1e-2 for value in values["stage_one.learning_rate"])
    assert all(0 <= value <= 0.1 for value in values["stage_one.weight_decay"])
    assert set(values["stage_one.epochs"]) == {1, 2, 3}  # the upper bound is left out
    assert all(loss in losses for loss in values["stage_one.loss"])
    assert {loss["name"] for loss in values["stage_one.loss"]} == {"ldam", "cross_entropy"}
    # loguniform: a third of the draws to each factor of ten; binomial(60, 1/3) is within 8..32 but for one in 10^4
    decades = np.histogram(np.log10(values["stage_one.learning_rate"]), bins=[-5, -4, -3, -2])[0]
    assert all(8 <= count <= 32 for count in decades)


def test_a_candidate_is_the_trial_with_its_values_and_the_sweeps_seed() -> None:
    (candidate,) = drawn(tree(learning_rate=LEARNING_RATE), 1, seed=7)
    assert (candidate.number, candidate.name) == (0, "c000")
    assert candidate.trial.stage_one.learning_rate == candidate.values["stage_one.learning_rate"]
    assert candidate.trial.seed == 7


def test_a_longer_sweep_extends_a_shorter_one_of_the_same_seed() -> None:
    space = tree(learning_rate=LEARNING_RATE, batch_size={"choice": [8, 16]})
    assert drawn(space, 9)[:4] == drawn(space, 4)
    assert drawn(space, 4, seed=1) != drawn(space, 4)


def test_sweeping_one_more_field_or_another_order_leaves_the_others_draws() -> None:
    alone = [candidate.values["stage_one.learning_rate"] for candidate in drawn(tree(learning_rate=LEARNING_RATE), 5)]
    more = drawn(tree(warmup={"uniform": [0, 0.5]}, learning_rate=LEARNING_RATE), 5)
    assert [candidate.values["stage_one.learning_rate"] for candidate in more] == alone


def test_a_small_space_is_drawn_without_repeating_a_candidate() -> None:
    space = tree(trains={"choice": ["head", "all", {"top_layers": 1}]}, batch_size={"choice": [8, 16]})
    assert num_different(find_distributions(space)) == 6
    found = drawn(space, 6)
    assert (
        len({(str(candidate.trial.stage_one.trains), candidate.trial.stage_one.batch_size) for candidate in found}) == 6
    )


def test_a_grid_is_the_product_with_the_last_field_varying_fastest() -> None:
    space = tree(epochs={"grid": [1, 2]}, trains={"choice": ["head", "all"]}) | {
        "stage_two": {"epochs": {"grid": [1, 3]}}
    }
    found = [tuple(values.values()) for values in settings(space, search="grid", num_candidates=8, seed=0)]
    assert found == list(itertools.product([1, 2], ["head", "all"], [1, 3]))


def family(sections: dict[str, Any], parent: Candidate, num_settings: int, search: Any = "random") -> list[Candidate]:
    return offspring(
        sections, parent.name, parent.number, parent.values, search=search, num_settings=num_settings, seed=7
    )


def test_a_promoted_candidate_goes_on_with_its_own_settings_of_stage_two_and_with_others() -> None:
    sections = tree(learning_rate=LEARNING_RATE) | {"stage_two": {"learning_rate": LEARNING_RATE, "epochs": 2}}
    first, second = drawn(sections, 2, seed=7)
    found = family(sections, second, 3)
    assert [one.name for one in found] == ["c001.1", "c001.2", "c001.3"]
    assert found[0].values == second.values
    assert found[0].trial == second.trial
    assert {one.values["stage_one.learning_rate"] for one in found} == {second.values["stage_one.learning_rate"]}
    assert {one.trial.stage_one for one in found} == {second.trial.stage_one}
    assert len({one.trial.stage_two.learning_rate for one in found}) == 3
    assert family(sections, second, 3) == found
    assert family(sections, second, 2) == found[:2]
    others = {one.trial.stage_two.learning_rate for one in family(sections, first, 3)}
    assert others.isdisjoint(one.trial.stage_two.learning_rate for one in found)


def test_few_settings_of_stage_two_are_each_tried_once() -> None:
    sections = tree(learning_rate=LEARNING_RATE) | {"stage_two": {"epochs": {"choice": [1, 2, 3]}}}
    (parent,) = drawn(sections, 1)
    found = family(sections, parent, 3)
    assert found[0].trial.stage_two.epochs == parent.trial.stage_two.epochs
    assert sorted(one.trial.stage_two.epochs for one in found) == [1, 2, 3]


def test_a_grid_of_stage_two_is_gone_through_in_its_order() -> None:
    sections = tree(learning_rate=1e-3, epochs={"grid": [1, 2]}) | {"stage_two": {"epochs": {"grid": [3, 1, 2]}}}
    parent = Candidate(1, "c001", {"stage_one.epochs": 2}, drawn(tree(epochs=2), 1)[0].trial)
    found = family(sections, parent, 3, "grid")
    assert [one.values for one in found] == [{"stage_one.epochs": 2, "stage_two.epochs": n} for n in (3, 1, 2)]


def test_settings_of_stage_two_that_make_no_trial_are_left_out() -> None:
    sections = tree() | {"stage_two": {"batch_size": {"choice": [4, 16]}, "gradient_accumulation": 8}}
    parent = Candidate(0, "c000", {"stage_two.batch_size": 16}, drawn(tree(), 1)[0].trial)
    assert [one.values for one in family(sections, parent, 2)] == [{"stage_two.batch_size": 16}]


def test_changing_a_candidates_values_does_not_reach_the_space() -> None:
    space = tree(trains={"choice": [{"top_layers": 1}]})
    assert drawn(space, 1)[0].trial.stage_one.model_dump()["trains"] == {"top_layers": 1}
    assert space == tree(trains={"choice": [{"top_layers": 1}]})


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ({"seed": {"choice": [0, 1]}}, "seed: cannot be swept: candidates differ in settings, not in luck"),
        ({"method": {"choice": ["vanilla"]}}, "method: cannot be swept: a method fills both stages"),
        (
            {"data": {"train": {"choice": ["a", "b"]}}},
            "data.train: cannot be swept: a sweep compares its candidates on the",
        ),
        ({"data": {"imbalance": {"kind": "step", "ratio": {"uniform": [0.1, 1]}}}}, "data.imbalance.ratio: cannot be"),
        (
            {"asha": {"grace_epochs": {"randint": [1, 3]}}},
            "asha.grace_epochs: cannot be swept: all candidates share it",
        ),
        ({"resources": {"choice": [1]}}, "resources: cannot be swept: all candidates share it"),
        (
            {"stage_one": {"choice": [{"epochs": 1}]}},
            "stage_one: cannot be swept as a whole: sweep the fields of stage_one",
        ),
    ],
)
def test_a_distribution_where_none_may_stand_says_why(place: dict[str, Any], reason: str) -> None:
    (mistake,) = distribution_mistakes(place, "random")
    assert str(mistake).startswith(reason)


def test_the_length_of_rows_is_the_one_field_of_data_that_may_be_swept() -> None:
    assert (
        mistakes({"data": {"train": "x", "max_length": {"choice": [64, 128]}}, "stage_one": {}, "stage_two": {}}) == []
    )


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
def test_a_wrong_distribution_is_told_with_its_field(written: dict[str, Any], message: str) -> None:
    (mistake,) = mistakes(tree(learning_rate=written))
    assert mistake.startswith("stage_one.learning_rate: ")
    assert message in mistake


def test_fractions_for_a_whole_number_name_randint() -> None:
    (mistake,) = mistakes(tree(epochs={"uniform": [1, 3]}))
    assert mistake == (
        "stage_one.epochs: uniform draws fractions, but this must be a whole number: say {randint: [low, high]}, high "
        "left out"
    )


def test_a_grid_refuses_intervals() -> None:
    (mistake,) = mistakes(tree(learning_rate=LEARNING_RATE), search="grid")
    assert "search: grid goes through lists, but loguniform is none; say {grid: [...]} here" in mistake


def test_every_value_of_a_choice_is_checked_and_a_mistake_inside_one_has_its_own_field() -> None:
    choice = [{"name": "ldam"}, {"name": "ldm"}, {"name": "ldam", "scal": 2.0}]
    name, field = mistakes(tree(loss={"choice": choice}))
    assert name.startswith(
        'stage_one.loss.name: is "ldm", but must be one of cross_entropy, weighted_cross_entropy, ldam'
    )
    assert name.endswith('did you mean "ldam"? (value 2 of choice)')
    assert field == 'stage_one.loss.scal: unknown field; did you mean "scale"? (value 3 of choice)'


def test_a_value_that_breaks_another_field_is_named_with_it() -> None:
    loss = {"name": {"choice": ["ldam", "cross_entropy"]}, "max_margin": 0.5}
    (mistake,) = mistakes(tree(loss=loss))
    assert mistake.startswith("stage_one.loss.max_margin: unknown field")
    assert mistake.endswith('(with stage_one.loss.name = "cross_entropy", value 2 of choice)')


def test_mistakes_are_found_without_importing_ray() -> None:
    program = (
        "import sys; from tailsweep.orchestrator.config.search_space import probe_mistakes as p;"
        "assert p({'stage_one': {'learning_rate': {'uniform': [0, 1]}}})[0]; assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
