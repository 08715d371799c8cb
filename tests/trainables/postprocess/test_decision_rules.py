"""Which decision rule is chosen: judged on rows left out of its fit, the simplest of those that are alike."""

import numpy as np
import pytest
from sklearn.metrics import f1_score
from tailsweep.trainables.postprocess.decision_rules import RuleChoice, choose_rule
from tailsweep.trainables.training import metrics

COUNTS = np.array([900, 80, 20])
SHARES = COUNTS / COUNTS.sum()


def macro_f1(counts: np.ndarray) -> float:
    value = metrics.score("macro_f1", counts, COUNTS)
    return 0.0 if value is None else value


def rows(count: int, seed: int, known: float = 2.0, shares: np.ndarray = SHARES) -> tuple[np.ndarray, np.ndarray]:
    """What a model knows of each row, as logits, and the labels."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, size=count, p=shares)
    evidence = rng.standard_normal((count, 3))
    evidence[np.arange(count), labels] += known
    return known * evidence, labels


def chosen(logits: np.ndarray, labels: np.ndarray) -> RuleChoice:
    return choose_rule(logits, labels, COUNTS, macro_f1)


def test_a_rule_is_chosen_that_helps_on_other_rows() -> None:
    """A model that leans towards the large class by its share squared: an adjustment takes that back."""
    logits, labels = rows(1500, seed=0)
    others, true = rows(20_000, seed=1)
    lean = 1.5 * np.log(SHARES)
    choice = chosen(logits + 2 * lean, labels)
    assert choice.rule != "none"
    assert choice.scores[choice.rule] - choice.scores["none"] > choice.standard_error
    plain = f1_score(true, (others + 2 * lean).argmax(1), average="macro")
    helped = f1_score(true, (others + lean).argmax(1), average="macro")
    assert helped > plain + 0.05, "there is something to gain"


def test_no_rule_is_chosen_where_none_helps() -> None:
    """Of equally large classes, the likeliest is what macro-F1 asks for, too: what else few rows show is noise."""
    rules = [chosen(*rows(120, seed, known=1.0, shares=np.full(3, 1 / 3))).rule for seed in range(6)]
    assert rules.count("none") >= 4


def test_scores_out_of_fold_are_lower_than_those_of_the_fit() -> None:
    """With logits that say nothing, thresholds fitted to rows raise the score on these rows and on no others."""
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((90, 3)), rng.integers(3, size=90)
    choice = chosen(logits, labels)
    assert choice.rule == "none" or choice.scores[choice.rule] > choice.scores["none"] + choice.standard_error
    assert choice.scores["none"] == pytest.approx(f1_score(labels, logits.argmax(1), average="macro"))


def test_a_class_with_one_row_and_one_without_rows_are_no_hindrance() -> None:
    logits, labels = rows(40, seed=3)
    labels = np.where(labels == 2, 0, labels)
    labels[0] = 1
    assert chosen(logits, labels).rule in ("none", "logit_adjustment", "thresholds")


def test_the_choice_is_the_same_every_time() -> None:
    assert chosen(*rows(200, seed=5)) == chosen(*rows(200, seed=5))
