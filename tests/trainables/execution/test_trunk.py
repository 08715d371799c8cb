"""A classifier split in two: the top, run on what the trunk gives, against the whole model."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.loaded_classifier import build_classifier
from tailsweep.trainables.config.trial import ModelConfig, TopLayers, Trainable
from tailsweep.trainables.data.tokenized import TokenizedExamples
from tailsweep.trainables.errors import ModelError
from tailsweep.trainables.execution.packed import PackedClassifier
from tailsweep.trainables.execution.packing import Packing
from tailsweep.trainables.execution.trunk import SplitPoint, TokenTop, VectorTop, find_split_point, trunk_outputs
from tailsweep.trainables.models.layers import encoder_layers, layer_stacks, set_train_mode, set_trainable
from torch import Tensor, nn

TinyModel = Callable[..., Path]
CPU = torch.device("cpu")
LENGTHS = [12, 1, 30, 3, 12, 40]
NUM_LAYERS = 3  # of the tiny models

SETTINGS: dict[str, Trainable] = {
    "head": "head",
    "pooler": "pooler",
    "top": TopLayers(top_layers=1),
    "layers": TopLayers(top_layers=NUM_LAYERS),
}

PADDED_ONLY = ["deberta-v2", "mpnet"]
ARCHITECTURES = ["bert", "roberta", "distilbert", "modernbert", "electra", "albert", *PADDED_ONLY]
CLASSIFIERS = [(name, "native") for name in ARCHITECTURES]
CLASSIFIERS += [(name, "mean") for name in ("bert", "distilbert", "modernbert", "albert", "deberta-v2")]
CLASSIFIERS += [("bert", "cls"), ("deberta-v2", "cls")]
CLASSIFIERS += [(name, "pooler") for name in ("bert", "roberta", "albert", "mpnet")]
NATIVE_READS_POOLER = ["bert", "albert", "deberta-v2"]


def classifier(folder: Path, head: str) -> nn.Module:
    """A classifier of three classes, in eval mode."""
    model_options: Any = {"name": str(folder), "head": head if head == "native" else {"pooling": head, "dropout": 0.2}}
    return build_classifier(ModelConfig.model_validate(model_options), ("a", "b", "c"), seed=0).eval()


class Batch:
    """Some rows, as the classifier and its top take them: end to end, or padded."""

    def __init__(self, packed: bool) -> None:
        offsets = np.concatenate([[0], np.cumsum(LENGTHS)]).astype(np.int64)
        tokens = np.random.default_rng(0).integers(5, 50, offsets[-1]).astype(np.int32)
        rows = TokenizedExamples(tokens, offsets, np.zeros(len(LENGTHS), np.int64), pad_token_id=0)
        self.packing = Packing.from_lengths(rows.lengths, CPU) if packed else None
        self.tokens = torch.from_numpy(tokens.astype(np.int64))
        self.input_ids, self.mask = map(torch.from_numpy, rows.padded(np.arange(len(rows))))

    def live(self, model: nn.Module) -> Tensor:
        """The whole model's logits."""
        if self.packing is not None:
            return PackedClassifier(model)(self.tokens, self.packing)  # type: ignore[no-any-return]
        return model(input_ids=self.input_ids, attention_mask=self.mask).logits  # type: ignore[no-any-return]

    def trunk(self, model: nn.Module, split_point: SplitPoint) -> Tensor:
        with torch.no_grad():
            states = trunk_outputs(model, split_point, lambda: self.live(model))
        return states[0] if split_point.per_token and self.packing is not None else states

    def top(self, model: nn.Module, split_point: SplitPoint, states: Tensor) -> Tensor:
        if not split_point.per_token:
            return VectorTop(model, split_point)(states)  # type: ignore[no-any-return]
        where = self.mask if self.packing is None else self.packing
        return TokenTop(model, split_point)(states, where)  # type: ignore[no-any-return]


@dataclass
class Case:
    architecture: str
    model: nn.Module  # every test leaves it as it was, but for what trains
    split_points: dict[str, SplitPoint]  # by their names in SETTINGS: those that the classifier can train
    batches: list[Batch]


@pytest.fixture(scope="module", params=CLASSIFIERS, ids="-".join)
def case(request: pytest.FixtureRequest, tiny_model: TinyModel) -> Case:
    architecture, head = request.param
    model = classifier(tiny_model(architecture, dropout=0.3), head)
    names = ["head"]
    if head == "pooler" or (head == "native" and architecture in NATIVE_READS_POOLER):
        names += ["pooler"]
    if architecture != "albert":  # its layers share their weights
        names += ["top", "layers"]
    split_points = {
        name: split_point for name in names if (split_point := find_split_point(model, SETTINGS[name])) is not None
    }
    assert list(split_points) == names
    return Case(
        architecture,
        model,
        split_points,
        [Batch(packed) for packed in (True, False) if not packed or architecture not in PADDED_ONLY],
    )


def assert_within(actual: Tensor, expected: Tensor, label: str = "") -> None:
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0, msg=lambda text: f"{label}: {text}")


def state_of(model: nn.Module) -> list[Any]:
    """All that a split point touches: modules and their order, hooks, forwards, modes, attention."""
    return [
        [
            (name, id(m), m._forward_hooks.copy(), m._forward_pre_hooks.copy(), "forward" in vars(m), m.training)
            for name, m in model.named_modules(remove_duplicate=False)
        ],
        [m.config._attn_implementation for m in model.modules() if hasattr(m, "config")],
        [(name, id(parameter)) for name, parameter in model.named_parameters()],
    ]


def test_where_the_split_point_lies(tiny_model: TinyModel) -> None:
    model = classifier(tiny_model("bert"), "native")
    assert find_split_point(model, "all") is None
    actual = [find_split_point(model, trainable) for trainable in SETTINGS.values()]
    assert actual == [SplitPoint("pooled"), SplitPoint("first_token"), SplitPoint("tokens", 2), SplitPoint("tokens", 0)]
    assert [str(split_point) for split_point in actual] == [
        "pooled vectors",
        "first token vectors",
        "tokens entering layer 3",
        "tokens entering layer 1",
    ]


@torch.no_grad()
def test_the_top_on_the_trunk_s_outputs_gives_the_model_s_logits(case: Case) -> None:
    for split_point, batch in itertools.product(case.split_points.values(), case.batches):
        label = f"{split_point}, {'padded' if batch.packing is None else 'packed'}"
        expected = batch.live(case.model)
        assert (expected[0] - expected[4]).abs().max() > 1e-2  # two rows of one length, told apart
        before = state_of(case.model)
        states = batch.trunk(case.model, split_point)
        assert state_of(case.model) == before, label
        assert_within(batch.top(case.model, split_point, states), expected, label)
        assert state_of(case.model) == before, label
        # The logits are made of these states, and not of the words once more.
        assert (batch.top(case.model, split_point, states.flip(-1)) - expected).abs().max() > 1e-3, label
    assert torch.equal(batch.live(case.model), expected)


@torch.no_grad()
def test_each_side_of_the_split_point_runs_its_own_layers_only(case: Case) -> None:
    encoder: Any = case.model.base_model
    shared = case.architecture == "albert"  # one layer, run several times
    layers = encoder.encoder.albert_layer_groups if shared else encoder_layers(case.model)
    every = [0] * NUM_LAYERS if shared else list(range(NUM_LAYERS))
    layer_stacks(case.model)  # traced once, by a row of its own
    ran: list[int] = []
    hooks = [
        layer.register_forward_hook(lambda *_, number=number: ran.append(number)) for number, layer in enumerate(layers)
    ]
    sides = {"head": (every, []), "pooler": (every, []), "top": (every[:-1], every[-1:]), "layers": ([], every)}
    batch = case.batches[0]
    for name, split_point in case.split_points.items():
        states = batch.trunk(case.model, split_point)
        below = ran.copy()
        ran.clear()
        batch.top(case.model, split_point, states)
        assert (below, ran) == sides[name]
        ran.clear()
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_the_top_s_gradients_are_the_model_s(training: bool, case: Case) -> None:
    """With dropout too: nothing frozen draws from the random numbers, so that both sides draw the same."""

    def gradients(logits: Callable[[], Tensor]) -> dict[str, Tensor]:
        case.model.zero_grad()
        torch.manual_seed(0)
        given = logits()
        weights = torch.arange(float(given.numel())).view_as(given).cos()
        (given * weights).mean().backward()  # type: ignore[no-untyped-call]
        return {name: p.grad.clone() for name, p in case.model.named_parameters() if p.grad is not None}

    batch = case.batches[0]
    for name, split_point in case.split_points.items():
        if training and name == "layers":
            continue  # as "top", at more expense
        set_trainable(case.model, SETTINGS[name])
        if training:
            set_train_mode(case.model, frozen_dropout=False)
        states = batch.trunk(case.model, split_point)
        expected = gradients(lambda: batch.live(case.model))
        actual = gradients(lambda split_point=split_point, states=states: batch.top(case.model, split_point, states))  # type: ignore[misc]
        assert actual.keys() == expected.keys() == {n for n, p in case.model.named_parameters() if p.requires_grad}
        assert max(gradient.abs().max() for gradient in expected.values()) > 1e-3
        for parameter, gradient in expected.items():
            assert_within(actual[parameter], gradient, f"{split_point}, {parameter}")
        if training:  # or the seed would have had nothing to decide
            torch.manual_seed(1)
            assert (batch.live(case.model) - batch.live(case.model)).abs().max() > 1e-3
    case.model.eval()


class Broken(Exception):
    pass


def test_an_error_on_either_side_leaves_the_model_as_it_was(case: Case) -> None:
    def fail(*_: object) -> None:
        raise Broken

    model = case.model
    words = next(module for module in model.modules() if isinstance(module, nn.Embedding))
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]  # of the head
    for split_point, batch in itertools.product(case.split_points.values(), case.batches):
        states = batch.trunk(model, split_point)
        trunk, top = partial(batch.trunk, model, split_point), partial(batch.top, model, split_point, states)
        for module, run in ((words, trunk), (last, top)):
            hook = module.register_forward_pre_hook(fail)
            before = state_of(model)
            with pytest.raises(Broken):
                run()
            assert state_of(model) == before
            hook.remove()


def test_the_parameters_keep_their_names(tiny_model: TinyModel) -> None:
    """Checkpoints and optimizer groups go by the model's names, data-parallel wrapping by the top's parameters."""
    model = classifier(tiny_model("bert"), "native")
    names = [name for name, _ in model.named_parameters()]
    for top in (TokenTop(model, SplitPoint("tokens", 2)), VectorTop(model, SplitPoint("pooled"))):
        assert [name for name, _ in model.named_parameters()] == names
        assert [name for name, _ in top.named_parameters()] == [f"model.{name}" for name in names]
        assert [id(p) for p in top.parameters()] == [id(p) for p in model.parameters()]


@pytest.mark.parametrize("head", ["native", "mean"])
def test_shared_layers_have_no_top_layer(head: str, tiny_model: TinyModel) -> None:
    model = classifier(tiny_model("albert"), head)
    with pytest.raises(ModelError, match="AlbertModel has no list of layers with weights of their own"):
        find_split_point(model, SETTINGS["top"])


def test_a_split_point_that_is_never_reached_is_an_error(tiny_model: TinyModel) -> None:
    model = classifier(tiny_model("bert"), "native")
    before = state_of(model)
    with pytest.raises(ModelError, match="the split point at tokens entering layer 3 is not reached"):
        trunk_outputs(model, SplitPoint("tokens", 2), lambda: None)
    assert state_of(model) == before
