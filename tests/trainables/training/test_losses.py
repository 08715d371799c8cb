import math
from typing import get_args

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from tailsweep.trainables.config.losses import LDAM, CrossEntropy, Focal, LossConfig, WeightedCrossEntropy
from tailsweep.trainables.data.sampling import class_visits, epoch_rows
from tailsweep.trainables.training.losses import LOSSES, build_loss, build_losses, cross_entropy, focal, ldam

CLASS_COUNTS = np.array([900, 160, 30, 4])
CONFIGS = [
    CrossEntropy(name="cross_entropy"),
    WeightedCrossEntropy(name="weighted_cross_entropy", beta=0.999),
    LDAM(name="ldam", max_margin=0.7, scale=3.0, beta=0.9999),
    *map(
        TypeAdapter(LossConfig).validate_python,
        [
            {"name": "focal"},
            {"name": "focal", "gamma": 0.5, "beta": 0.999},
            {"name": "balanced_softmax"},
            {"name": "logit_adjustment", "tau": 1.5},
            {"name": "cross_entropy", "label_smoothing": 0.2},
            {"name": "weighted_cross_entropy", "beta": 0.999, "label_smoothing": 0.3},
            {"name": "balanced_softmax", "label_smoothing": 0.2},
            {"name": "logit_adjustment", "label_smoothing": 0.2},
        ],
    ),
]


def name_of(config) -> str:
    settings = {key: value for key, value in config.model_dump(exclude_unset=True).items() if key != "name"}
    return "-".join([config.name, *(f"{key}-{value}" for key, value in settings.items())])


each_loss = pytest.mark.parametrize("config", CONFIGS, ids=name_of)


def batch(rows: int = 64, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, len(CLASS_COUNTS), generator=generator)
    labels = torch.randint(len(CLASS_COUNTS), (rows,), generator=generator)
    return logits, labels


def reference(config, logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Row by row in Python floats, from the papers' formulas."""
    counts = [int(n) for n in CLASS_COUNTS]
    weights = [1.0] * 4
    if getattr(config, "beta", 0.0) > 0:
        raw = [(1 - config.beta) / (1 - config.beta**n) for n in counts]
        weights = [4 * w / sum(raw) for w in raw]
    smoothing = getattr(config, "label_smoothing", 0.0)
    loss_sum, weight_sum = 0.0, 0.0
    for z, label in zip(logits.tolist(), labels.tolist(), strict=True):
        match config.name:
            case "ldam":
                z[label] -= config.max_margin * (min(counts) / counts[label]) ** 0.25
                z = [config.scale * value for value in z]
            case "logit_adjustment":
                z = [value + config.tau * math.log(n / sum(counts)) for value, n in zip(z, counts, strict=True)]
        exponentials = [math.exp(value) for value in z]
        if config.name == "balanced_softmax":
            exponentials = [n * value for n, value in zip(counts, exponentials, strict=True)]
        p = [value / sum(exponentials) for value in exponentials]
        if config.name == "focal":
            loss = -((1 - p[label]) ** config.gamma) * math.log(p[label])
        else:
            target = [smoothing / 4 + (1 - smoothing) * (c == label) for c in range(4)]
            loss = -sum(t * math.log(value) for t, value in zip(target, p, strict=True))
        loss_sum += weights[label] * loss
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


def test_focal_of_a_case_worked_by_hand():
    # Row 0: p = 1/2: (1/2)^2 log 2, weight 1. Row 1: logits (log 3, 0), label 1, p = 1/4: (3/4)^2 log 4, weight 3.
    logits = torch.tensor([[1.0, 1.0], [math.log(3), 0.0]])
    loss = focal(logits, torch.tensor([0, 1]), gamma=2.0, class_weights=torch.tensor([1.0, 3.0]))
    assert loss.item() == pytest.approx((math.log(2) / 4 + 3 * 9 / 16 * math.log(4)) / 4, rel=1e-6)


def test_balanced_softmax_of_a_case_worked_by_hand():
    # Counts 30 and 10, equal logits: the softmax is 3/4, 1/4; the rows' losses are log(4/3) and log 4.
    config = TypeAdapter(LossConfig).validate_python({"name": "balanced_softmax"})
    loss = build_loss(config, np.array([30, 10])).function(torch.zeros(2, 2), torch.tensor([0, 1]))
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2, rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "same_as"),
    [
        ({"name": "focal", "gamma": 0.0, "beta": 0.999}, {"name": "weighted_cross_entropy", "beta": 0.999}),
        ({"name": "logit_adjustment", "tau": 1.0}, {"name": "balanced_softmax"}),
        ({"name": "logit_adjustment", "tau": 0.0}, {"name": "cross_entropy"}),
    ],
)
def test_losses_meet_where_the_papers_say_so(settings, same_as):
    logits, labels = batch()
    actual, expected = (
        build_loss(TypeAdapter(LossConfig).validate_python(config), CLASS_COUNTS).function(logits, labels)
        for config in (settings, same_as)
    )
    torch.testing.assert_close(actual, expected)


def test_smoothing_is_of_the_row_whatever_the_classes_weigh():
    """In one row's batch the class weight cancels; in torch's own form it would not."""
    logits, weights = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0.1, 1.0, 10.0])
    label = torch.tensor([0])
    plain = torch.nn.functional.cross_entropy(logits, label, label_smoothing=0.1)
    assert cross_entropy(logits, label, weights, 0.1).item() == pytest.approx(plain.item(), rel=1e-6)
    theirs = torch.nn.functional.cross_entropy(logits, label, weight=weights, label_smoothing=0.1)
    assert theirs.item() > 5 * plain.item()


def test_focal_of_a_certain_row_has_a_slope_of_0():
    """Of gamma below 1, (1 - p)^gamma has an infinite slope at p = 1."""
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    loss = focal(logits, torch.tensor([0]), gamma=0.3)
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad.tolist() == [[0.0, 0.0]]


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


NEEDS_NO_COUNTS = [CONFIGS[0], CONFIGS[3], CONFIGS[7]]  # cross-entropy, focal without beta


@pytest.mark.parametrize("config", [config for config in CONFIGS if config not in NEEDS_NO_COUNTS], ids=name_of)
def test_a_loss_of_the_counts_rejects_a_class_without_rows(config):
    with pytest.raises(ValueError, match="class 2 is 0"):
        build_loss(config, np.array([9, 3, 0, 4]))


@pytest.mark.parametrize("config", NEEDS_NO_COUNTS, ids=name_of)
def test_other_losses_need_no_rows_of_every_class(config):
    loss = build_loss(config, np.array([9, 3, 0, 4]))
    assert loss.class_weights.tolist() == [1.0] * 4


# --- deferred re-weighting


@pytest.mark.parametrize("name", ["weighted_cross_entropy", "ldam", "focal"])
def test_deferred_weights_come_in_after_their_share_of_the_steps(name):
    config = TypeAdapter(LossConfig).validate_python({"name": name, "beta": 0.99, "reweight_after": 0.8})
    losses = build_losses(config, [CLASS_COUNTS], 11)  # 0.8 of them is 8, in whole steps
    plain, weighted = (
        build_loss(config.model_copy(update={"beta": 0.0}), CLASS_COUNTS),
        build_loss(config, CLASS_COUNTS),
    )
    logits, labels = batch()
    assert plain.function(logits, labels) != weighted.function(logits, labels)
    for step in range(11):
        expected = plain if step < 8 else weighted
        assert losses(step).class_weights.tolist() == expected.class_weights.tolist()
        assert losses(step).function(logits, labels) == expected.function(logits, labels)


def test_ldam_keeps_its_margins_while_its_weights_are_deferred():
    config = LDAM(name="ldam", max_margin=0.7, scale=3.0, reweight_after=0.5)
    logits, labels = batch()
    margins = torch.tensor([0.7 * (4 / n) ** 0.25 for n in CLASS_COUNTS])
    expected = ldam(logits, labels, margins=margins, scale=3.0)
    torch.testing.assert_close(build_losses(config, [CLASS_COUNTS], 2)(0).function(logits, labels), expected)


def test_a_stage_that_defers_nothing_has_one_loss_throughout():
    losses = build_losses(CONFIGS[1], [CLASS_COUNTS], 5)
    assert len({id(losses(step)) for step in range(5)}) == 1


def test_weights_that_are_not_there_cannot_be_deferred():
    with pytest.raises(
        ValueError, match=r"reweight_after is 0\.5, but with beta 0 there are no class weights to defer"
    ):
        Focal(name="focal", reweight_after=0.5)
    with pytest.raises(ValueError, match="leave reweight_after out"):
        WeightedCrossEntropy(name="weighted_cross_entropy", beta=0.0, reweight_after=0.1)


def test_every_configured_loss_has_its_builder():
    union = get_args(LossConfig)[0]
    assert {get_args(kind.model_fields["name"].annotation)[0] for kind in get_args(union)} == set(LOSSES)


# --- the counts are those of the visits


CORRECTING = ["weighted_cross_entropy", "ldam", "balanced_softmax", "logit_adjustment"]


@pytest.mark.parametrize("name", CORRECTING)
@pytest.mark.parametrize("sampling", ["class_balanced", "oversampled"])
def test_a_sampler_that_balances_classes_leaves_nothing_to_correct(name, sampling):
    config = TypeAdapter(LossConfig).validate_python({"name": name})
    visits = [class_visits(sampling, CLASS_COUNTS, epoch, 2) for epoch in range(2)]
    equal = build_loss(config, np.full(4, visits[0].max()))
    logits, labels = batch()
    assert build_losses(config, visits, 3)(4).function(logits, labels) == equal.function(logits, labels)
    assert build_losses(config, [CLASS_COUNTS], 3)(0).function(logits, labels) != equal.function(logits, labels)


@pytest.mark.parametrize("name", CORRECTING)
def test_with_progressive_each_epoch_has_the_loss_of_its_visits(name):
    config = TypeAdapter(LossConfig).validate_python({"name": name})
    labels_of_rows = np.repeat(np.arange(4), CLASS_COUNTS)
    losses = build_losses(config, [class_visits("progressive", CLASS_COUNTS, epoch, 3) for epoch in range(3)], 5)
    logits, labels = batch()
    for epoch in range(3):
        rows = np.concatenate([epoch_rows("progressive", labels_of_rows, seed, epoch, 3) for seed in range(200)])
        counted = np.bincount(labels_of_rows[rows], minlength=4) / 200
        expected = build_loss(config, counted).function(logits, labels)
        for step in range(5 * epoch, 5 * epoch + 5):
            assert losses(step).function(logits, labels).item() == pytest.approx(expected.item(), rel=5e-3)
    assert losses(0).function(logits, labels) != losses(14).function(logits, labels)
