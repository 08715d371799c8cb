"""The values that the layer of the logits starts with: those of the nearest class mean.

Rare classes then start where their examples lie, rather than where few gradients take a random layer (LIFT, Shi et
al. 2024, arXiv 2309.10019, starts a cosine classifier so).

C classes, H width of the layer's input, n rows.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from tailsweep.trainables.data.tokenized import PreparedData, length_batches
from tailsweep.trainables.execution.backends import Execution
from tailsweep.trainables.execution.last_layer import layer_inputs
from torch import nn

ROWS_EACH = 100  # of a class, which its mean is taken of
TOKENS_AT_ONCE = 8192
SHARPNESS = 2.0 ** np.arange(-12, 5)  # in units of one over the variance within classes


def start_at_class_means(layer: nn.Linear, execution: Execution, data: PreparedData, split: str, seed: int) -> None:
    """Set the layer to the class means of a split's rows that are drawn by ``seed``."""
    rng = np.random.default_rng(seed)
    examples = data.rows_of(split)
    classes = range(len(data.label_names))
    rows = np.concatenate([rng.permutation(np.flatnonzero(examples.labels == label))[:ROWS_EACH] for label in classes])
    place = np.zeros(len(examples), np.int64)
    place[rows] = np.arange(len(rows))
    vectors = np.empty((len(rows), layer.in_features), np.float32)
    for batch in length_batches(examples.lengths[rows], TOKENS_AT_ONCE):
        for part in execution.parts(split, rows[batch]):
            vectors[place[part]] = layer_inputs(layer, execution, split, part)
    weights, biases = nearest_mean(vectors, examples.labels[rows], len(classes))
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weights))
        layer.bias.copy_(torch.from_numpy(biases))


def nearest_mean(
    vectors: NDArray[np.float32], labels: NDArray[np.int64], num_classes: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the weights (C, H) and biases (C,) of the nearest-mean classifier.

    Its logits are minus half the squared distance to each mean times a sharpness, apart from what all classes share:
    those of normal distributions around the means with one variance. The sharpness is the likeliest by these rows, each
    class counted alike.

    Args:
        vectors: (n, H).
        labels: (n,), in [0, C).
        num_classes: C; one without a row lies at the center of the others.
    """
    x = vectors.astype(np.float64)
    counts = np.bincount(labels, minlength=num_classes)
    means = np.zeros((num_classes, x.shape[1]))
    np.add.at(means, labels, x)
    means[counts > 0] /= counts[counts > 0, None]
    center = means[counts > 0].mean(0)
    means[counts == 0] = center
    variance = np.square(x - means[labels]).mean() or 1.0
    directions = means - center
    offsets = -(np.square(means).sum(1) - np.square(center).sum()) / 2
    logits = x @ directions.T + offsets

    def surprise(sharpness: float) -> float:
        scaled = logits * sharpness
        scaled -= scaled.max(1, keepdims=True)
        losses = np.log(np.exp(scaled).sum(1)) - scaled[np.arange(len(labels)), labels]
        return float((losses / counts[labels]).sum())

    sharpness = min(SHARPNESS / variance, key=surprise)
    return (directions * sharpness).astype(np.float32), (offsets * sharpness).astype(np.float32)
