"""The terms that join a loss, and the average of weights, against plain computations."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.neighbors import NearestCentroid
from tailsweep.trainables.config.losses import CrossEntropy, WeightedCrossEntropy
from tailsweep.trainables.config.trial import ContrastiveConfig, StageConfig
from tailsweep.trainables.training.head_init import nearest_mean
from tailsweep.trainables.training.losses import Loss, build_loss
from tailsweep.trainables.training.regularization import Objective, contrast, disagreement
from tailsweep.trainables.training.weight_average import WeightAverage
from torch import Tensor, nn

LABELS = torch.tensor([0, 1, 0, 2, 1, 0])
COUNTS = np.array([30, 10, 2])
PLAIN = build_loss(CrossEntropy(name="cross_entropy"), COUNTS)
WEIGHTED = build_loss(WeightedCrossEntropy(name="weighted_cross_entropy", beta=0.99), COUNTS)
each_loss = pytest.mark.parametrize("loss", [PLAIN, WEIGHTED], ids=["plain", "weighted"])


def weights_of(loss: Loss) -> list[float]:
    weights = loss.class_weights
    return [1.0 if weights is None else float(weights[label]) for label in LABELS]


def mean(values: list[float], loss: Loss) -> float:
    weights = weights_of(loss)
    return sum(w * value for w, value in zip(weights, values, strict=True)) / sum(weights)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- R-Drop


@each_loss
def test_disagreement_is_the_mean_of_both_divergences(loss: Loss) -> None:
    logits = random(12, 3)
    values = []
    for row in range(6):
        p, q = (F.softmax(logits[2 * row + view].double(), dim=0) for view in (0, 1))
        values.append(sum(float(F.kl_div(b.log(), a, reduction="sum")) for a, b in ((p, q), (q, p))) / 2)
    assert disagreement(logits, LABELS, loss.class_weights).item() == pytest.approx(mean(values, loss), rel=1e-5)
    assert disagreement(logits[::2].repeat_interleave(2, 0), LABELS, loss.class_weights).item() == 0


# --- contrast


@each_loss
def test_contrast_is_the_papers_formula(loss: Loss) -> None:
    vectors = random(6, 5)
    values = []
    for i in range(6):
        cosine = [float(F.cosine_similarity(vectors[i], vectors[j], dim=0)) / 0.2 for j in range(6)]
        below = math.log(sum(math.exp(cosine[a]) for a in range(6) if a != i))
        positives = [p for p in range(6) if p != i and LABELS[p] == LABELS[i]]
        values.append(-sum(cosine[p] - below for p in positives) / max(1, len(positives)))
    actual = contrast(vectors, LABELS, ContrastiveConfig(temperature=0.2), loss.class_weights)
    assert actual.item() == pytest.approx(mean(values, loss), rel=1e-5)


def test_a_row_alone_has_no_contrast_and_a_gradient_of_zero() -> None:
    for labels in ([0], [0, 1, 2]):
        vectors = random(len(labels), 5).requires_grad_()
        loss = contrast(vectors, torch.tensor(labels), ContrastiveConfig())
        loss.backward()  # type: ignore[no-untyped-call]
        assert loss.item() == 0
        assert vectors.grad is not None
        assert torch.equal(vectors.grad, torch.zeros_like(vectors))


# --- all of a step


def objective(**options: object) -> tuple[Objective, nn.Sequential]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    layer = model[2]
    assert isinstance(layer, nn.Linear)
    return Objective(StageConfig.model_validate(options), layer), model


@each_loss
def test_without_options_a_step_minimises_its_loss_alone(loss: Loss) -> None:
    minimised, model = objective()
    x = random(6, 4)
    assert minimised(lambda: model(x), LABELS, loss).item() == loss.function(model(x), LABELS).item()


@each_loss
def test_mixup_mixes_vectors_and_losses_by_the_same_share(loss: Loss) -> None:
    minimised, model = objective(mixup=0.4)
    x = random(6, 4)
    torch.manual_seed(3)
    actual = minimised(lambda: model(x), LABELS, loss)
    torch.manual_seed(3)
    share = float(torch.distributions.Beta(0.4, 0.4).sample())
    partners = torch.randperm(6)
    vectors = model[:2](x)
    logits = model[2](share * vectors + (1 - share) * vectors[partners])
    expected = share * loss.function(logits, LABELS) + (1 - share) * loss.function(logits, LABELS[partners])
    assert 0.01 < share < 0.99
    assert actual.item() == pytest.approx(expected.item(), rel=1e-5)
    plain = model(x)
    assert torch.equal(plain, model[2](vectors))  # nothing stays at the layer


def test_terms_compose_over_both_views_of_a_row() -> None:
    minimised, model = objective(r_drop=0.7, contrastive={"weight": 0.3, "temperature": 0.5})
    assert minimised.views == 2
    x = random(12, 4)
    actual = minimised(lambda: model(x), LABELS, WEIGHTED)
    twice = LABELS.repeat_interleave(2)
    apart = contrast(model[:2](x), twice, ContrastiveConfig(temperature=0.5), WEIGHTED.class_weights)
    expected = 0.7 * WEIGHTED.function(model(x), twice) + 0.3 * apart
    expected = expected + 0.7 * disagreement(model(x), LABELS, WEIGHTED.class_weights)
    assert actual.item() == pytest.approx(expected.item(), rel=1e-5)


def test_mixup_keeps_the_two_views_of_a_row_apart() -> None:
    minimised, _ = objective(mixup=1.0, r_drop=1.0)
    layer = minimised.layer
    assert layer is not None
    x = torch.arange(12).float()[:, None].expand(12, 5)
    seen: list[Tensor] = []
    layer.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    torch.manual_seed(1)
    minimised(lambda: layer(x), LABELS, PLAIN)
    first, second = seen[0][::2, 0], seen[0][1::2, 0]
    torch.testing.assert_close(second - first, torch.ones(6))  # mixed with the same row's other view


# --- the average of weights


def test_the_average_is_that_of_a_plain_loop_and_steps_continue_from_the_weights() -> None:
    def steps() -> tuple[nn.Linear, torch.optim.Optimizer]:
        torch.manual_seed(0)
        layer = nn.Linear(4, 3)
        return layer, torch.optim.AdamW(layer.parameters(), lr=0.1)

    def step(layer: nn.Linear, optimizer: torch.optim.Optimizer, number: int) -> None:
        optimizer.zero_grad()
        F.cross_entropy(layer(random(6, 4, seed=number)), LABELS).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    layer, optimizer = steps()
    averaged = layer.weight.detach().clone()
    for number in range(9):
        step(layer, optimizer, number)
        decay = min(0.5, (1 + number + 1) / (10 + number + 1))
        averaged = decay * averaged + (1 - decay) * layer.weight.detach()

    other, other_optimizer = steps()
    average = WeightAverage(other_optimizer, 0.5)
    for first in (0, 3, 6):
        with average.training():
            for number in range(first, first + 3):
                step(other, other_optimizer, number)
                average.update(number)
            assert first < 6 or torch.equal(other.weight, layer.weight)
    torch.testing.assert_close(other.weight.detach(), averaged)


# --- the head's start


def vectors_of_classes() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.choice(3, 200, p=[0.7, 0.25, 0.05])
    centers = rng.normal(size=(3, 6)) * 2
    return (centers[labels] + rng.normal(size=(200, 6))).astype(np.float32), labels.astype(np.int64)


def test_class_means_predict_the_nearest_centroid() -> None:
    x, labels = vectors_of_classes()
    weights, biases = nearest_mean(x, labels, 3)
    expected = NearestCentroid().fit(x, labels).predict(x)
    assert np.array_equal(np.argmax(x @ weights.T + biases, 1), expected)


def test_the_sharpness_is_near_that_of_the_normal_distribution_with_one_variance() -> None:
    x, labels = vectors_of_classes()
    weights, biases = nearest_mean(x, labels, 3)
    probabilities = F.softmax(torch.from_numpy(x @ weights.T + biases), dim=1).numpy()
    reference = LinearDiscriminantAnalysis(priors=[1 / 3] * 3).fit(x, labels).predict_proba(x)
    assert np.abs(probabilities - reference).mean() < 0.05


def test_a_class_without_rows_lies_at_the_center_of_the_others() -> None:
    x, labels = vectors_of_classes()
    weights, biases = nearest_mean(x, labels, 4)
    assert np.allclose(weights[3], 0, atol=1e-6)
    assert np.isfinite(weights).all()
    assert np.isfinite(biases).all()
    assert biases[3] == pytest.approx(0, abs=1e-5)


def test_rows_that_are_all_alike_give_finite_values() -> None:
    weights, biases = nearest_mean(np.ones((4, 2), np.float32), np.array([0, 0, 1, 1]), 2)
    assert np.isfinite(weights).all()
    assert np.isfinite(biases).all()
