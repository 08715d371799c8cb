"""The presets are valid stages; their paper variants are the papers' numbers, written out here once more."""

from typing import Any

import pytest
from tailsweep.trainables.config.presets import METHODS
from tailsweep.trainables.config.trial import TrialConfig

SEVEN = {"two_stage", "two_stage_augmented", "pre_finetuning", "vanilla", "reweighting", "oversampling", "lp_ft"}

LDAM = {"name": "ldam", "max_margin": 0.5, "scale": 1.0, "beta": 0.9999, "reweight_after": 0.0}
CROSS_ENTROPY = {"name": "cross_entropy", "label_smoothing": 0.0}
MLP_OF_50 = {"pooling": "pooler", "kind": "mlp", "hidden": 50, "dropout": 0.0}


def filled(tree: Any, place: int) -> Any:
    """The preset with a value of every list in its place: the first (0) or the last (-1)."""
    if not isinstance(tree, dict):
        return tree
    return tree["choice"][place] if "choice" in tree else {name: filled(below, place) for name, below in tree.items()}


def trial(method: str, place: int = 0) -> TrialConfig:
    tree = filled(METHODS[method], place)
    data = {"train": "rows.csv"} | tree.get("data", {})
    if method == "two_stage_augmented/paper":
        data["augmentation"]["file"] = "aug.csv"
    return TrialConfig.model_validate(tree | {"data": data}, strict=True)


def test_every_method_has_its_ranges_and_its_papers_settings() -> None:
    assert set(METHODS) == SEVEN | {f"{method}/paper" for method in SEVEN}
    for method in SEVEN:
        assert "choice" in str(METHODS[method]), method
        assert "choice" not in str(METHODS[f"{method}/paper"]), method


@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize("method", METHODS)
def test_every_preset_makes_a_valid_trial_that_ends_with_all_parameters(method: str, place: int) -> None:
    config = trial(method, place)
    assert config.stage_two.trainable == "all"
    assert config.stage_two.epochs >= 1
    assert (config.stage_one.epochs > 0) == (method.split("/")[0] not in {"vanilla", "reweighting", "oversampling"})


# What stage one trains, its rows and loss, stage two's rows, loss and epochs, and the head: of the official code of
# (a) two-stage fine-tuning, or of (b) pre-finetuning, whose numbers are those for ADME.
@pytest.mark.parametrize(
    ("method", "trainable", "rows", "loss", "last_rows", "last_loss", "last_epochs", "head"),
    [
        ("two_stage", {"top_layers": 1}, "original", LDAM, "original", CROSS_ENTROPY, 1, MLP_OF_50),
        ("two_stage_augmented", {"top_layers": 1}, "augmented", CROSS_ENTROPY, "original", CROSS_ENTROPY, 1, MLP_OF_50),
        ("pre_finetuning", {"top_layers": 1}, "augmented", CROSS_ENTROPY, "original", CROSS_ENTROPY, 3, "native"),
        ("vanilla", None, None, None, "original", CROSS_ENTROPY, 1, MLP_OF_50),
        ("reweighting", None, None, None, "original", LDAM, 1, MLP_OF_50),
        ("oversampling", None, None, None, "oversampled", CROSS_ENTROPY, 3, "native"),
        ("lp_ft", "head", "original", CROSS_ENTROPY, "original", CROSS_ENTROPY, 3, "native"),
    ],
)
def test_paper_variants_have_the_papers_settings_field_by_field(
    method: str, trainable: Any, rows: Any, loss: Any, last_rows: str, last_loss: Any, last_epochs: int, head: Any
) -> None:
    config = trial(f"{method}/paper").model_dump()
    assert config["model"] == {"name": "bert-base-uncased", "head": head, "trust_remote_code": False}
    assert config["data"]["max_length"] == 128
    shared_fields = {
        "batch_size": 16, "gradient_accumulation": 1, "weight_decay": 0.0, "warmup_fraction": 0.0, "max_grad_norm": 1.0,
        "precision": "fp32", "layer_decay": 1.0, "evaluations_per_epoch": 1,
    }  # fmt: skip
    stage_one = {"trainable": trainable, "sampling": rows, "loss": loss, "learning_rate": 1e-4, "epochs": 1}
    if trainable is None:
        assert config["stage_one"]["epochs"] == 0
    else:
        assert config["stage_one"] | shared_fields | stage_one | {"frozen_dropout": True} == config["stage_one"]
    stage_two = {
        "trainable": "all",
        "sampling": last_rows,
        "loss": last_loss,
        "learning_rate": 1e-5,
        "epochs": last_epochs,
    }
    assert config["stage_two"] | shared_fields | stage_two == config["stage_two"]


def test_two_stage_is_the_papers_loss_on_the_top_layer() -> None:
    stage = trial("two_stage").stage_one.model_dump()
    assert (stage["trainable"], stage["loss"]) == ({"top_layers": 1}, LDAM)
    assert trial("two_stage").stage_two.loss.name == "cross_entropy"


def test_baselines_differ_from_vanilla_in_one_field_of_stage_two() -> None:
    vanilla = METHODS["vanilla"]["stage_two"]
    weighted = {"name": "weighted_cross_entropy", "beta": 0.9999}
    assert METHODS["reweighting"]["stage_two"] == vanilla | {"loss": weighted}
    assert METHODS["oversampling"]["stage_two"] == vanilla | {"sampling": "oversampled"}


def test_what_follows_a_stage_one_is_the_same_for_all_that_have_one() -> None:
    """So that a comparison of the methods compares their stage one."""
    methods = ("two_stage", "two_stage_augmented", "pre_finetuning", "lp_ft")
    assert all(METHODS[method]["stage_two"] == METHODS["two_stage"]["stage_two"] for method in methods)
