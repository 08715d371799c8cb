"""A classifier cut in two: the top, run on what the trunk gives, against the whole model."""

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
from tailsweep.trainables.config.trial import ModelConfig, TopLayers, Trains
from tailsweep.trainables.data.tokenized import TokenisedRows
from tailsweep.trainables.errors import ModelError
from tailsweep.trainables.execution.packed import PackedClassifier
from tailsweep.trainables.execution.packing import Packing
from tailsweep.trainables.execution.trunk import Cut, TokenTop, VectorTop, find_cut, trunk_outputs
from tailsweep.trainables.models.layers import encoder_layers, set_train_mode, set_trainable
from torch import Tensor, nn

TinyModel = Callable[..., Path]
CPU = torch.device("cpu")
LENGTHS = [12, 1, 30, 3, 12, 40]
NUM_LAYERS = 3  # of the tiny models

SETTINGS: dict[str, Trains] = {
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
    of_model: Any = {"name": str(folder), "head": head if head == "native" else {"pooling": head, "dropout": 0.2}}
    return build_classifier(ModelConfig.model_validate(of_model), ("a", "b", "c"), seed=0).eval()


class Batch:
    """Some rows, as the classifier and its top take them: end to end, or padded."""

    def __init__(self, packed: bool) -> None:
        offsets = np.concatenate([[0], np.cumsum(LENGTHS)]).astype(np.int64)
        tokens = np.random.default_rng(0).integers(5, 50, offsets[-1]).astype(np.int32)
        rows = TokenisedRows(tokens, offsets, np.zeros(len(LENGTHS), np.int64), pad_token_id=0)
        self.packing = Packing.of(rows.lengths, CPU) if packed else None
        self.tokens = torch.from_numpy(tokens.astype(np.int64))
        self.input_ids, self.mask = map(torch.from_numpy, rows.padded(np.arange(len(rows))))

    def live(self, model: nn.Module) -> Tensor:
        """The whole model's logits."""
        if self.packing is not None:
            return PackedClassifier(model)(self.tokens, self.packing)  # type: ignore[no-any-return]
        return model(input_ids=self.input_ids, attention_mask=self.mask).logits  # type: ignore[no-any-return]

    def trunk(self, model: nn.Module, cut: Cut) -> Tensor:
        with torch.no_grad():
            states = trunk_outputs(model, cut, lambda: self.live(model))
        return states[0] if cut.per_token and self.packing is not None else states

    def top(self, model: nn.Module, cut: Cut, states: Tensor) -> Tensor:
        if not cut.per_token:
            return VectorTop(model, cut)(states)  # type: ignore[no-any-return]
        where = self.mask if self.packing is None else self.packing
        return TokenTop(model, cut)(states, where)  # type: ignore[no-any-return]


@dataclass
class Case:
    architecture: str
    model: nn.Module  # every test leaves it as it was, but for what trains
    cuts: dict[str, Cut]  # by their names in SETTINGS: those that the classifier can train
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
    cuts = {name: cut for name in names if (cut := find_cut(model, SETTINGS[name])) is not None}
    assert list(cuts) == names
    return Case(
        architecture,
        model,
        cuts,
        [Batch(packed) for packed in (True, False) if not packed or architecture not in PADDED_ONLY],
    )


def assert_within(found: Tensor, expected: Tensor, what: str = "") -> None:
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0, msg=lambda text: f"{what}: {text}")


def state_of(model: nn.Module) -> list[Any]:
    """All that a cut touches: modules and their order, hooks, forwards, modes, attention."""
    return [
        [
            (name, id(m), m._forward_hooks.copy(), m._forward_pre_hooks.copy(), "forward" in vars(m), m.training)
            for name, m in model.named_modules(remove_duplicate=False)
        ],
        [m.config._attn_implementation for m in model.modules() if hasattr(m, "config")],
        [(name, id(parameter)) for name, parameter in model.named_parameters()],
    ]


def test_where_the_cut_lies(tiny_model: TinyModel) -> None:
    model = classifier(tiny_model("bert"), "native")
    assert find_cut(model, "all") is None
    found = [find_cut(model, trains) for trains in SETTINGS.values()]
    assert found == [Cut("pooled"), Cut("first_token"), Cut("tokens", 2), Cut("tokens", 0)]
    assert [str(cut) for cut in found] == [
        "pooled vectors",
        "first token vectors",
        "tokens entering layer 3",
        "tokens entering layer 1",
    ]


@torch.no_grad()
def test_the_top_on_the_trunk_s_outputs_gives_the_model_s_logits(case: Case) -> None:
    for cut, batch in itertools.product(case.cuts.values(), case.batches):
        what = f"{cut}, {'padded' if batch.packing is None else 'packed'}"
        expected = batch.live(case.model)
        assert (expected[0] - expected[4]).abs().max() > 1e-2  # two rows of one length, told apart
        before = state_of(case.model)
        states = batch.trunk(case.model, cut)
        assert state_of(case.model) == before, what
        assert_within(batch.top(case.model, cut, states), expected, what)
        assert state_of(case.model) == before, what
        # The logits are made of these states, and not of the words once more.
        assert (batch.top(case.model, cut, states.flip(-1)) - expected).abs().max() > 1e-3, what
    assert torch.equal(batch.live(case.model), expected)


@torch.no_grad()
def test_each_side_of_the_cut_runs_its_own_layers_only(case: Case) -> None:
    encoder: Any = case.model.base_model
    shared = case.architecture == "albert"  # one layer, run several times
    layers = encoder.encoder.albert_layer_groups if shared else encoder_layers(encoder)
    every = [0] * NUM_LAYERS if shared else list(range(NUM_LAYERS))
    ran: list[int] = []
    hooks = [
        layer.register_forward_hook(lambda *_, number=number: ran.append(number)) for number, layer in enumerate(layers)
    ]
    sides = {"head": (every, []), "pooler": (every, []), "top": (every[:-1], every[-1:]), "layers": ([], every)}
    batch = case.batches[0]
    for name, cut in case.cuts.items():
        states = batch.trunk(case.model, cut)
        below = ran.copy()
        ran.clear()
        batch.top(case.model, cut, states)
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
    for name, cut in case.cuts.items():
        if training and name == "layers":
            continue  # as "top", at more expense
        set_trainable(case.model, SETTINGS[name])
        if training:
            set_train_mode(case.model, frozen_dropout=False)
        states = batch.trunk(case.model, cut)
        expected = gradients(lambda: batch.live(case.model))
        found = gradients(lambda cut=cut, states=states: batch.top(case.model, cut, states))  # type: ignore[misc]
        assert found.keys() == expected.keys() == {n for n, p in case.model.named_parameters() if p.requires_grad}
        assert max(gradient.abs().max() for gradient in expected.values()) > 1e-3
        for parameter, gradient in expected.items():
            assert_within(found[parameter], gradient, f"{cut}, {parameter}")
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
    for cut, batch in itertools.product(case.cuts.values(), case.batches):
        states = batch.trunk(model, cut)
        trunk, top = partial(batch.trunk, model, cut), partial(batch.top, model, cut, states)
        for module, run in ((words, trunk), (last, top)):
            hook = module.register_forward_pre_hook(fail)
            before = state_of(model)
            with pytest.raises(Broken):
                run()
            assert state_of(model) == before
            hook.remove()


def test_the_parameters_keep_their_names(tiny_model: TinyModel) -> None:
    """Checkpoints and optimiser groups go by the model's names, data-parallel wrapping by the top's parameters."""
    model = classifier(tiny_model("bert"), "native")
    names = [name for name, _ in model.named_parameters()]
    for top in (TokenTop(model, Cut("tokens", 2)), VectorTop(model, Cut("pooled"))):
        assert [name for name, _ in model.named_parameters()] == names
        assert [name for name, _ in top.named_parameters()] == [f"model.{name}" for name in names]
        assert [id(p) for p in top.parameters()] == [id(p) for p in model.parameters()]


@pytest.mark.parametrize("head", ["native", "mean"])
def test_shared_layers_have_no_top_layer(head: str, tiny_model: TinyModel) -> None:
    model = classifier(tiny_model("albert"), head)
    with pytest.raises(ModelError, match="AlbertModel has no list of 3 layers with weights of their own"):
        find_cut(model, SETTINGS["top"])


def test_a_cut_that_is_never_reached_is_an_error(tiny_model: TinyModel) -> None:
    model = classifier(tiny_model("bert"), "native")
    before = state_of(model)
    with pytest.raises(ModelError, match="the cut at tokens entering layer 3 is not reached"):
        trunk_outputs(model, Cut("tokens", 2), lambda: None)
    assert state_of(model) == before
