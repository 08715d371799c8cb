"""The presets are valid stages and say what their papers say."""

import pytest

from trainables.config import LDAM, CrossEntropy, TopLayers, TrialConfig, WeightedCrossEntropy
from trainables.methods import METHODS


def trial(method: str) -> TrialConfig:
    return TrialConfig.model_validate({"data": {"train": "rows.csv"}, **METHODS[method]}, strict=True)


@pytest.mark.parametrize("method", METHODS)
def test_every_preset_makes_a_valid_trial_that_ends_with_all_parameters(method: str) -> None:
    assert trial(method).stage_two.trains == "all"
    assert trial(method).stage_two.epochs >= 1


def test_only_two_stage_and_lp_ft_have_a_first_stage() -> None:
    assert {method for method in METHODS if trial(method).stage_one.epochs > 0} == {"two_stage", "lp_ft"}


def test_two_stage_is_the_official_codes_loss_on_the_top_layer() -> None:
    stage = trial("two_stage").stage_one
    assert stage.trains == TopLayers(top_layers=1)
    assert stage.loss == LDAM(name="ldam", max_margin=0.5, scale=1.0, beta=0.9999)
    assert stage.learning_rate == 1e-4
    assert trial("two_stage").stage_two.loss == CrossEntropy(name="cross_entropy")


def test_baselines_differ_from_vanilla_in_one_field_of_stage_two() -> None:
    vanilla = trial("vanilla").stage_two
    weighted = WeightedCrossEntropy(name="weighted_cross_entropy", beta=0.9999)
    assert trial("reweighting").stage_two == vanilla.model_copy(update={"loss": weighted})
    assert trial("oversampling").stage_two == vanilla.model_copy(update={"rows": "oversampled"})


def test_lp_ft_probes_with_the_head_alone() -> None:
    assert trial("lp_ft").stage_one.trains == "head"
