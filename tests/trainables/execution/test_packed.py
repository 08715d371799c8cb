"""Packed rows against Hugging Face's own padded batches, and our attention against softmax written out by hand."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.loaded_classifier import build_classifier
from tailsweep.trainables.config.trial import ModelConfig
from tailsweep.trainables.data.tokenized import TokenizedExamples
from tailsweep.trainables.execution import attention, first_token_attention, packing
from tailsweep.trainables.execution.attention import attend_within_rows
from tailsweep.trainables.execution.packed import PackedClassifier, Packer, why_not_packable
from tailsweep.trainables.execution.packing import Packing
from tailsweep.trainables.execution.probe import probe_rows
from tailsweep.trainables.models.layers import encoder_layers
from torch import Tensor, nn
from transformers.models.bert.modeling_bert import BertSelfAttention

TinyModel = Callable[..., Path]
CPU = torch.device("cpu")
LENGTHS = [12, 1, 3, 30, 3, 12, 40, 2]  # from one token to the most the tiny models take, two pairs of equal ones
MODERNBERT_REACH = 4  # half of its local window of 8: a token sees those at most so many places away

WITH_POOLER = ["bert", "roberta", "albert"]
PACKABLE = [*WITH_POOLER, "distilbert", "modernbert", "electra"]
NOT_PACKABLE = ["deberta-v2", "mpnet"]
CLASSIFIERS = [(name, head) for name in PACKABLE for head in ("native", "mean")]
CLASSIFIERS += [("bert", "cls"), ("modernbert", "cls")]
CLASSIFIERS += [(name, "pooler") for name in WITH_POOLER]


def classifier(folder: Path, head: str = "native") -> nn.Module:
    """A classifier of three classes, in eval mode; a head of ours drops nothing."""
    model_options: Any = {"name": str(folder), "head": head if head == "native" else {"pooling": head, "dropout": 0}}
    return build_classifier(ModelConfig.model_validate(model_options), ("a", "b", "c"), seed=0).eval()


def rows_of(lengths: list[int], seed: int = 0) -> TokenizedExamples:
    """Rows of random words."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = np.random.default_rng(seed).integers(5, 50, offsets[-1]).astype(np.int32)
    return TokenizedExamples(tokens, offsets, np.zeros(len(lengths), np.int64), pad_token_id=0)


def assert_within(actual: Tensor, expected: Tensor, tolerance: float = 1e-5, label: str = "") -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0, msg=lambda text: f"{label}: {text}")


def packed_logits(model: nn.Module, rows: TokenizedExamples) -> Tensor:
    logits: Tensor = PackedClassifier(model)(
        torch.from_numpy(rows.tokens.astype(np.int64)), Packing.from_lengths(rows.lengths, CPU)
    )
    return logits


def padded_logits(model: nn.Module, rows: TokenizedExamples) -> Tensor:
    input_ids, attention_mask = map(torch.from_numpy, rows.padded(np.arange(len(rows))))
    logits: Tensor = model(input_ids=input_ids, attention_mask=attention_mask).logits
    return logits


def gradients(model: nn.Module, logits: Tensor) -> dict[str, Tensor]:
    """Of every parameter, for a loss that weighs each logit differently."""
    model.zero_grad()
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    (logits * weights / len(logits)).sum().backward()  # type: ignore[no-untyped-call]
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# --- against the padded execution path


@pytest.fixture(scope="module", params=CLASSIFIERS, ids="-".join)
def packable(request: pytest.FixtureRequest, tiny_model: TinyModel) -> nn.Module:
    """Each classifier that takes packed rows, in eval mode, without dropout; every test leaves it as it was."""
    architecture, head = request.param
    return classifier(tiny_model(architecture, dropout=0.0), head)


def test_packed_forward_and_backward_are_the_padded_ones(packable: nn.Module) -> None:
    model = packable
    assert model.base_model.config._attn_implementation == "sdpa"  # type: ignore[union-attr]
    rows = rows_of(LENGTHS)
    for training in (True, False):
        model.train(training)
        expected = padded_logits(model, rows)
        assert (expected[0] - expected[5]).abs().max() > 1e-2  # rows of one length differ: right and wrong do as well
        expected_gradients = gradients(model, expected)
        actual = packed_logits(model, rows)
        assert_within(actual, expected)
        found_gradients = gradients(model, actual)
        assert found_gradients.keys() == expected_gradients.keys()
        for name, gradient in expected_gradients.items():
            assert_within(found_gradients[name], gradient, label=name)


def test_modernbert_looks_no_further_than_its_window(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = classifier(tiny_model("modernbert", dropout=0.0))
    short, long = rows_of([MODERNBERT_REACH + 1, 2]), rows_of(LENGTHS)
    expected_short, expected_long = padded_logits(model, short), padded_logits(model, long)
    monkeypatch.setattr(attention.Reach, "mask", lambda self, length, device: None)
    assert_within(packed_logits(model, short), expected_short)
    off = (packed_logits(model, long) - expected_long).abs().amax(1) > 1e-3
    assert off.tolist() == [length > MODERNBERT_REACH + 1 for length in LENGTHS]


@pytest.fixture(scope="module", params=["bert", "modernbert", "roberta"])
def still_model(request: pytest.FixtureRequest, tiny_model: TinyModel) -> nn.Module:
    return classifier(tiny_model(request.param, dropout=0.0), "mean")


@settings(max_examples=15, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=7), seed=st.integers(0, 99))
@torch.no_grad()
def test_a_row_gets_the_same_logits_whatever_lies_next_to_it(
    still_model: nn.Module, lengths: list[int], seed: int
) -> None:
    rows = rows_of(lengths, seed)
    alone = [padded_logits(still_model, rows.between(i, i + 1)) for i in range(len(rows))]
    assert_within(packed_logits(still_model, rows), torch.cat(alone))


@torch.no_grad()
def test_batches_of_one_row_of_one_token_and_of_equal_lengths(packable: nn.Module) -> None:
    for lengths in ([1], [40], [1, 1, 1], [9, 9], [1, 40, 1]):
        rows = rows_of(lengths)
        actual = packed_logits(packable, rows)
        assert actual.shape == (len(lengths), 3)
        assert_within(actual, padded_logits(packable, rows), label=str(lengths))


@pytest.mark.parametrize(("head", "last"), [("native", 3), ("cls", 3), ("pooler", 3), ("mean", 20)])
def test_the_last_layer_computes_only_the_tokens_that_are_read(head: str, last: int, tiny_model: TinyModel) -> None:
    model = classifier(tiny_model("bert"), head)
    encoder_layers(model)  # traced once, by a row of its own
    seen: list[int] = []
    for layer in model.base_model.encoder.layer:  # type: ignore[union-attr]
        layer.intermediate.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    packed_logits(model, rows_of([5, 12, 3]))
    assert seen == [20, 20, last]


@pytest.mark.parametrize(("head", "queries"), [("native", 3), ("cls", 3), ("pooler", 3), ("mean", 20)])
def test_the_last_layer_computes_only_the_queries_that_are_read(head: str, queries: int, tiny_model: TinyModel) -> None:
    model, rows = classifier(tiny_model("bert", dropout=0.0), head), rows_of([5, 12, 3])
    assert why_not_packable(model, rows, CPU, "fp32") is None
    seen: list[int] = []
    for layer in model.base_model.encoder.layer:  # type: ignore[union-attr]
        layer.attention.self.query.register_forward_hook(lambda _, __, output: seen.append(output[..., 0].numel()))
    logits, expected = packed_logits(model, rows), padded_logits(model, rows)
    assert seen[:3] == [20, 20, queries]
    assert_within(logits, expected)
    wanted = gradients(model, expected)
    for name, gradient in gradients(model, logits).items():
        assert_within(gradient, wanted[name], label=name)


def test_where_first_queries_alone_give_other_logits_all_are_computed(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attention that does more than BERT's, as ESM's, which rotates its queries; and one that takes no such call."""

    class Doubling(BertSelfAttention):  # type: ignore[misc]
        def forward(self, hidden_states: Tensor, *arguments: object, **named: object) -> tuple[Tensor, Tensor]:
            output: tuple[Tensor, Tensor] = super().forward(2 * hidden_states, *arguments, **named)
            return output

    def fails(*_: object) -> Tensor:
        raise TypeError

    other, plain, rows = classifier(tiny_model("bert")), classifier(tiny_model("bert")), rows_of([5, 12, 3])
    other.base_model.encoder.layer[-1].attention.self.__class__ = Doubling  # type: ignore[union-attr]
    for model in (other, plain):
        assert why_not_packable(model, rows, CPU, "fp32") is None
        assert_within(packed_logits(model, rows), padded_logits(model, rows))
        monkeypatch.setattr(first_token_attention, "_end_to_end", fails)


def test_dropout_is_drawn_anew_for_every_row(tiny_model: TinyModel) -> None:
    model = classifier(tiny_model("bert", dropout=0.5)).train()
    row = rows_of([12])
    twice = TokenizedExamples(np.tile(row.tokens, 2), np.array([0, 12, 24]), np.zeros(2, np.int64), 0)
    first, second = packed_logits(model, twice)
    assert (first - second).abs().max() > 1e-2
    assert_within(*packed_logits(model.eval(), twice))


# --- the attention itself


Attention = Callable[..., Tensor]
FROM_FIRST_TOKENS = [first_token_attention._end_to_end, first_token_attention._padded]


def softmax_attention(
    query: Tensor, key: Tensor, value: Tensor, lengths: list[int], scale: float, sees: attention.Reach
) -> Tensor:
    """Row by row and head by head, as the textbook has it: (h, N, D) -> (N, h, D)."""
    outputs, start = [], 0
    for length in lengths:
        heads = []
        for head in range(query.shape[0]):
            q, k, v = (tensor[head, start : start + length] for tensor in (query, key, value))
            scores = q @ k.T * scale
            for i in range(length):
                for j in range(length):
                    far = sees.window is not None and abs(i - j) >= sees.window
                    if far or (sees.is_causal and j > i):
                        scores[i, j] = -torch.inf
            heads.append(scores.softmax(-1) @ v)
        outputs.append(torch.stack(heads, dim=1))
        start += length
    return torch.cat(outputs)


def heads_of(num_tokens: int, width: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value (h, N, D) of two heads."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, num_tokens, width, generator=generator)
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("window", [None, 1, 3, 20])
@pytest.mark.parametrize("lengths", [[7], [1], [3, 3, 8, 3, 1, 1], [2, 9, 4]], ids=str)
@pytest.mark.parametrize("attend", [attention._by_runs, attention._padded])
def test_attention_is_softmax_within_each_row(
    attend: Attention, lengths: list[int], window: int | None, is_causal: bool
) -> None:
    qkv, sees = heads_of(sum(lengths)), attention.Reach(window, is_causal)
    expected = softmax_attention(*qkv, lengths, 0.3, sees)
    weights = torch.arange(float(expected.numel())).view_as(expected).cos()
    expected_gradients = torch.autograd.grad((expected * weights).sum(), qkv)
    actual = attend(*qkv, Packing.from_lengths(np.array(lengths), CPU), 0.3, 0.0, sees)
    assert_within(actual, expected, 1e-6)
    for gradient, wanted in zip(torch.autograd.grad((actual * weights).sum(), qkv), expected_gradients, strict=True):
        assert_within(gradient, wanted, 2e-6)


@pytest.mark.parametrize("lengths", [[7], [1], [3, 3, 8, 3, 1, 1], [2, 9, 4]], ids=str)
@pytest.mark.parametrize("attend", FROM_FIRST_TOKENS)
def test_attention_from_first_tokens_is_softmax_within_each_row(attend: Attention, lengths: list[int]) -> None:
    qkv, packing = heads_of(sum(lengths)), Packing.from_lengths(np.array(lengths), CPU)
    expected = softmax_attention(*qkv, lengths, 0.3, attention.Reach())[packing.starts]
    weights = torch.arange(float(expected.numel())).view_as(expected).cos()
    expected_gradients = torch.autograd.grad((expected * weights).sum(), qkv)
    query, key, value = (tensor.transpose(0, 1) for tensor in qkv)
    actual = attend(query[packing.starts], key, value, packing, 0.3, 0.0)
    assert_within(actual, expected, 1e-6)
    for gradient, wanted in zip(torch.autograd.grad((actual * weights).sum(), qkv), expected_gradients, strict=True):
        assert_within(gradient, wanted, 2e-6)


@pytest.mark.parametrize("attend", FROM_FIRST_TOKENS)
def test_attention_from_first_tokens_adds_up_bf16_in_fp32(attend: Attention) -> None:
    lengths = [300, 20]  # whose sums in bf16 would be off by 0.02 and more
    qkv, packing = heads_of(sum(lengths), width=32), Packing.from_lengths(np.array(lengths), CPU)
    query, key, value = (tensor.detach().transpose(0, 1).bfloat16() for tensor in qkv)
    rounded = [tensor.transpose(0, 1).float() for tensor in (query, key, value)]
    expected = softmax_attention(*rounded, lengths, 0.3, attention.Reach())[packing.starts]
    actual = attend(query[packing.starts], key, value, packing, 0.3, 0.0)
    assert actual.dtype == torch.bfloat16
    assert_within(actual.float(), expected, 4e-3)


@pytest.mark.parametrize("attend", FROM_FIRST_TOKENS)
def test_attention_from_first_tokens_drops_weights_and_keeps_their_sum_on_average(attend: Attention) -> None:
    query, key, value = (tensor.transpose(0, 1) for tensor in heads_of(16 * 256))
    packing = Packing.from_lengths(np.full(256, 16), CPU)
    torch.manual_seed(0)
    output = attend(query[packing.starts], key, torch.ones_like(value), packing, 0.5, 0.25)
    assert output.std() > 0.05  # without dropout all are 1
    assert output.mean().item() == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("attend", [attention._by_runs, attention._padded])
def test_attention_drops_weights_and_keeps_their_sum_on_average(attend: Attention) -> None:
    lengths = [16] * 64
    query, key, value = heads_of(sum(lengths))
    torch.manual_seed(0)
    output = attend(
        query, key, torch.ones_like(value), Packing.from_lengths(np.array(lengths), CPU), 0.5, 0.25, attention.Reach()
    )
    assert output.std() > 0.05  # without dropout all are 1
    assert output.mean().item() == pytest.approx(1.0, abs=0.02)


@pytest.mark.gpu
@pytest.mark.parametrize("sees", [attention.Reach(), attention.Reach(3), attention.Reach(3, True)])
def test_flash_attention_is_softmax_within_each_row(sees: attention.Reach) -> None:
    lengths = [3, 3, 8, 40, 1]
    device = torch.device("cuda")
    query, key, value = (t.detach().to(device, torch.bfloat16) for t in heads_of(sum(lengths), width=32))
    expected = softmax_attention(query.float(), key.float(), value.float(), lengths, 0.3, sees)
    actual = attention._by_flash(query, key, value, Packing.from_lengths(np.array(lengths), device), 0.3, 0.0, sees)
    assert_within(actual.float(), expected, 2e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("architecture", PACKABLE)
def test_a_gpu_takes_packed_rows(architecture: str, precision: str, tiny_model: TinyModel) -> None:
    device = torch.device("cuda")
    model = classifier(tiny_model(architecture)).to(device)
    assert why_not_packable(model, rows_of(LENGTHS), device, precision) is None


def test_packing_by_hand() -> None:
    actual = Packing.from_lengths(np.array([2, 1, 1, 3]), CPU)
    assert actual.lengths == (2, 1, 1, 3)
    assert actual.positions.tolist() == [0, 1, 0, 0, 0, 1, 2]
    assert actual.cu_seq_lens.tolist() == [0, 2, 3, 4, 7]
    assert actual.cu_seq_lens.dtype == torch.int32  # what the flash kernel takes
    assert actual.starts.tolist() == [0, 2, 3, 4]
    assert actual.slots.tolist() == [0, 1, 3, 6, 9, 10, 11]  # rows of three slots
    assert actual.runs == [(1, 2), (2, 1), (1, 3)]
    states = torch.tensor([[1.0], [3.0], [5.0], [7.0], [0.0], [1.0], [5.0]])
    assert packing.first_tokens(states, actual).flatten().tolist() == [1, 5, 7, 0]
    assert packing.row_means(states, actual).flatten().tolist() == [2, 5, 7, 2]


# --- what is refused, and what stays as it was


def test_padded_batches_are_refused(tiny_model: TinyModel) -> None:
    single, double = torch.randn(1, 2, 5, 4), torch.randn(2, 2, 5, 4)
    where = Packing.from_lengths(np.array([2, 3]), CPU)
    attend_within_rows(nn.Module(), single, single, single, None, packing=where)
    for tensor, mask, given_packing in (
        (double, None, where),
        (single, torch.ones(1, 1, 5, 5), where),
        (single, None, None),
    ):
        with pytest.raises(ValueError, match="packed attention was given a padded batch"):
            attend_within_rows(nn.Module(), tensor, tensor, tensor, mask, packing=given_packing)

    model = classifier(tiny_model("bert"))
    ids = torch.full((1, 5), 7)
    with Packer(model).taking(where), pytest.raises(ValueError, match="given a mask"):
        model(input_ids=ids, attention_mask=torch.ones_like(ids), packing=where)
    with Packer(model).taking(where), pytest.raises(ValueError, match="given a padded batch"):
        model(input_ids=torch.full((2, 5), 7), packing=where)


def state_of(model: nn.Module) -> list[Any]:
    """All that running packed rows touches: attention, hooks, modes."""
    hooks = [(m._forward_hooks.copy(), m._forward_pre_hooks.copy(), m.training) for m in model.modules()]
    return [hooks, [m.config._attn_implementation for m in model.modules() if hasattr(m, "config")]]


def test_a_packed_forward_leaves_the_model_as_it_was(packable: nn.Module) -> None:
    model = packable
    rows = rows_of(LENGTHS)
    before, expected = state_of(model), padded_logits(model, rows)
    packed_logits(model, rows)
    assert state_of(model) == before
    unknown = TokenizedExamples(np.full_like(rows.tokens, 10**6), rows.offsets, rows.labels, 0)
    with pytest.raises(IndexError):
        packed_logits(model, unknown)
    assert state_of(model) == before
    assert torch.equal(padded_logits(model, rows), expected)


# --- the probe


def test_the_probe_accepts_what_takes_packed_rows(packable: nn.Module) -> None:
    for precision in ("fp32", "bf16"):
        assert why_not_packable(packable, rows_of(LENGTHS), CPU, precision) is None


@pytest.mark.parametrize("head", ["native", "mean"])
@pytest.mark.parametrize("architecture", NOT_PACKABLE)
def test_the_probe_refuses_what_does_not(architecture: str, head: str, tiny_model: TinyModel) -> None:
    model = classifier(tiny_model(architecture), head)
    name = type(model.base_model).__name__
    for precision in ("fp32", "bf16"):
        reason = why_not_packable(model, rows_of(LENGTHS), CPU, precision)
        assert reason is not None
        assert reason.startswith((f"{name} gives other logits on packed rows (off by", f"{name} does not take packed"))


@pytest.mark.parametrize("architecture", ["bert", "deberta-v2"])
def test_the_probe_restores_every_module_s_mode(architecture: str, tiny_model: TinyModel) -> None:
    model = classifier(tiny_model(architecture)).train()
    model.base_model.eval()  # type: ignore[operator]
    before, state = state_of(model), torch.get_rng_state()
    why_not_packable(model, rows_of(LENGTHS), CPU, "fp32")
    assert state_of(model) == before
    assert torch.equal(torch.get_rng_state(), state)  # what it asks draws no randomness
    assert all(p.grad is None for p in model.parameters())


def test_the_probe_sees_rows_that_attend_to_one_another(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def across_rows(query: Tensor, key: Tensor, value: Tensor, *_: object) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(0, 1)

    def nowhere(query: Tensor, *_: object) -> Tensor:
        return torch.full_like(query, torch.nan).transpose(0, 1)

    def not_at_all(*_: object) -> Tensor:
        raise NotImplementedError

    model = classifier(tiny_model("bert"))
    for wrong, reason in (
        (across_rows, r"BertModel gives other logits on packed rows \(off by 0\.\d+\)"),
        (nowhere, r"BertModel gives other logits on packed rows \(off by nan\)"),
        (not_at_all, r"BertModel does not take packed rows \(NotImplementedError\)"),
    ):
        monkeypatch.setattr(attention, "_by_runs", wrong)
        for precision in ("fp32", "bf16"):
            actual = why_not_packable(model, rows_of(LENGTHS), CPU, precision)
            assert actual is not None
            assert re.fullmatch(reason, actual)


def test_the_probe_looks_at_rows_of_every_size() -> None:
    lengths = [5, 9, 1, 7, 40, 3, 6]
    assert [lengths[i] for i in probe_rows(rows_of(lengths))] == [1, 5, 7, 40]
    assert [lengths[i] for i in probe_rows(rows_of(lengths), 2)] == [1, 40]
    assert probe_rows(rows_of([4])).tolist() == [0]
