"""The linear layer that gives a classifier's logits: found by trying, and what it is given for the rows of a split.

Whatever is affine in the logits can be written into this layer, so that every reader of the model applies it; what it
reads is a vector of each row, whatever the architecture. None is known here: the layer is the one of which a few real
rows show that logits = W x + b.

n rows, H width of the layer's input, C classes.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tailsweep.trainables.data.tokenized import TokenizedExamples
from tailsweep.trainables.errors import ModelError
from tailsweep.trainables.execution.backends import Execution
from tailsweep.trainables.execution.probe import TOLERANCE, difference, probe_rows, probing
from torch import Tensor, nn


def last_layer(
    model: nn.Module, rows: TokenizedExamples, device: torch.device, field: str = "postprocess"
) -> tuple[str, nn.Linear]:
    """Return the layer's name in the model, which is on ``device``, and the layer.

    Args:
        model: The classifier.
        rows: Examples to probe it with.
        device: The model's device.
        field: That needs the layer, for the message.

    Raises:
        ModelError: No linear layer with a bias gives the logits.
    """
    input_ids, attention_mask = (torch.from_numpy(array).to(device) for array in rows.padded(probe_rows(rows)))
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    given: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, arguments: given.__setitem__(name, arguments[0])

    hooks = [module.register_forward_pre_hook(keep(name)) for name, module in linear.items()]
    try:
        with probing(model):
            logits = model(input_ids=input_ids, attention_mask=attention_mask).logits
            matches = [
                name
                for name, inputs in given.items()
                if inputs.shape[:-1] == logits.shape[:-1]
                and linear[name].out_features == logits.shape[-1]
                and difference(F.linear(inputs, linear[name].weight, linear[name].bias), logits) <= TOLERANCE
            ]
    finally:
        for hook in hooks:
            hook.remove()
    if len(matches) != 1 or linear[matches[0]].bias is None:
        problem = "is not unique" if matches else "is not a linear layer"
        if len(matches) == 1:
            problem = "has no bias"
        raise ModelError(
            f"{field}: the layer that gives the logits of {type(model).__name__} {problem}, which {field} is about: "
            f"leave {field} out, or use a head of ours, model.head: {{pooling: mean}}"
        )
    return matches[0], linear[matches[0]]


def trains_last_layer_alone(model: nn.Module, rows: TokenizedExamples, device: torch.device) -> bool:
    """Return whether the parameters that train are those of the linear layer that gives the logits."""
    try:
        _, layer = last_layer(model, rows, device)
    except ModelError:
        return False
    training = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    return training == {id(parameter) for parameter in layer.parameters()}


def split_inputs(layer: nn.Linear, execution: Execution, split: str, num_rows: int) -> NDArray[np.float32]:
    """Return the layer's inputs for every row of a split, in eval mode: (n, H)."""
    inputs = np.empty((num_rows, layer.in_features), np.float32)
    for batch in execution.evaluation_batches(split):
        inputs[batch] = layer_inputs(layer, execution, split, batch)
    return inputs


def layer_inputs(layer: nn.Linear, execution: Execution, split: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the layer's inputs for some rows of a split, in eval mode: (n, H)."""
    taken: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, arguments: taken.append(arguments[0]))
    try:
        execution.module.eval()
        with torch.inference_mode():
            execution.module(*execution.inputs(split, rows))
    finally:
        hook.remove()
    vectors: NDArray[np.float32] = taken.pop().float().cpu().numpy()
    return vectors
