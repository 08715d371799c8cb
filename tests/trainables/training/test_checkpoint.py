"""Checkpoints written and read back, without a trial around them (``test_stages.py`` continues from real ones)."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.fs as pafs
import pytest
import torch
from safetensors.torch import load_file
from tailsweep.trainables.config.trial import ModelConfig, TopLayers
from tailsweep.trainables.models.classifier import build_classifier
from tailsweep.trainables.models.layers import set_trainable
from tailsweep.trainables.training import checkpoint
from tailsweep.trainables.training.checkpoint import (
    Progress,
    checkpoint_name,
    is_whole,
    load_optimizer,
    load_parameters,
    load_progress,
    newest_checkpoint,
    save_checkpoint,
)
from tailsweep.trainables.training.runtime import Report
from torch import nn

REPORTS: tuple[Report, ...] = (
    {"stage": "stage_one", "epoch": 1, "validation/macro_f1": 0.1 + 0.2, "validation/recall_few": None, "seconds": 2.5},
    {"stage": "stage_two", "epoch": 1, "validation/macro_f1": 1 / 3, "validation/recall_few": 5e-324, "seconds": 1e22},
)


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def adamw(model: nn.Sequential) -> torch.optim.Optimizer:
    """Of the top layer, in two groups, as the stages make it."""
    weight, bias = model[2].parameters()
    groups = [
        {"params": [("2.weight", weight)], "weight_decay": 0.1},
        {"params": [("2.bias", bias)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.1, fused=True)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        inputs = torch.arange(8.0).view(2, 4) + step
        model(inputs).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def all_names(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters()}


def test_names_sort_in_the_order_of_training() -> None:
    assert checkpoint_name("stage_one", 3) == Progress("stage_one", 3).name == "stage_one_epoch_003"
    assert checkpoint_name("stage_one", 7 / 3) == Progress("stage_one", 7 / 3).name == "stage_one_epoch_002.333"
    epochs = (0.001, 0.25, 1 / 3, 0.999, 1, 1.5, 2, 9, 9.01, 9.1, 10, 11, 99, 99 + 998 / 999, 100, 999)
    names = [checkpoint_name(stage, epoch) for stage, epoch in itertools.product(("stage_one", "stage_two"), epochs)]
    assert sorted(names) == names


@pytest.mark.parametrize("epoch", [1, 7 / 3])
def test_progress_comes_back_to_the_last_digit(epoch: float, tmp_path: Path) -> None:
    progress = Progress("stage_two", epoch, REPORTS)
    save_checkpoint(tmp_path, progress, small_model(), set(), None)
    assert load_progress(tmp_path) == progress
    assert type(load_progress(tmp_path).epoch) is type(epoch)


def test_training_continues_from_a_checkpoint_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    model = small_model()
    optimizer = adamw(model)
    train(model, optimizer, steps=3)
    save_checkpoint(tmp_path, Progress("stage_one", 1, REPORTS[:1]), model, {"2.weight", "2.bias"}, optimizer)

    again = small_model()  # the same pretrained values, and none of the moments
    load_parameters(tmp_path, again)
    again_optimizer = adamw(again)
    load_optimizer(tmp_path, again_optimizer)
    for own, other in zip(model[2].parameters(), again[2].parameters(), strict=True):
        assert optimizer.state[own].keys() == again_optimizer.state[other].keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert float(again_optimizer.state[other]["step"]) == 3
        for moment, value in optimizer.state[own].items():
            assert torch.equal(again_optimizer.state[other][moment], value)

    train(model, optimizer, steps=2)
    train(again, again_optimizer, steps=2)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name

    without_moments = small_model()
    load_parameters(tmp_path, without_moments)
    train(without_moments, adamw(without_moments), steps=2)
    assert not torch.equal(without_moments.state_dict()["2.weight"], model.state_dict()["2.weight"])


def test_it_holds_what_has_trained_and_at_a_stages_end_no_moments(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    config = ModelConfig(name=str(tiny_model("bert")))
    model = build_classifier(config, ("a", "b"), seed=0)
    set_trainable(model, TopLayers(top_layers=1))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    save_checkpoint(tmp_path, Progress("stage_one", 2), model, trained, None)
    assert {path.name for path in tmp_path.iterdir()} == {"progress.json", "parameters.safetensors", "checksums.json"}
    parameters = load_file(tmp_path / "parameters.safetensors")
    layers = {name.split(".")[3] for name in parameters if name.startswith("bert.encoder.layer")}
    assert layers == {"2"}
    assert {name for name in parameters if not name.startswith("bert.encoder.layer")} == {
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
        "classifier.weight",
        "classifier.bias",
    }
    # Into a model whose values all differ: what is not parameters stays as it was.
    other = build_classifier(config, ("a", "b"), seed=1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    load_parameters(tmp_path, other)
    for name, value in other.state_dict().items():
        assert torch.equal(value, parameters[name] if name in parameters else before[name]), name


def test_everything_in_it_is_json_or_safetensors(tmp_path: Path) -> None:
    model = small_model()
    optimizer = adamw(model)
    train(model, optimizer, steps=1)
    save_checkpoint(tmp_path, Progress("stage_one", 1, REPORTS[:1]), model, all_names(model), optimizer)
    assert {path.name for path in tmp_path.iterdir()} == {
        "checksums.json",
        "progress.json",
        "parameters.safetensors",
        "optimizer.safetensors",
    }
    json.loads((tmp_path / "progress.json").read_text())
    assert load_file(tmp_path / "parameters.safetensors").keys() == all_names(model)
    moments = itertools.product(("step", "exp_avg", "exp_avg_sq"), ("2.weight", "2.bias"))
    assert load_file(tmp_path / "optimizer.safetensors").keys() == {f"{key}/{name}" for key, name in moments}


def test_a_checkpoint_of_another_model_is_an_error_of_ours(tmp_path: Path) -> None:
    model = small_model()
    save_checkpoint(tmp_path, Progress("stage_one", 1), model, all_names(model), None)
    with pytest.raises(AssertionError, match=r"is of another model: \['2\.bias', '2\.weight'\]"):
        load_parameters(tmp_path, nn.Sequential(nn.Linear(4, 5), nn.Tanh()))


def written(folder: Path, *places: tuple[str, float]) -> Path:
    """A folder of checkpoints of these places."""
    model = small_model()
    for stage, epoch in places:
        progress = Progress(stage, epoch, REPORTS)
        (folder / progress.name).mkdir(parents=True)
        save_checkpoint(folder / progress.name, progress, model, all_names(model), None)
    return folder


@pytest.mark.parametrize("file", ["parameters.safetensors", "progress.json", "checksums.json"])
@pytest.mark.parametrize("damage", ["truncated", "altered", "gone", "empty"])
def test_a_damaged_checkpoint_is_noticed(tmp_path: Path, file: str, damage: str) -> None:
    folder = written(tmp_path, ("stage_one", 1)) / "stage_one_epoch_001"
    assert is_whole(folder)
    path = folder / file
    content = path.read_bytes()
    middle = len(content) // 2
    match damage:
        case "truncated":
            path.write_bytes(content[:middle])
        case "altered":
            path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        case "gone":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
    assert not is_whole(folder)


def test_the_newest_whole_checkpoint_is_resumed_from(tmp_path: Path) -> None:
    places = (("stage_one", 999), ("stage_one", 1000), ("stage_two", 1 / 3), ("stage_two", 1))
    folder = written(tmp_path, *places)
    for damaged in range(len(places) + 1):
        with newest_checkpoint([str(tmp_path / "not there"), str(folder)]) as (actual, passed_over):
            whole = [checkpoint_name(*place) for place in places[: len(places) - damaged]]
            assert (None if actual is None else actual.name) == (whole[-1] if whole else None)
            assert passed_over == [checkpoint_name(*place) for place in reversed(places[len(places) - damaged :])]
        if whole:
            (folder / whole[-1] / "progress.json").write_text("{}")


def test_a_trials_own_checkpoint_goes_before_its_parents(tmp_path: Path) -> None:
    own, parents = written(tmp_path / "own", ("stage_two", 1)), written(tmp_path / "parent", ("stage_one", 2))
    with newest_checkpoint([str(own), str(parents)]) as (actual, _):
        assert actual == own / "stage_two_epoch_001"
    with newest_checkpoint([str(tmp_path / "none"), str(parents)]) as (actual, _):
        assert actual == parents / "stage_one_epoch_002"


def test_a_checkpoint_on_storage_that_is_no_disk_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a pyarrow filesystem that is not local by its type."""
    local = pafs.LocalFileSystem()
    opened = pafs.SubTreeFileSystem(str(written(tmp_path, ("stage_one", 1))), local)
    monkeypatch.setattr(checkpoint, "open_location", lambda location: (opened, ""))
    with newest_checkpoint(["anywhere"]) as (actual, _):
        assert actual is not None
        assert actual.parent != tmp_path
        assert is_whole(actual)
    assert not actual.exists()
