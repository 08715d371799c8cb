"""The split point between a classifier's frozen trunk and its trained top, and each side run without the other.

The trunk's output is a function of the row, as long as the trunk is in eval mode; the top run on it gives the logits
of the whole model. Nothing here knows an architecture: the split point lies at the input of the first trained layer,
or at the encoder's output, and both are reached from outside, by hooks. ``feature_plan.plan_features`` probes whether
that holds.

B rows, N tokens, H hidden width, C classes; states are (N, H) packed and (B, T, H) padded.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, cast

import torch
from tailsweep.trainables.config.trial import Trainable
from tailsweep.trainables.errors import ModelError
from tailsweep.trainables.execution.packed import Packer
from tailsweep.trainables.execution.packing import Packing
from tailsweep.trainables.models.classifier import PooledClassifier
from tailsweep.trainables.models.layers import encoder_layers, layer_stack, layer_stacks
from torch import Tensor, nn
from transformers.modeling_outputs import (
    BaseModelOutputWithPastAndCrossAttentions,
    BaseModelOutputWithPooling,
    SequenceClassifierOutput,
)
from transformers.utils import ModelOutput

TOLERANCE = 1e-6  # fp32, relative to the largest logit if that is above 1


@dataclass(frozen=True)
class SplitPoint:
    """Where the trained top begins.

    ``pooled``: the vector the head reads; ``first_token``: the first token's last state, which a pooler reads;
    ``tokens``: all token states that enter layer ``layer``, the first that trains.
    """

    kind: Literal["pooled", "first_token", "tokens"]
    layer: int = 0

    @property
    def per_token(self) -> bool:
        """Whether all token states are kept, rather than one vector per row."""
        return self.kind == "tokens"

    def __str__(self) -> str:
        return f"tokens entering layer {self.layer + 1}" if self.per_token else f"{self.kind.replace('_', ' ')} vectors"


def find_split_point(model: nn.Module, trainable: Trainable) -> SplitPoint | None:
    """Return where the top of ``trainable`` begins; None if everything trains."""
    if trainable == "all":
        return None
    if trainable == "head":
        return SplitPoint("pooled")
    if trainable == "pooler":
        return SplitPoint("first_token")
    return SplitPoint("tokens", len(encoder_layers(model)) - trainable.top_layers)


def trunk_outputs(model: nn.Module, split_point: SplitPoint, run: Callable[[], object]) -> Tensor:
    """Return the trunk's outputs while ``run`` calls the whole model; the call ends at the split point if it can.

    Returns:
        (B, H), or for a split point at tokens the states as they enter the layer, (1, N, H) or (B, T, H).
    """
    layer_stacks(model)  # traced before there are hooks, which its row would set off
    taken: list[Tensor] = []

    def take(states: Tensor) -> None:
        taken.append(states)
        raise _Reached

    if split_point.per_token:
        layer = encoder_layers(model)[split_point.layer]
        hook = layer.register_forward_pre_hook(lambda _, given, named: take(_states(given, named)), with_kwargs=True)
    elif split_point.kind == "pooled" and isinstance(model, PooledClassifier):
        hook = model.dropout.register_forward_pre_hook(lambda _, given: take(given[0]))
    else:
        encoder = cast(nn.Module, model.base_model)
        hook = encoder.register_forward_hook(lambda _, __, output: take(_vector(output, split_point)))
    try:
        run()
    except _Reached:
        return taken[0]
    finally:
        hook.remove()
    raise ModelError(f"the split point at {split_point} is not reached")


class VectorTop(nn.Module):
    """The top on one vector per row: vectors (B, H) -> logits (B, C)."""

    def __init__(self, model: nn.Module, split_point: SplitPoint) -> None:
        super().__init__()
        self.model = model
        self.split_point = split_point
        self.has_pooler = getattr(model.base_model, "pooler", None) is not None

    def forward(self, vectors: Tensor) -> Tensor:
        """Return the logits (B, C) of vectors (B, H)."""
        if self.split_point.kind == "pooled" and isinstance(self.model, PooledClassifier):
            return self.model.classify(vectors)
        states = vectors[:, None]
        encoder = cast(nn.Module, self.model.base_model)
        if self.split_point.kind == "first_token" and self.has_pooler:
            # The encoder runs its own pooler on what its stack of layers is made to give.
            replaced = _giving(layer_stack(self.model), BaseModelOutputWithPastAndCrossAttentions(states))
        else:
            output = BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=vectors)
            replaced = _giving(encoder, output)
        with replaced:
            return _logits(self.model(input_ids=torch.zeros(len(vectors), 1, dtype=torch.long, device=vectors.device)))


class TokenTop(nn.Module):
    """The top on token states, without the layers below the split point: states -> logits (B, C)."""

    def __init__(self, model: nn.Module, split_point: SplitPoint) -> None:
        super().__init__()
        self.model = model
        self.packer = Packer(model)
        encoder = cast(nn.Module, model.base_model)
        layers = encoder_layers(model)
        lists = (
            (owner, name, child)
            for owner in encoder.modules()
            for name, child in owner.named_children()
            if isinstance(child, nn.ModuleList) and len(child) == len(layers) and child[0] is layers[0]
        )
        if (place := next(lists, None)) is None:
            raise ModelError(f"the layers of {type(encoder).__name__} are no list of its own")
        owner, name, child = place
        self._below = (child, child[split_point.layer :])  # in a tuple: not to be found as modules of ours
        self._owner = (owner, name)

    def forward(self, states: Tensor, where: Packing | Tensor) -> Tensor:
        """Packed: states (N, H) and their packing; padded: states (B, T, H) and the attention mask (B, T)."""
        if isinstance(where, Packing):
            with self._from(states[None]), self.packer.taking(where):
                positions = self.packer.position_ids(where)
                return _logits(
                    self.model(
                        input_ids=torch.zeros_like(positions),
                        attention_mask=None,
                        position_ids=positions,
                        packing=where,
                    )
                )
        with self._from(states):
            return _logits(self.model(input_ids=torch.zeros_like(where), attention_mask=where))

    @contextmanager
    def _from(self, states: Tensor) -> Iterator[None]:
        """Run the trunk from a split point; the tokens' embeddings are computed and dropped, which costs little."""
        (owner, name), (all_layers, kept) = self._owner, self._below
        hook = kept[0].register_forward_pre_hook(
            lambda _, given, named: _with_states(given, named, states), with_kwargs=True
        )
        setattr(owner, name, kept)
        try:
            yield
        finally:
            setattr(owner, name, all_layers)
            hook.remove()


class _Reached(Exception):
    """The split point has been reached; the rest of the model need not run."""


def _states(given: tuple[object, ...], named: dict[str, object]) -> Tensor:
    """Return a layer's first argument, however it was passed."""
    return cast(Tensor, given[0] if given else named["hidden_states"])


def _with_states(
    given: tuple[object, ...], named: dict[str, object], states: Tensor
) -> tuple[tuple[object, ...], dict[str, object]]:
    """Return the arguments of a layer with other states."""
    return ((states, *given[1:]), named) if given else (given, named | {"hidden_states": states})


def _vector(output: ModelOutput, split_point: SplitPoint) -> Tensor:
    """Return what the head (or its pooler) reads of the encoder's output."""
    pooled = output.get("pooler_output") if split_point.kind == "pooled" else None
    vector: Tensor = output["last_hidden_state"][:, 0] if pooled is None else pooled
    return vector


@contextmanager
def _giving(module: nn.Module, output: object) -> Iterator[None]:
    """Within it, ``module`` gives ``output`` whatever it is called with."""
    object.__setattr__(module, "forward", lambda *_, **__: output)
    try:
        yield
    finally:
        object.__delattr__(module, "forward")


def _logits(output: SequenceClassifierOutput) -> Tensor:
    logits: Tensor = output.logits
    return logits
