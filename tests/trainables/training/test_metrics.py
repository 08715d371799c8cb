import warnings

import numpy as np
import pytest
import sklearn.metrics as reference
import torch
from tailsweep.trainables import report_keys
from tailsweep.trainables.training.metrics import Confusion, scores, scores_of_many

NAMES = ["other", "absorption", "excretion", "distribution", "metabolism"]
CLASS_COUNTS = np.array([400, 101, 100, 19, 5])  # many: 0, 1; medium: 2; few: 3, 4


def counts_of(true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    return reference.confusion_matrix(true, predicted, labels=range(len(NAMES)))


def by_scikit_learn(true: np.ndarray, predicted: np.ndarray) -> dict[str, float | None]:
    present = np.unique(true)
    f1 = reference.f1_score(true, predicted, labels=range(5), average=None, zero_division=0)
    recall = reference.recall_score(true, predicted, labels=range(5), average=None, zero_division=0)

    def mean_recall(classes: list[int]) -> float | None:
        actual = [recall[c] for c in classes if c in present]
        return float(np.mean(actual)) if actual else None

    minority = [1, 2, 3, 4]
    micro = reference.f1_score(true, predicted, labels=minority, average="micro", zero_division=0)
    return {
        "macro_f1": reference.f1_score(true, predicted, labels=present, average="macro"),
        "micro_f1_minority": micro if np.isin(true, minority).any() else None,
        "accuracy": reference.accuracy_score(true, predicted),
        "balanced_accuracy": reference.balanced_accuracy_score(true, predicted),
        "mcc": reference.matthews_corrcoef(true, predicted),
        "g_mean": float(np.prod(recall[present]) ** (1 / len(present))),
        "recall_many": mean_recall([0, 1]),
        "recall_medium": mean_recall([2]),
        "recall_few": mean_recall([3, 4]),
        **{f"f1/{name}": f1[c] if c in present else None for c, name in enumerate(NAMES)},
    }


def random_rows(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions with skewed classes, some of them absent in one or the other."""
    rng = np.random.default_rng(seed)
    true = rng.choice(rng.permutation(5)[: rng.integers(1, 6)], size=rng.integers(1, 80))
    guess = rng.choice(rng.permutation(5)[: rng.integers(1, 6)], size=len(true))
    return true, np.where(rng.random(len(true)) < rng.random(), true, guess)


@pytest.mark.parametrize("seed", range(60))
def test_scores_are_those_of_scikit_learn(seed: int):
    true, predicted = random_rows(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn on absent classes and single labels
        expected = by_scikit_learn(true, predicted)
    actual = scores(counts_of(true, predicted), CLASS_COUNTS, NAMES, "test")
    assert actual == {f"test/{name}": pytest.approx(value, abs=1e-12) for name, value in expected.items()}


def test_scores_of_a_case_worked_by_hand():
    # Class 0: 8 rows, 6 actual, 2 taken for class 1. Class 1: 4 rows, 1 actual, 3 taken for class 0. Class 2 is absent,
    # and never predicted. F1: 12/17, 2/7. Recall: 3/4, 1/4.
    counts = np.array([[6, 2, 0], [3, 1, 0], [0, 0, 0]])
    actual = scores(counts, np.array([120, 50, 7]), ["a", "b", "c"])
    assert actual == {
        "validation/macro_f1": pytest.approx((12 / 17 + 2 / 7) / 2),
        "validation/micro_f1_minority": pytest.approx(2 / 7),
        "validation/accuracy": pytest.approx(7 / 12),
        "validation/balanced_accuracy": pytest.approx(1 / 2),
        "validation/mcc": 0.0,  # 7 * 12 = 8 * 9 + 4 * 3
        "validation/g_mean": pytest.approx((3 / 16) ** 0.5),
        "validation/recall_many": pytest.approx(3 / 4),
        "validation/recall_medium": pytest.approx(1 / 4),
        "validation/recall_few": None,
        "validation/f1/a": pytest.approx(12 / 17),
        "validation/f1/b": pytest.approx(2 / 7),
        "validation/f1/c": None,
    }


def test_all_rows_given_to_one_class():
    actual = scores(np.array([[90, 0], [10, 0]]), np.array([900, 100]), ["common", "rare"])
    assert actual["validation/accuracy"] == 0.9
    assert actual["validation/macro_f1"] == pytest.approx(18 / 19 / 2)
    assert actual["validation/micro_f1_minority"] == 0.0
    assert actual["validation/mcc"] == 0.0
    assert actual["validation/g_mean"] == 0.0
    assert actual["validation/f1/rare"] == 0.0


def test_of_equally_large_classes_the_first_is_the_majority():
    counts = np.array([[3, 1], [0, 4]])
    minority_is_second = scores(counts, np.array([50, 50]), ["a", "b"])
    assert minority_is_second["validation/micro_f1_minority"] == minority_is_second["validation/f1/b"]


def test_absent_class_is_null_even_where_rows_were_predicted_to_be_it():
    actual = scores(np.array([[5, 1], [0, 0]]), np.array([50, 5]), ["a", "b"])
    assert actual["validation/f1/b"] is None
    assert actual["validation/micro_f1_minority"] is None
    assert actual["validation/macro_f1"] == actual["validation/f1/a"] == pytest.approx(10 / 11)


def test_mcc_of_many_rows_does_not_overflow():
    counts = np.array([[8, 2], [1, 9]])
    few, many = (scores(factor * counts, np.array([9, 8]), ["a", "b"])["validation/mcc"] for factor in (1, 10**7))
    assert many == pytest.approx(few, abs=1e-12)


def test_scores_of_many_matrices_are_those_of_each() -> None:
    counts = np.stack([counts_of(*random_rows(seed)) for seed in range(60)]).reshape(3, 20, 5, 5)
    together = scores_of_many(counts, CLASS_COUNTS, NAMES, "test")
    for place in np.ndindex(3, 20):
        alone = scores(counts[place], CLASS_COUNTS, NAMES, "test")
        actual = {key: None if np.isnan(values[place]) else float(values[place]) for key, values in together.items()}
        assert actual == alone


def test_an_empty_split_is_our_issue():
    with pytest.raises(AssertionError, match="no rows of test"):
        scores(np.zeros((2, 2), dtype=np.int64), np.array([5, 3]), ["a", "b"], "test")


def test_every_score_is_in_keys_and_the_other_way_round():
    actual = Confusion(2)
    actual.update(torch.eye(2), torch.tensor([0, 1]))
    reported = set(actual.scores(np.array([5, 3]), ["a", "b"]))
    assert reported == {f"validation/{name}" for name in [*report_keys.SCORES, report_keys.LOSS, "f1/a", "f1/b"]}


def rows_with_logits(rows: int = 37) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(rows, 5, generator=generator), torch.randint(5, (rows,), generator=generator)


def test_confusion_counts_rows_by_true_and_predicted_class():
    logits, labels = rows_with_logits()
    confusion = Confusion(5)
    confusion.update(logits[:10], labels[:10])
    confusion.update(logits[10:], labels[10:])
    np.testing.assert_array_equal(confusion.counts, counts_of(labels.numpy(), logits.argmax(1).numpy()))


def test_loss_is_the_mean_cross_entropy_over_all_rows():
    logits, labels = rows_with_logits()
    confusion = Confusion(5)
    confusion.update(logits[:10], labels[:10])
    confusion.update(logits[10:], labels[10:])
    probabilities = torch.softmax(logits.double(), dim=1).numpy()
    expected = reference.log_loss(labels.numpy(), probabilities, labels=range(5))
    assert confusion.scores(CLASS_COUNTS, NAMES)["validation/loss"] == pytest.approx(expected, abs=1e-12)


def test_summed_states_of_workers_score_as_the_whole():
    logits, labels = rows_with_logits()
    whole, *workers = Confusion(5), Confusion(5), Confusion(5), Confusion(5)
    with torch.inference_mode():  # as in an evaluation
        whole.update(logits, labels)
        workers[0].update(logits[:5], labels[:5])
        workers[1].update(logits[5:], labels[5:])  # the third has no rows
    merged = Confusion(5)
    merged.update(logits, labels)  # to be forgotten
    merged.load(workers[0].state() + workers[1].state() + workers[2].state())
    expected = whole.scores(CLASS_COUNTS, NAMES)
    assert merged.scores(CLASS_COUNTS, NAMES) == {
        key: pytest.approx(value, abs=1e-12) for key, value in expected.items()
    }


def test_mean_of_the_workers_scores_is_not_the_score():
    logits, labels = rows_with_logits()
    parts = [slice(0, 5), slice(5, 37)]
    macro_f1 = []
    for part in [*parts, slice(0, 37)]:
        confusion = Confusion(5)
        confusion.update(logits[part], labels[part])
        macro_f1.append(confusion.scores(CLASS_COUNTS, NAMES)["validation/macro_f1"])
    assert abs((macro_f1[0] + macro_f1[1]) / 2 - macro_f1[2]) > 1e-3


def test_a_nan_logit_shows_as_a_nan_loss():
    confusion = Confusion(2)
    confusion.update(torch.tensor([[0.0, float("nan")], [1.0, 0.0]]), torch.tensor([0, 0]))
    assert np.isnan(confusion.scores(np.array([5, 3]), ["a", "b"])["validation/loss"])


def test_counts_handed_out_do_not_change_afterwards():
    confusion = Confusion(2)
    before = confusion.counts
    confusion.update(torch.eye(2), torch.tensor([0, 1]))
    assert before.sum() == 0
