"""Which layers of a model train, and in which mode the frozen ones run."""

from typing import cast
from weakref import WeakKeyDictionary

import torch
from tailsweep.trainables.config.trial import Trainable
from tailsweep.trainables.errors import ModelError
from torch import Tensor, nn
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
        layers = encoder_layers(model)
        if trainable.top_layers > len(layers):
            raise ModelError(f"top_layers is {trainable.top_layers}, but the encoder has {len(layers)} layers")
        top = [p for layer in layers[-trainable.top_layers :] for p in layer.parameters()]
        chosen = [*head, *pooler.parameters(), *top]
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
    layers = [layer for stack in layer_stacks(model) for layer in stack]  # of an encoder-decoder, one on the other
    if not layers:
        raise ModelError(
            f"{type(encoder).__name__} has no list of layers with weights of their own, so that none can have a "
            "learning rate of its own: leave layer_decay out, or say 1"
        )
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


def encoder_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers of the stack that the head reads, from the lowest upwards: of an encoder-decoder the decoder's.

    They are traced: a stack is a list of modules that a row runs through, and the last such list is the head's.

    Raises:
        ModelError: the layers share their weights (ALBERT), so that "the top layer" means nothing.
    """
    stacks = layer_stacks(model)
    if not stacks:
        encoder = type(model.base_model).__name__
        raise ModelError(
            f"{encoder} has no list of layers with weights of their own, so that no layer is the top one: "
            "use head, pooler or all"
        )
    return stacks[-1]


# Of each model, its stacks: a trial asks for them many times.
_traced: WeakKeyDictionary[nn.Module, list[list[nn.Module]]] = WeakKeyDictionary()


def layer_stacks(model: nn.Module) -> list[list[nn.Module]]:
    """Return the stacks of layers in the order in which a row runs through them; those that share weights are none."""
    if model not in _traced:
        _traced[model] = _trace(model)
    return _traced[model]


def _trace(model: nn.Module) -> list[list[nn.Module]]:
    """Run one row, and see through which lists of modules it goes."""
    encoder = cast(nn.Module, model.base_model)
    lists = {name: _flat(module) for name, module in encoder.named_modules() if isinstance(module, nn.ModuleList)}
    outermost = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    owner = {id(layer): name for name in outermost for layer in lists[name]}
    calls: list[int] = []
    hooks = [
        layer.register_forward_pre_hook(lambda module, _: calls.append(id(module)))
        for name in outermost
        for layer in lists[name]
    ]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            model(input_ids=any_row(model))
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    if not calls:  # SqueezeBERT calls their `forward`, where no hook sees it
        number = int(cast(PretrainedConfig, encoder.config).num_hidden_layers)
        return [lists[name] for name in outermost if len(lists[name]) == number]
    called = list(dict.fromkeys(owner[call] for call in calls))
    called = [name for name in called if any(True for _ in lists[name][0].parameters())]
    stacks: list[list[nn.Module]] = []
    place = 0
    while place < len(called):
        name = called[place]
        # XLM has a list of attentions, one of feed-forward networks and so on, through which a row goes in turn.
        first = calls.index(id(lists[name][0]))
        last = max(number for number, call in enumerate(calls) if owner[call] == name)
        parallel = [
            lists[other]
            for other in called[place:]
            if len(lists[other]) == len(lists[name])
            and first <= calls.index(id(lists[other][0])) < max(last, first + 1)
        ]
        if not any(calls.count(id(layer)) > 1 for layer in lists[name]):  # ALBERT's layers share their weights
            layers: list[nn.Module] = list(lists[name])
            if len(parallel) > 1:
                layers = [nn.ModuleList(group) for group in zip(*parallel, strict=True)]
            stacks.append(layers)
        place += max(1, len(parallel))
    return stacks


def _flat(modules: nn.ModuleList) -> list[nn.Module]:
    """Return the layers of a list, also of one of lists (Funnel's blocks)."""
    return [layer for module in modules for layer in (_flat(module) if isinstance(module, nn.ModuleList) else [module])]


class LogitsOnly(nn.Module):
    """Token ids and mask (B, T) to the logits (B, C) of a classifier, and nothing else of its output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


def any_row(model: nn.Module) -> Tensor:
    """Return a row of tokens that any text classifier takes, (1, 4)."""
    config = cast(PretrainedConfig, cast(nn.Module, model.base_model).config)
    end = config.eos_token_id
    end = end[0] if isinstance(end, list) else end
    token = min(5, int(config.vocab_size) - 1)
    device = next(model.parameters()).device
    return torch.tensor([[token, token, token, token if end is None else int(end)]], device=device)


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
