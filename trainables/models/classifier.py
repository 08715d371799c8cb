"""A Hugging Face encoder with a classification head; which of its parameters a stage trains; its folder on disk.

Every classifier here is a module that takes ``input_ids (B, T)`` and ``attention_mask (B, T)`` and returns an object
with ``logits (B, C)``: either the architecture's own ``AutoModelForSequenceClassification`` (``head: native``) or
:class:`PooledClassifier`. Code that a model brings along is run where ``model.trust_remote_code`` says so, and
never of a folder that is only opened.
"""

import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal, cast

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from tailsweep.trainables.config.trial import HeadConfig, ModelConfig, Trainable
from tailsweep.trainables.errors import ModelError, describe_error
from tailsweep.trainables.models import pooled_classifier
from tailsweep.trainables.models.hub import MORE_THAN_TENSORS, _model_errors, quiet_transformers, resolve, settle
from tailsweep.trainables.models.layers import any_row, depths, set_trainable
from tailsweep.trainables.models.pooled_classifier import (
    PooledClassifierConfig,
    PooledClassifierForSequenceClassification,
)
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

CALLS_POOLER = {"squeezebert"}  # model types that call their pooler without looking whether there is one

CLASSIFIER_FILE = "classifier.json"  # of a folder that holds no transformer, or several (see text_classifiers.py)
CODE = Path(pooled_classifier.__file__)  # which a folder of a PooledClassifier has a copy of


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
            cast(transformers.PreTrainedModel, encoder).pooler = _without_pooler(encoder)
        self.encoder = encoder
        self.pooling = head.pooling
        width = int(cast(transformers.PretrainedConfig, encoder.config).hidden_size)
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
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **encoder_inputs: object
    ) -> SequenceClassifierOutput:
        """Without a mask every token is real; further arguments are the encoder's."""
        output = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **encoder_inputs)
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
        """Map the pooled vector (B, H) to logits (B, C)."""
        logits: Tensor = self.head(self.dropout(pooled))
        return logits


def _without_pooler(encoder: nn.Module) -> nn.Module | None:
    """Return what takes a pooler's place: nothing, where the encoder looks before it calls it."""
    config = cast(transformers.PretrainedConfig, encoder.config)
    return nn.Identity() if config.model_type in CALLS_POOLER else None


def build_classifier(config: ModelConfig, label_names: tuple[str, ...], seed: int) -> nn.Module:
    """Build the pretrained encoder with a new head, fp32, on the CPU; the head's values follow from ``seed``.

    Raises:
        ModelError: the weights are not found, or the head does not fit the architecture.
    """
    torch.manual_seed(seed)
    source = resolve(config.name)
    with quiet_transformers(), _model_errors(config.name):
        if config.head == "native":
            model = transformers.AutoModelForSequenceClassification.from_pretrained(
                source, dtype=torch.float32, trust_remote_code=config.trust_remote_code, **_labels(label_names)
            )
            settle(model, source, config.trust_remote_code)
            return cast(nn.Module, model)
        encoder = transformers.AutoModel.from_pretrained(
            source, dtype=torch.float32, trust_remote_code=config.trust_remote_code
        )
        settle(encoder, source, config.trust_remote_code)
    # A seed of its own: how much randomness loading the encoder draws differs between versions of transformers.
    torch.manual_seed(seed)
    return PooledClassifier(_encoder_of(encoder), config.head, len(label_names))


def _encoder_of(model: transformers.PreTrainedModel) -> nn.Module:
    """Return what reads a row: of an encoder-decoder its encoder, whose states are pooled."""
    return cast(nn.Module, model.get_encoder() if model.config.is_encoder_decoder else model)


def check_model(config: ModelConfig, trainable: Mapping[str, Trainable], decayed: Collection[str] = ()) -> nn.Module:
    """Raise :class:`ModelError` for a model that cannot be loaded, or cannot train what the named settings ask for.

    ``decayed`` names those whose learning rate decays from layer to layer. Loads the model whole: that it has no
    weights, say, should not first appear as the failure of every trial. Returns it, with a head for two classes.
    """
    model = build_classifier(config, ("first", "second"), seed=0)
    for name, setting in trainable.items():
        try:
            set_trainable(model, setting)
        except ModelError as error:
            raise ModelError(f"{name}.trainable: {error}") from None
    for name in decayed:
        try:
            depths(model)
        except ModelError as error:
            raise ModelError(f"{name}.layer_decay: {error}") from None
    return model


def save_classifier(
    model: nn.Module,
    tokenizer: transformers.PreTrainedTokenizerBase,
    folder: Path,
    head: Literal["native"] | HeadConfig,
    label_names: tuple[str, ...],
) -> None:
    """Write a folder that :func:`load_classifier` opens, and plain ``transformers``.

    A pooled head is written as a standard class of ``transformers`` where one computes the same. Else the folder holds
    the few lines of code that do (``pooled_classifier.py``), which ``transformers`` runs with ``trust_remote_code``
    only: it refuses the folder without, and never answers with a head of its own.
    """
    with quiet_transformers():
        if head == "native":
            cast(transformers.PreTrainedModel, model).save_pretrained(folder)
        else:
            assert isinstance(model, PooledClassifier)
            standard = _as_standard(model, label_names)
            if standard is not None:
                standard.save_pretrained(folder)
            else:
                _save_pooled(model, folder, head, label_names)
        if tokenizer.pad_token_id is None:  # what the model's head takes for padding, so that pipelines can pad
            config = cast(nn.Module, model.base_model).config
            pad_token_id = cast(transformers.PretrainedConfig, config).pad_token_id
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_token_id)
        tokenizer.save_pretrained(folder)


def _as_standard(model: PooledClassifier, label_names: tuple[str, ...]) -> transformers.PreTrainedModel | None:
    """Return a model of a class of ``transformers`` that has these weights and gives these logits, if there is one."""
    encoder = cast(transformers.PreTrainedModel, model.encoder)
    if not isinstance(model.head, nn.Linear):
        return None
    config = type(encoder.config).from_dict(encoder.config.to_dict() | _labels(label_names))
    state = torch.get_rng_state()
    try:
        standard = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    except Exception:  # there is none, or none that takes such a configuration
        return None
    finally:
        torch.set_rng_state(state)
    prefix = f"{standard.base_model_prefix}."
    weights = {
        prefix + name.removeprefix("encoder.")
        if name.startswith("encoder.")
        else name.replace("head.", "classifier."): p
        for name, p in model.state_dict().items()
    }
    if weights.keys() != standard.state_dict().keys():
        return None
    try:
        standard.load_state_dict(weights)
        rows = any_row(standard)
        with torch.no_grad():
            was_training = model.training
            same = torch.allclose(model.eval()(rows).logits, standard(rows).logits, rtol=0, atol=1e-5)
            model.train(was_training)
    except Exception:  # the weights have other shapes, or the class wants other inputs
        return None
    return standard if same else None


def _save_pooled(model: PooledClassifier, folder: Path, head: HeadConfig, label_names: tuple[str, ...]) -> None:
    """Write the weights, a configuration of our own, and the code that ``transformers`` needs for it."""
    encoder_config = cast(transformers.PretrainedConfig, model.encoder.config)
    name = PooledClassifierForSequenceClassification.__name__
    config = PooledClassifierConfig(
        encoder=encoder_config.to_dict(),
        head=head.model_dump(),
        architectures=[name],
        auto_map={
            "AutoConfig": f"{CODE.stem}.{PooledClassifierConfig.__name__}",
            "AutoModelForSequenceClassification": f"{CODE.stem}.{name}",
        },
        pad_token_id=encoder_config.pad_token_id,
        **_labels(label_names),
    )
    config.save_pretrained(folder)
    shutil.copyfile(CODE, folder / CODE.name)
    save_model(model, folder / "model.safetensors", metadata={"format": "pt"})  # tied weights once


def load_classifier(folder: str | Path) -> tuple[nn.Module, transformers.PreTrainedTokenizerBase]:
    """Open an exported model.

    The model is in eval mode; ``model(input_ids=..., attention_mask=...).logits`` are (B, C) and
    ``tokenizer`` is the Hugging Face tokenizer it was trained with. Runs no code from the folder. A standard folder of
    an ``AutoModelForSequenceClassification`` is opened as well.

    Raises:
        ModelError: the folder is not one of these.

    Example:
        ``model, tokenizer = load_classifier("runs/demo/best")``
    """
    folder = Path(folder)
    if (folder / CLASSIFIER_FILE).is_file():
        raise ModelError(
            f'"{folder}" is no folder of one transformer: {CLASSIFIER_FILE} says what it holds; open it with '
            "tailsweep.trainables.text_classifiers.open_text_classifier, or use `tailsweep predict`"
        )
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
        cause = MORE_THAN_TENSORS if isinstance(error, UnpicklingError) else describe_error(error)
        raise ModelError(f'the model in "{folder}" cannot be opened: {cause}') from error


def _open_classifier(folder: Path) -> tuple[nn.Module, transformers.PreTrainedTokenizerBase]:
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **_plain_config(written))
    if written.get("model_type") != PooledClassifierConfig.model_type:
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
    config = transformers.AutoConfig.for_model(**written["encoder"])
    names = tuple(written["id2label"][str(number)] for number in range(len(written["id2label"])))
    for key, value in _labels(names).items():
        setattr(config, key, value)
    head = HeadConfig.model_validate(written["head"])
    encoder = _encoder_of(transformers.AutoModel.from_config(config, trust_remote_code=False))
    pooled = PooledClassifier(encoder, head, len(names))
    load_model(pooled, folder / "model.safetensors")
    return pooled.eval(), tokenizer


def _plain_config(written: Mapping[str, Any]) -> dict[str, object]:
    """Return what keeps ``AutoTokenizer`` from a configuration that it does not know."""
    if written.get("model_type") != PooledClassifierConfig.model_type:
        return {}
    return {"config": transformers.AutoConfig.for_model(**written["encoder"])}


def _labels(label_names: tuple[str, ...]) -> dict[str, object]:
    return {
        "num_labels": len(label_names),
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: index for index, name in enumerate(label_names)},
    }
