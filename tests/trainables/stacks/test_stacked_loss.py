"""The losses of a stack, and their gradients, against those of ``training/losses.py`` by autograd."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from tailsweep.trainables.config.losses import LossConfig
from tailsweep.trainables.stacks.stacked_loss import StackedLoss
from tailsweep.trainables.training.losses import Loss, build_loss

COUNTS = np.array([40, 10, 3, 1])
CONFIGS: list[dict[str, Any]] = [
    {"name": "cross_entropy"},
    {"name": "cross_entropy", "label_smoothing": 0.2},
    {"name": "weighted_cross_entropy", "beta": 0.99},
    {"name": "weighted_cross_entropy", "beta": 0.9999, "label_smoothing": 0.1},
    {"name": "ldam", "max_margin": 0.5, "scale": 1.0, "beta": 0.9999},
    {"name": "ldam", "max_margin": 0.3, "scale": 30.0, "beta": 0.0},
    {"name": "focal", "gamma": 2.0},
    {"name": "focal", "gamma": 0.5, "beta": 0.999},
    {"name": "balanced_softmax"},
    {"name": "logit_adjustment", "tau": 0.5, "label_smoothing": 0.1},
]
LABELS = torch.tensor([0, 0, 1, 3, 0, 2, 1])


def built(config: dict[str, Any]) -> Loss:
    loss: Any = TypeAdapter(LossConfig).validate_python(config)
    return build_loss(loss, COUNTS)


def by_autograd(loss: Loss, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = logits.clone().requires_grad_()
    value = loss.function(leaf, LABELS)
    value.backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    return value.detach(), leaf.grad


@pytest.mark.parametrize("configs", [CONFIGS, *([config] for config in CONFIGS)])
@pytest.mark.parametrize("size", [1.0, 20.0])  # of the logits: at 20 some rows are certain
def test_each_head_has_the_loss_and_the_gradient_that_it_has_alone(configs: list[dict[str, Any]], size: float) -> None:
    losses = [built(config) for config in configs]
    generator = torch.Generator().manual_seed(0)
    logits = size * torch.randn(len(losses), len(LABELS), len(COUNTS), generator=generator)
    values, gradients = StackedLoss(losses, torch.device("cpu"))(logits, LABELS)
    for place, loss in enumerate(losses):
        value, gradient = by_autograd(loss, logits[place])
        torch.testing.assert_close(values[place], value, atol=1e-6, rtol=2e-6)
        torch.testing.assert_close(gradients[place], gradient, atol=2e-6, rtol=1e-5)


def test_a_head_that_is_not_finite_leaves_the_others_alone() -> None:
    losses = [built(config) for config in CONFIGS]
    logits = torch.randn(len(losses), len(LABELS), len(COUNTS), generator=torch.Generator().manual_seed(0))
    expected_values, expected = StackedLoss(losses, torch.device("cpu"))(logits, LABELS)
    logits[3] = float("nan")
    logits[6, 0, 0] = float("inf")
    values, gradients = StackedLoss(losses, torch.device("cpu"))(logits, LABELS)
    others = [place for place in range(len(losses)) if place not in (3, 6)]
    assert torch.equal(values[others], expected_values[others])
    assert torch.equal(gradients[others], expected[others])
    assert not values[3].isfinite()
    assert not values[6].isfinite()
