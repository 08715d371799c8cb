"""Which layers of a model train, and in which mode the frozen ones run."""

from typing import cast

from tailsweep.trainables.config.trial import Trainable
from tailsweep.trainables.errors import ModelError
from torch import nn
from transformers import PretrainedConfig


def set_trainable(model: nn.Module, trainable: Trainable) -> None:
    """Set ``requires_grad`` of every parameter to what a stage trains.

    Raises:
        ModelError: the architecture has no pooler, or no list of that many layers of its own.
    """
    encoder = cast(nn.Module, model.base_model)
    pooler = _pooler(model)
    inside = {id(p) for p in encoder.parameters()} | {id(p) for p in pooler.parameters()}
    head = [p for p in model.parameters() if id(p) not in inside]
    if trainable == "all":
        chosen = list(model.parameters())
    elif trainable == "head":
        chosen = head
    elif trainable == "pooler":
        if not any(True for _ in pooler.parameters()):
            raise ModelError(f"{type(model).__name__} has no pooler that its head reads: use head or {{top_layers: k}}")
        chosen = [*head, *pooler.parameters()]
    else:
        layers = encoder_layers(encoder)
        if trainable.top_layers > len(layers):
            raise ModelError(f"top_layers is {trainable.top_layers}, but the encoder has {len(layers)} layers")
        chosen = [*head, *pooler.parameters(), *layers[-trainable.top_layers :].parameters()]
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
    parameters_by_layer = [{id(p) for p in layer.parameters()} for layer in layers]
    depth_by_parameter = {
        parameter: len(layers) - number
        for number, ids in reversed([*enumerate(parameters_by_layer)])
        for parameter in ids
    }
    encoder_parameters = {id(p) for p in encoder.parameters()} - {id(p) for p in _pooler(model).parameters()}
    below = len(layers) + 1
    return {
        name: depth_by_parameter.get(id(parameter), below) if id(parameter) in encoder_parameters else 0
        for name, parameter in model.named_parameters()
    }


def encoder_layers(encoder: nn.Module) -> nn.ModuleList:
    """Return the encoder's layers, from the embeddings upwards.

    Raises:
        ModelError: the layers share their weights (ALBERT), so that "the top layer" means nothing.
    """
    num_layers = int(cast(PretrainedConfig, encoder.config).num_hidden_layers)
    for module in encoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            return module
    raise ModelError(
        f"{type(encoder).__name__} has no list of {num_layers} layers with weights of their own, so that a top layer "
        "cannot be told apart from the others: use head, pooler or all"
    )


def layer_stack(model: nn.Module) -> nn.Module:
    """Return the module that runs the layers in order, whose output the pooler reads if there is one."""
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


def _pooler(model: nn.Module) -> nn.Module:
    """Return the pooler that the head reads, inside the encoder (BERT) or next to it (DeBERTa-v2), if there is one."""
    pooler = getattr(model.base_model, "pooler", None) or getattr(model, "pooler", None)
    return pooler if isinstance(pooler, nn.Module) else nn.ModuleList()
