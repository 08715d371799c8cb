"""Which rule to decide by: none, post-hoc logit adjustment or thresholds, judged on rows left out of its fit.

A rule that is fitted to the rows it is judged by always seems to help. Here each is fitted to four fifths of the
rows and judged by the last, several times over. What cannot be told apart goes to the simplest: a rule is taken only
if its gain exceeds one standard error (Breiman et al. 1984, section 3.4.3). Plain arrays in and out, as in
``thresholds.py``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tailsweep.trainables.postprocess.thresholds import (
    Floats,
    Score,
    adjustment,
    chosen_tau,
    confusion_counts,
    counts_of,
    fitted_thresholds,
)
from tailsweep.trainables.resampling import resampled_rows, stratified_folds

Rule = Literal["none", "logit_adjustment", "thresholds"]  # the simplest first
FOLDS, REPEATS = 5, 2
RESAMPLES = 200  # of the rows, for the standard error


@dataclass(frozen=True)
class RuleChoice:
    """The chosen rule, and what each of them scored on rows left out of its fit."""

    rule: Rule
    scores: dict[Rule, float]  # the mean over the repeats
    standard_error: float  # of the largest gain over no rule; 0 if there is no gain


def choose_rule(logits: Floats, labels: NDArray[np.int64], class_counts: NDArray[np.int64], score: Score) -> RuleChoice:
    """Choose the rule by cross-validation and the one-standard-error rule.

    Args:
        logits: (n, C), of the validation rows.
        labels: (n,), in [0, C).
        class_counts: (C,), training rows of each class, at least 1.
        score: What the rules are to raise.
    """
    fits: dict[Rule, Callable[[Floats, NDArray[np.int64]], Floats]] = {
        "logit_adjustment": lambda fitted, true: adjustment(
            class_counts, chosen_tau("auto", lambda tau: fitted + adjustment(class_counts, tau), true, score)
        ),
        "thresholds": lambda fitted, true: -np.log(fitted_thresholds(fitted, true, score)[0]),
    }
    num_classes = logits.shape[1]
    plain = logits.argmax(axis=1)
    predicted: dict[Rule, list[NDArray[np.int64]]] = {rule: [] for rule in fits}
    rng = np.random.default_rng(0)
    for _ in range(REPEATS):
        folds = stratified_folds(labels, FOLDS, rng)
        for rule, fit in fits.items():
            out_of_fold = plain.copy()
            for fold in range(FOLDS):
                inside, outside = folds != fold, folds == fold
                out_of_fold[outside] = (logits[outside] + fit(logits[inside], labels[inside])).argmax(axis=1)
            predicted[rule].append(out_of_fold)

    def scored(taken: NDArray[np.int64], predictions: NDArray[np.int64]) -> float:
        return score(confusion_counts(labels[taken], predictions[taken], num_classes))

    everything = np.arange(len(labels))
    scores: dict[Rule, float] = {"none": score(counts_of(logits, labels))}
    scores |= {rule: float(np.mean([scored(everything, repeat) for repeat in predicted[rule]])) for rule in fits}
    best = max(scores, key=lambda rule: scores[rule])  # the first, and simplest, of equals
    if best == "none":
        return RuleChoice("none", scores, 0.0)
    resampled = [resampled_rows(labels, rng) for _ in range(RESAMPLES)]
    errors = {
        rule: float(np.std([scored(rows, predicted[rule][0]) - scored(rows, plain) for rows in resampled]))
        for rule in fits
    }
    enough = scores[best] - errors[best]
    chosen: Rule = next((rule for rule in scores if scores[rule] >= enough), best)
    return RuleChoice(chosen, scores, errors[best])
