"""Architectures give what plain transformers gives of each example by itself, or are refused before anything trains."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from support.architectures import (
    ARCHITECTURES,
    HEADS,
    LABELS,
    Architecture,
    data_config,
    examine,
    save_model,
    sentences,
)
from tailsweep.trainables import rehearsal
from tailsweep.trainables.config.trial import HeadConfig, ModelConfig, TopLayers
from tailsweep.trainables.errors import ModelError
from tailsweep.trainables.execution.backends import live_execution
from tailsweep.trainables.models.classifier import build_classifier
from tailsweep.trainables.models.layers import encoder_layers, layer_stacks, set_trainable
from tailsweep.trainables.preparation import prepare
from tailsweep.trainables.rehearsal import rehearse, rehearse_once

BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}
REFUSED = {"funnel", "nystromformer"}  # plain transformers does not compute a short row of theirs
PADDING = {"xlnet": "padded on the left", "convbert": "rows of one length", "bert": "packed"}  # of the native head
PACKED = {"llama", "mistral", "qwen3", "gpt2", "bert"}  # mean-pooled: grouped-query and causal attention


# One of each kind of padding, packing and stack of layers; `make slow` has them all.
QUICK = {"bert", "convbert", "gpt2", "llama", "nystromformer", "t5", "xlm", "xlnet"}


@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(architecture, marks=pytest.mark.thorough if architecture.name in QUICK else pytest.mark.slow)
        for architecture in ARCHITECTURES
    ],
    ids=lambda architecture: architecture.name,
)
def test_an_architecture_is_equal_to_transformers_or_refused(architecture: Architecture, tmp_path: Path) -> None:
    save_model(architecture, tmp_path / "model")
    for head in HEADS:
        outcome = examine(architecture, tmp_path / "model", head, tmp_path / head)
        assert outcome.state == ("refused" if architecture.name in REFUSED else "equal"), outcome
        if head == "native" and architecture.name in PADDING:
            assert outcome.detail.startswith(PADDING[architecture.name])
        if head == "mean" and architecture.name in PACKED:
            assert outcome.detail == "packed"


@pytest.fixture
def built(tmp_path: Path) -> Callable[..., Any]:
    def make(name: str, head: Any = "native") -> tuple[Any, ModelConfig, Any]:
        save_model(BY_NAME[name], tmp_path / name)
        config = ModelConfig(name=str(tmp_path / name), head=head)
        (tmp_path / "rows").mkdir(exist_ok=True)
        data = prepare(data_config(sentences(), tmp_path / "rows"), config.name, tmp_path / "cache")
        return build_classifier(config, LABELS, seed=0), config, data

    return make


def test_the_first_token_of_a_causal_model_is_no_vector_of_the_text(built: Callable[..., Any]) -> None:
    with pytest.raises(ModelError, match=r"the first token of .*gpt2\" does not see the others .* use mean"):
        rehearse(*built("gpt2", HeadConfig(pooling="cls")), {"stage_one.trainable: head": "head"})
    assert rehearse(*built("bert", HeadConfig(pooling="cls")), {"stage_one.trainable: head": "head"}) == []


def test_weights_that_are_not_numbers_are_refused(built: Callable[..., Any]) -> None:
    model, config, data = built("bert")
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.weight.fill_(torch.nan)
    with pytest.raises(ModelError, match=r"gives values that are not numbers \(NaN\): its weights are damaged"):
        rehearse(model, config, data, {})


def test_an_architecture_that_padding_disturbs_is_said_to_be_slower(built: Callable[..., Any]) -> None:
    (note,) = rehearse(*built("convbert"), {"stage_two.trainable: all": "all"})
    assert note == "rows of one length: ConvBertModel does not take packed rows (RuntimeError); this is slower"


def test_what_was_rehearsed_is_not_rehearsed_again(
    built: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[str] = []
    monkeypatch.setattr(rehearsal, "rehearse", lambda *_: runs.append("once") or ["a note"])
    model, config, data = built("bert")
    for trainable in ({"a": "head"}, {"a": "head"}, {"a": "all"}):
        assert rehearse_once(model, config, data, trainable, tmp_path / "cache") == ["a note"]
    assert runs == ["once"] * 2
    (tmp_path / "bert/model.safetensors").write_bytes(b"other weights")
    rehearse_once(model, config, data, {"a": "head"}, tmp_path / "cache")
    assert runs == ["once"] * 3


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_the_top_of_an_encoder_decoder_is_what_its_head_reads(name: str, built: Callable[..., Any]) -> None:
    model, _, _ = built(name)
    assert len(layer_stacks(model)) == 2
    set_trainable(model, TopLayers(top_layers=1))
    trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert any("decoder" in key for key in trained)
    assert not any(".encoder." in key for key in trained)
    assert encoder_layers(model)[-1] is layer_stacks(model)[1][-1]


def test_a_decoder_without_a_pad_token_is_given_the_one_that_ends_a_text(
    built: Callable[..., Any], tmp_path: Path
) -> None:
    model, config, data = built("gpt2")
    tokenizer = transformers.AutoTokenizer.from_pretrained(config.name)
    assert tokenizer.pad_token is None
    assert model.config.pad_token_id == data.pad_token_id == tokenizer.eos_token_id
    assert "padded: " in live_execution(model, data, torch.device("cpu"), "fp32").description


def test_bigbird_keeps_its_attention_whatever_rows_it_sees(built: Callable[..., Any]) -> None:
    model, _, _ = built("big_bird")
    assert model.config.attention_type == "original_full"
    assert model.bert.attention_type == "original_full"


def test_a_model_has_no_more_tokens_than_positions(tmp_path: Path) -> None:
    for name, limit in (("bert", 48), ("roberta", 49), ("llama", 60), ("xlnet", 60)):
        folder = save_model(BY_NAME[name], tmp_path / name)
        (tmp_path / f"rows-{name}").mkdir()
        texts = ["dose " * 80, *sentences()]
        config = data_config(texts, tmp_path / f"rows-{name}").model_copy(update={"max_length": 60})
        data = prepare(config, str(folder), tmp_path / "cache")
        assert data.train.lengths.max() == limit


def test_a_text_of_which_nothing_is_kept_has_one_token(tmp_path: Path) -> None:
    folder = save_model(BY_NAME["llama"], tmp_path / "llama")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer("\u200b")["input_ids"] in ([], [1])
    config = data_config(["\u200b \u200b", *sentences()], tmp_path)
    data = prepare(config, str(folder), tmp_path / "cache")
    assert np.all(data.train.lengths >= 1)


def test_a_model_too_large_for_this_machine_is_rehearsed_as_far_as_classifying(
    built: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "MEMORY_SHARE", 1e12)
    monkeypatch.setattr(rehearsal, "_train", lambda *_: pytest.fail("it was trained"))
    (note,) = rehearse(*built("bert"), {"stage_two.trainable: all": "all"})
    assert note.endswith("was rehearsed as far as classifying: too little memory here for the rest")
