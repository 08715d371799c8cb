import math
from typing import get_args

import numpy as np
import pytest
import torch

from trainables.config import LDAM, CrossEntropy, LossConfig, WeightedCrossEntropy
from trainables.losses import LOSSES, build_loss, cross_entropy, ldam

CLASS_COUNTS = np.array([900, 160, 30, 4])
CONFIGS = [
    CrossEntropy(name="cross_entropy"),
    WeightedCrossEntropy(name="weighted_cross_entropy", beta=0.999),
    LDAM(name="ldam", max_margin=0.7, scale=3.0, beta=0.9999),
]
each_loss = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)


def batch(rows: int = 64, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, len(CLASS_COUNTS), generator=generator)
    labels = torch.randint(len(CLASS_COUNTS), (rows,), generator=generator)
    return logits, labels


def reference(config, logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Row by row in Python floats, from the papers' formulas."""
    margins, scale = [0.0] * 4, 1.0
    weights = [1.0] * 4
    if config.name != "cross_entropy":
        raw = [(1 - config.beta) / (1 - config.beta ** int(n)) for n in CLASS_COUNTS]
        weights = [4 * w / sum(raw) for w in raw]
    if config.name == "ldam":
        margins = [config.max_margin * (min(CLASS_COUNTS) / n) ** 0.25 for n in CLASS_COUNTS]
        scale = config.scale
    loss_sum, weight_sum = 0.0, 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        z = [scale * (value - (margins[c] if c == label else 0.0)) for c, value in enumerate(row)]
        loss_sum += weights[label] * (math.log(sum(math.exp(value) for value in z)) - z[label])
        weight_sum += weights[label]
    return loss_sum / weight_sum


@each_loss
def test_loss_is_the_papers_formula(config):
    logits, labels = batch()
    loss = build_loss(config, CLASS_COUNTS).function(logits, labels)
    assert loss.item() == pytest.approx(reference(config, logits, labels), rel=1e-6)


def test_ldam_of_a_case_worked_by_hand():
    # Row 0: true logit 2 - 1/2, the other 0: z = 2 * (1.5, 0), loss log(1 + e^-3), weight 1.
    # Row 1: true logit 1 - 1/4, the other 1: z = 2 * (1, 0.75), loss log(1 + e^0.5), weight 3.
    loss = ldam(
        torch.tensor([[2.0, 0.0], [1.0, 1.0]]),
        torch.tensor([0, 1]),
        margins=torch.tensor([0.5, 0.25]),
        scale=2.0,
        class_weights=torch.tensor([1.0, 3.0]),
    )
    assert loss.item() == pytest.approx((math.log1p(math.exp(-3)) + 3 * math.log1p(math.exp(0.5))) / 4, rel=1e-6)


def test_ldam_without_margins_and_scale_is_weighted_cross_entropy():
    logits, labels = batch()
    weights = torch.tensor([0.5, 1.0, 1.0, 1.5])
    without = ldam(logits, labels, margins=torch.zeros(4), scale=1.0, class_weights=weights)
    torch.testing.assert_close(without, cross_entropy(logits, labels, weights))


@each_loss
def test_gradient_is_the_slope_and_stays_finite_for_large_logits(config):
    function = build_loss(config, CLASS_COUNTS).function
    logits, labels = batch(8)
    logits.requires_grad_()
    function(logits, labels).backward()
    step = torch.zeros_like(logits)
    step[2, 1] = 1e-2
    with torch.no_grad():
        slope = (function(logits + step, labels) - function(logits - step, labels)) / 2e-2
    assert logits.grad[2, 1].item() == pytest.approx(slope.item(), abs=1e-3)

    large = (1e4 * batch(8)[0]).requires_grad_()
    function(large, labels).backward()
    assert large.grad.isfinite().all()


@each_loss
def test_weighted_means_of_uneven_parts_make_the_whole(config):
    loss = build_loss(config, CLASS_COUNTS)
    logits, labels = batch(50)
    logits.requires_grad_()
    whole = loss.function(logits, labels)
    (whole_gradient,) = torch.autograd.grad(whole, logits)

    parts = [slice(0, 1), slice(1, 30), slice(30, 30), slice(30, 50)]  # one of them without rows
    weights = [loss.class_weights[labels[part]].sum() for part in parts]
    joined = sum(w * loss.function(logits[p], labels[p]) for w, p in zip(weights, parts, strict=True)) / sum(weights)
    (joined_gradient,) = torch.autograd.grad(joined, logits)

    assert joined.item() == pytest.approx(whole.item(), rel=1e-6)
    torch.testing.assert_close(joined_gradient, whole_gradient, rtol=1e-5, atol=1e-7)


def test_plain_mean_of_parts_is_not_the_weighted_mean():
    loss = build_loss(CONFIGS[1], CLASS_COUNTS)
    logits, labels = batch(50)
    halves = (loss.function(logits[:25], labels[:25]) + loss.function(logits[25:], labels[25:])) / 2
    assert abs(halves - loss.function(logits, labels)) > 1e-3


@each_loss
def test_a_part_without_rows_has_no_loss_and_can_go_backwards(config):
    logits = torch.zeros(0, 4, requires_grad=True)
    loss = build_loss(config, CLASS_COUNTS).function(logits, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0.0


@each_loss
def test_bf16_logits_under_autocast_are_computed_in_float32(config):
    function = build_loss(config, CLASS_COUNTS).function
    logits, labels = batch()
    rounded = logits.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = function(rounded, labels)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(reference(config, rounded.float(), labels), rel=1e-6)


@pytest.mark.parametrize("config", CONFIGS[1:], ids=lambda config: config.name)
def test_weighted_loss_refuses_a_class_without_rows(config):
    with pytest.raises(ValueError, match="class 2 is 0"):
        build_loss(config, np.array([9, 3, 0, 4]))


def test_plain_cross_entropy_needs_no_rows_of_every_class():
    loss = build_loss(CONFIGS[0], np.array([9, 3, 0, 4]))
    assert loss.class_weights.tolist() == [1.0] * 4


def test_every_configured_loss_has_its_builder():
    union = get_args(LossConfig)[0]
    assert {get_args(kind.model_fields["name"].annotation)[0] for kind in get_args(union)} == set(LOSSES)
