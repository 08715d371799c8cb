"""Tiny random models of many architectures, with tokenizers as those of their kind."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from tailsweep.trainables.config.data import AuditConfig, DataConfig
from tailsweep.trainables.config.trial import HeadConfig, ModelConfig, TopLayers
from tailsweep.trainables.errors import InputError
from tailsweep.trainables.execution.backends import live_execution, split_logits
from tailsweep.trainables.inference import classify
from tailsweep.trainables.models.classifier import build_classifier, load_classifier, save_classifier
from tailsweep.trainables.preparation import prepare
from tailsweep.trainables.rehearsal import rehearse
from tokenizers import Tokenizer, models, pre_tokenizers, processors

VOCABULARY = (
    "the a of in was and with after dose drug patients study plasma mean hours single daily level oral renal urine "
    "liver enzyme peak gut bile half time low high"
)
WORDS = VOCABULARY.split()
POSITIONS = 48
WIDTH = 16

TokenizerKind = Literal["cls", "xlnet", "eos", "plain", "bytes"]


@dataclass(frozen=True)
class Architecture:
    """A model type of transformers."""

    name: str
    tokenizer: TokenizerKind = "cls"  # cls: [CLS] A [SEP]; xlnet: A <sep> <cls>, padded left; eos: A </s>; plain: A
    settings: dict[str, Any] = field(default_factory=dict)
    is_causal: bool = False
    pad_token: bool = True
    shares_layers: bool = False
    without: tuple[str, ...] = ()  # of the sizes, those that its configuration refuses


SIZES = {
    "hidden_size": WIDTH, "d_model": WIDTH, "n_embd": WIDTH, "dim": WIDTH, "emb_dim": WIDTH, "embedding_size": WIDTH,
    "num_hidden_layers": 3, "n_layers": 3, "n_layer": 3, "num_layers": 3, "encoder_layers": 3, "decoder_layers": 3,
    "num_decoder_layers": 3,
    "num_attention_heads": 4, "n_heads": 4, "n_head": 4, "num_heads": 4, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
    "intermediate_size": 32, "d_ff": 32, "hidden_dim": 32, "n_inner": 32, "d_inner": 32, "ffn_dim": 32,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "dff": 32, "d_kv": 4, "d_head": 4,
    "max_position_embeddings": POSITIONS, "n_positions": POSITIONS, "max_seq_len": POSITIONS, "n_ctx": POSITIONS,
    "initializer_range": 0.3, "init_std": 0.3, "initializer_factor": 3.0, "embed_init_std": 0.3,
}  # fmt: skip

CAUSAL = {"tokenizer": "plain", "is_causal": True}
ROBERTA = {"max_position_embeddings": POSITIONS + 2}

ARCHITECTURES = [
    Architecture("albert", settings={"embedding_size": 8}, shares_layers=True),
    Architecture("bert"),
    Architecture("big_bird", settings={"block_size": 4, "num_random_blocks": 1}),
    Architecture("camembert", settings=ROBERTA),
    Architecture("convbert", settings={"head_ratio": 2, "conv_kernel_size": 5}),
    Architecture("data2vec-text", settings=ROBERTA),
    Architecture("deberta", settings={"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    Architecture("deberta-v2", settings={"relative_attention": True, "position_buckets": 8, "share_att_key": True,
                                         "pos_att_type": ["c2p", "p2c"], "position_biased_input": False}),
    Architecture("distilbert"),
    Architecture("electra", settings={"embedding_size": 8}),
    Architecture("ernie"),
    Architecture("esm", settings={"position_embedding_type": "rotary", "token_dropout": False}),
    Architecture("flaubert"),
    Architecture("fnet", settings={"tpu_short_seq_length": POSITIONS}),
    Architecture(
        "funnel", settings={"block_sizes": [1, 1, 1], "num_decoder_layers": 1, "architectures": ["FunnelModel"]},
        without=("num_hidden_layers",),
    ),
    Architecture("ibert", settings=ROBERTA),
    Architecture("longformer", settings={"attention_window": [8, 8, 8], "max_position_embeddings": POSITIONS + 2}),
    Architecture("megatron-bert"),
    Architecture("mobilebert", settings={"intra_bottleneck_size": 16, "num_feedforward_networks": 2}),
    Architecture("modernbert", settings={"local_attention": 8, "global_attn_every_n_layers": 2}),
    Architecture("mpnet", settings=ROBERTA),
    Architecture("nystromformer", settings={"num_landmarks": 4, "segment_means_seq_len": POSITIONS}),
    Architecture("rembert", settings={"input_embedding_size": 8, "output_embedding_size": 8}),
    Architecture("roberta", settings=ROBERTA),
    Architecture("roberta-prelayernorm", settings=ROBERTA),
    Architecture("roformer"),
    Architecture("squeezebert"),
    Architecture("xlm"),
    Architecture("xlm-roberta", settings=ROBERTA),
    Architecture("xlnet", "xlnet", without=("max_position_embeddings",)),
    Architecture("yoso"),
    # encoder-decoders
    Architecture("bart", "cls"),
    Architecture("mbart", "eos"),
    Architecture("mt5", "eos", settings={"initializer_factor": 1.0}),
    Architecture("t5", "eos", settings={"decoder_start_token_id": 0, "initializer_factor": 1.0}),
    Architecture("umt5", "eos", settings={"initializer_factor": 1.0}),
    # causal decoders
    Architecture("bloom", **CAUSAL),
    Architecture("falcon", settings={"new_decoder_architecture": False}, without=("head_dim",), **CAUSAL),
    Architecture("gemma", settings={"head_dim": 4}, **CAUSAL),
    Architecture("gpt2", pad_token=False, **CAUSAL),
    Architecture("gpt_neo", settings={"attention_types": [[["global"], 3]]}, pad_token=False, **CAUSAL),
    Architecture("gpt_neox", pad_token=False, **CAUSAL),
    Architecture("gptj", settings={"rotary_dim": 4}, pad_token=False, **CAUSAL),
    Architecture("llama", **CAUSAL),
    Architecture("mistral", settings={"sliding_window": 8}, **CAUSAL),
    Architecture("openai-gpt", pad_token=False, **CAUSAL),
    Architecture("opt", settings={"word_embed_proj_dim": WIDTH}, **CAUSAL),
    Architecture("phi", **CAUSAL),
    Architecture("qwen2", "bytes", is_causal=True),
    Architecture("qwen3", pad_token=False, **CAUSAL),
]  # fmt: skip


def save_model(architecture: Architecture, folder: Path) -> Path:
    """Write a tiny random model with its tokenizer; weights so large that the outputs depend on every token."""
    tokenizer = make_tokenizer(architecture)
    config = transformers.AutoConfig.for_model(architecture.name)
    known = {name: value for name, value in SIZES.items() if name not in architecture.without and hasattr(config, name)}
    given = known | {"vocab_size": len(tokenizer)} | architecture.settings
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    config = transformers.AutoConfig.for_model(architecture.name, **given, **special)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    torch.set_rng_state(state)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tokenizer(architecture: Architecture) -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer of whole words, with special tokens and padding as its kind has them."""
    kind = architecture.tokenizer
    if kind == "bytes":
        return _byte_tokenizer()
    special = ["<pad>", "<unk>", "<s>", "</s>", "<sep>", "<cls>"]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = {"cls": "<s> $A </s>", "xlnet": "$A <sep> <cls>", "eos": "$A </s>", "plain": "$A"}[kind]
    pair = {"cls": "<s> $A </s> </s> $B </s>", "xlnet": "$A <sep> $B <sep> <cls>", "eos": "$A </s> $B </s>",
            "plain": "$A $B"}[kind]  # fmt: skip
    used = [(token, vocabulary[token]) for token in special if token in ends or token in pair]
    if used:
        tokenizer.post_processor = processors.TemplateProcessing(single=ends, pair=pair, special_tokens=used)
    names = {"unk_token": "<unk>", "eos_token": "</s>", "bos_token": "<s>"}
    if architecture.pad_token:
        names["pad_token"] = "<pad>"
    if kind in ("cls", "xlnet"):
        names |= {"cls_token": "<s>" if kind == "cls" else "<cls>", "sep_token": "</s>" if kind == "cls" else "<sep>"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        padding_side="left" if kind == "xlnet" else "right",
        **names,
    )


def _byte_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer of bytes, as those of Qwen begin."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<|endoftext|>", *alphabet])}
    return transformers.Qwen2Tokenizer(vocab=vocabulary, merges=[], eos_token="<|endoftext|>")


HEADS = ("native", "mean")
LABELS = ("a", "b", "c")


@dataclass(frozen=True)
class Outcome:
    """What became of an architecture with a head."""

    state: Literal["equal", "refused", "WRONG"]
    detail: str
    off: float | None = None  # the largest difference of a probability


def examine(architecture: Architecture, source: Path, head: str, folder: Path) -> Outcome:
    """Prepare, rehearse, export and predict as a sweep does, and compare with transformers one example at a time."""
    head_config: Any = "native" if head == "native" else HeadConfig(pooling="mean")
    config = ModelConfig(name=str(source), head=head_config)
    folder.mkdir(parents=True)
    texts = sentences()
    try:
        data = prepare(data_config(texts, folder), str(source), folder / "cache")
        model = build_classifier(config, LABELS, seed=0)
        top: Any = "head" if architecture.shares_layers else TopLayers(top_layers=1)
        rehearse(model, config, data, {"stage_one": top, "stage_two": "all"})
        model = build_classifier(config, LABELS, seed=0).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        tokenizer.model_max_length = data_config(texts, folder).max_length
        save_classifier(model, tokenizer, folder / "best", head_config, LABELS)
        loaded, tokenizer = load_classifier(folder / "best")
        actual = classify(loaded, tokenizer, texts)
    except InputError as error:
        return Outcome("refused", " ".join(str(error).split()))
    if head == "native":
        plain = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "best").eval()
    else:
        plain = model
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "best")
    expected = [_alone(plain, tokenizer, text) for text in texts]
    off = float(np.abs(actual - np.stack(expected)).max())
    split = live_execution(model, data, torch.device("cpu"), "fp32")
    trained = split_logits(split, "train").double().softmax(1).numpy()
    off = max(off, float(np.abs(trained - np.stack(expected)[: len(trained)]).max()))
    return Outcome("equal" if off <= 1e-5 else "WRONG", split.description, off)


def _alone(model: Any, tokenizer: Any, text: str) -> Any:
    ids = tokenizer(text, truncation=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]).logits
    return logits[0].double().softmax(0).numpy()


def sentences(count: int = 30) -> list[str]:
    """Return texts of 1 to 30 words."""
    luck = np.random.default_rng(0)
    return [" ".join(luck.choice(WORDS, length)) for length in luck.integers(1, 30, count)]


def data_config(texts: list[str], folder: Path) -> DataConfig:
    """Write the texts as a file, all of them for training, and return how it is read."""
    rows = "".join(f"{text},{LABELS[number % 3]}\n" for number, text in enumerate(texts))
    (folder / "rows.csv").write_text("text,label\n" + rows)
    path = str(folder / "rows.csv")
    audit = AuditConfig(max_leaked_fraction=1.0, max_conflicting_fraction=1.0)
    return DataConfig(train=path, validation=path, test=path, max_length=24, audit=audit)
