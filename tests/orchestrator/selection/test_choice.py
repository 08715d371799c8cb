"""The choice among baselines, trials and means of several: what is presumed, unless another kind is clearly ahead."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import pytest
import sklearn.metrics as reference
from numpy.typing import NDArray
from tailsweep.orchestrator.selection import choice
from tailsweep.orchestrator.selection.choice import FOLDS, REPEATS, Contender, Examples, JudgedKind, Preference, choose
from tailsweep.trainables.resampling import stratified_folds
from tailsweep.trainables.training import metrics

Labels = NDArray[np.int64]
SingleKind = Literal["baseline", "trial"]
NUM_CLASSES = 3
ACCURACY, SIMPLICITY = Preference(max_members=5), Preference(max_members=5, simplest=True)
PREFERENCES = pytest.mark.parametrize("preference", [ACCURACY, SIMPLICITY], ids=["accuracy", "simplicity"])


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Estimate standard errors to within a tenth or so, in less time."""
    monkeypatch.setattr(choice, "RESAMPLES", 60)


def contender(
    kind: SingleKind,
    name: str,
    predicted: Labels,
    confidence: float | NDArray[np.float64] = 0.8,
    num_classes: int = NUM_CLASSES,
) -> Contender:
    """Return a model that predicts these classes with this probability, and all others with equal ones."""
    is_predicted = np.eye(num_classes)[predicted]
    confidences = np.broadcast_to(confidence, predicted.shape)[:, None]
    probabilities = np.where(is_predicted, confidences, (1 - confidences) / (num_classes - 1))
    return Contender(name, kind, probabilities.astype(np.float64))


def wrong_at(labels: Labels, rows: Sequence[int] | Labels, num_classes: int = NUM_CLASSES) -> Labels:
    """Return the labels, but those of some rows shifted by one."""
    predicted = labels.copy()
    predicted[rows] = (predicted[rows] + 1) % num_classes
    return predicted


def wrong_at_random(labels: Labels, num_wrong: int, rng: np.random.Generator) -> Labels:
    return wrong_at(labels, rng.choice(len(labels), size=num_wrong, replace=False))


def balanced_labels(num_rows: int = 120) -> Labels:
    return np.arange(num_rows) % NUM_CLASSES


def noisy_models(labels: Labels, seed: int = 0, num: int = 5) -> list[Contender]:
    """Return two baselines, then trials, which are right and sure in other rows each."""
    rng = np.random.default_rng(seed)
    num_classes = max(2, 1 + int(labels.max()))
    models = []
    for number in range(num):
        predicted = wrong_at(labels, np.flatnonzero(rng.random(len(labels)) > 0.75), num_classes)
        confidence = rng.uniform(0.5, 1, size=len(labels))
        kind: SingleKind = "baseline" if number < 2 else "trial"
        models.append(contender(kind, f"model {number}", predicted, confidence, num_classes))
    return models


def choose_by(
    contenders: Sequence[Contender],
    labels: Labels,
    preference: Preference = ACCURACY,
    metric: str = "accuracy",
    seed: int = 0,
    train_counts: NDArray[np.int64] | None = None,
) -> list[JudgedKind]:
    num_classes = contenders[0].probabilities.shape[1]
    class_counts = np.bincount(labels, minlength=num_classes)
    if train_counts is not None:
        class_counts = train_counts
    return choose(
        contenders,
        Examples(
            labels,
            np.maximum(class_counts, 1),
            lambda counts: metrics.score(metric, counts, class_counts) or 0.0,
        ),
        preference,
        seed,
    )


def chosen(judged: Sequence[JudgedKind]) -> JudgedKind:
    (kind,) = [kind for kind in judged if kind.chosen]
    return kind


@pytest.mark.parametrize(("preference", "expected"), [(ACCURACY, "trial"), (SIMPLICITY, "baseline")])
def test_of_a_baseline_and_a_trial_that_equals_it_the_presumed_one_is_chosen(
    preference: Preference, expected: str
) -> None:
    labels = balanced_labels()
    predicted = wrong_at(labels, range(0, 40, 2))
    judged = choose_by(
        [contender("trial", "t001", predicted), contender("baseline", "tfidf", predicted)], labels, preference
    )
    assert chosen(judged).kind == expected
    assert [(kind.weights, kind.score, kind.difference, kind.standard_error) for kind in judged] == [
        ({name: 1.0}, pytest.approx(5 / 6), 0.0, 0.0) for name in ("tfidf", "t001")
    ]


@pytest.mark.parametrize("better", ["baseline", "trial"])
@pytest.mark.parametrize(("preference", "expected"), [(ACCURACY, "trial"), (SIMPLICITY, "baseline")])
def test_a_kind_that_is_ahead_by_few_rows_is_not_told_apart(
    better: SingleKind, preference: Preference, expected: str
) -> None:
    """One is right on 8 rows where the other is not, and wrong on 6 such rows: of 14 rows, 2 more are no evidence.

    The difference of a row is 1, -1 or 0: its variance is 14 / 120 - (2 / 120)^2, and that of the mean a 120th of it.
    """
    labels = balanced_labels()
    kinds: tuple[SingleKind, SingleKind] = ("trial", "baseline") if better == "trial" else ("baseline", "trial")
    models = [
        contender(kinds[0], "ahead", wrong_at(labels, range(0, 12, 2))),
        contender(kinds[1], "behind", wrong_at(labels, range(1, 17, 2))),
    ]
    judged = choose_by(models, labels, preference)
    assert chosen(judged).kind == expected
    (other,) = [kind for kind in judged if not kind.chosen]
    assert other.difference == pytest.approx(-2 / 120 if expected == better else 2 / 120)
    assert other.standard_error == pytest.approx(np.sqrt((14 / 120 - (2 / 120) ** 2) / 120), rel=0.2)


@pytest.mark.parametrize(("preference", "better"), [(ACCURACY, "baseline"), (SIMPLICITY, "trial")])
def test_a_kind_that_is_ahead_by_two_standard_errors_is_told_apart(preference: Preference, better: SingleKind) -> None:
    """One is right on 15 rows where the other is not, and wrong on 4 such rows: 0.092 ahead, by errors of 0.035."""
    labels = balanced_labels()
    rows = {"baseline": range(0, 30, 2), "trial": range(0, 30, 2)} | {better: range(1, 9, 2)}
    models = [contender(kind, kind, wrong_at(labels, rows[kind])) for kind in get_args(SingleKind)]
    assert chosen(choose_by(models, labels, preference)).kind == better


def test_of_kinds_that_are_ahead_of_a_mean_the_best_is_chosen() -> None:
    """The best two are sure where they are wrong, so that their mean is wrong where one of them is."""
    labels = balanced_labels()
    models = [contender("trial", "worst", wrong_at(labels, range(90)))]
    kinds: tuple[SingleKind, SingleKind] = ("baseline", "trial")
    for kind, rows in zip(kinds, (range(6, 30), range(6)), strict=True):
        models.append(contender(kind, kind, wrong_at(labels, rows), np.where(np.isin(np.arange(120), rows), 0.95, 0.5)))
    judged = choose_by(models, labels)
    assert [kind.score for kind in judged] == pytest.approx([0.8, 0.95, 0.75])
    assert chosen(judged).weights == {"trial": 1.0}


@PREFERENCES
@pytest.mark.parametrize("better", ["baseline", "trial"])
def test_a_model_that_is_far_better_is_chosen(better: SingleKind, preference: Preference) -> None:
    """The mean of the best two of four is then no better than the best alone."""
    labels = balanced_labels()
    rng = np.random.default_rng(0)
    kinds: tuple[SingleKind, SingleKind] = ("trial", "baseline") if better == "trial" else ("baseline", "trial")
    models = [
        contender(kinds[1], "far behind", wrong_at_random(labels, 60, rng), 0.9),
        contender(kinds[0], "best", wrong_at_random(labels, 12, rng), 0.7),
        contender(kinds[0], "behind", wrong_at_random(labels, 50, rng), 0.9),
        contender(kinds[1], "as far behind", wrong_at_random(labels, 60, rng), 0.9),
    ]
    judged = choose_by(models, labels, preference)
    assert [kind.kind for kind in judged] == ["baseline", "trial", "ensemble"]
    assert (chosen(judged).kind, chosen(judged).weights) == (better, {"best": 1.0})
    for kind in judged:
        assert kind.chosen or -kind.difference > kind.standard_error > 0


@PREFERENCES
def test_a_mean_that_is_far_better_than_each_is_chosen(preference: Preference) -> None:
    """Two models are each wrong, and unsure, on a quarter of the rows where the other is right and sure."""
    labels = balanced_labels()
    quarter = np.arange(len(labels)) // NUM_CLASSES % 4
    models = [
        contender(
            kind,
            f"wrong in {own}",
            wrong_at(labels, np.flatnonzero(quarter == own)),
            np.where(quarter == own, 0.5, 0.9),
        )
        for own, kind in enumerate[SingleKind](("baseline", "trial"))
    ]
    worst = contender("trial", "worst", wrong_at(labels, np.flatnonzero(quarter != 3)), 0.9)
    best = chosen(choose_by([worst, *models], labels, preference))
    assert (best.kind, best.weights, best.score) == ("ensemble", {"wrong in 0": 0.5, "wrong in 1": 0.5}, 1.0)


@pytest.mark.parametrize(
    ("num_models", "max_members", "num_members"),
    [(2, 5, 0), (3, 1, 0), (3, 5, 2), (4, 5, 2), (5, 2, 2), (9, 3, 3), (9, 8, 5)],
)
def test_a_mean_has_the_best_half_of_the_models_and_no_more_than_it_may(
    num_models: int, max_members: int, num_members: int, few_resamples: None
) -> None:
    labels = balanced_labels(60)
    order = np.random.default_rng(0).permutation(num_models)  # the number of rows that are wrong
    kinds: tuple[SingleKind, SingleKind] = ("baseline", "trial")
    models = [
        contender(kinds[number % 2], str(wrong), wrong_at(labels, range(wrong))) for number, wrong in enumerate(order)
    ]
    weights = {kind.kind: kind.weights for kind in choose_by(models, labels, Preference(max_members))}
    assert ("ensemble" in weights) == (num_members > 0)
    assert weights.get("ensemble", {}) == {str(wrong): pytest.approx(1 / num_members) for wrong in range(num_members)}


def test_a_mean_of_models_that_are_the_best_half_already_may_have_all_of_them() -> None:
    labels = balanced_labels(60)
    models = [contender("trial", str(wrong), wrong_at(labels, range(wrong))) for wrong in range(4)]
    judged = choose_by(models, labels, Preference(max_members=8, at_most_half=False))
    assert [kind.weights for kind in judged if kind.kind == "ensemble"] == [dict.fromkeys("0123", 0.25)]


def test_of_equal_scores_the_likelier_and_then_the_first_is_the_best() -> None:
    labels = balanced_labels(30)
    predicted = wrong_at(labels, [4, 5])
    sure = {"unsure": 0.5, "first": 0.9, "second": 0.9, "third": 0.9, "far behind": 0.9}
    rows = dict.fromkeys(sure, predicted) | {"far behind": wrong_at(labels, range(20))}
    models = [contender("trial", name, rows[name], sure[name]) for name in sure]
    trial, ensemble = choose_by(models, labels, Preference(max_members=2))
    assert trial.weights == {"first": 1.0}
    assert ensemble.weights == {"first": 0.5, "second": 0.5}


def test_the_luckiest_of_equally_good_trials_is_not_chosen_over_a_baseline() -> None:
    """Eight trials and a baseline are each right with a probability of 0.7, independently of each other.

    By the rows they are chosen by, the best of eight trials is ahead by 1.42 standard deviations of a score, 0.065. By
    rows left out, the trials are ahead in half of all draws, and by more than a standard error in a sixth.
    """
    in_sample, out_of_fold, kinds = [], [], []
    for draw in range(40):
        rng = np.random.default_rng(draw)
        labels = rng.integers(NUM_CLASSES, size=100)
        predicted = [wrong_at(labels, np.flatnonzero(rng.random(100) > 0.7)) for _ in range(9)]
        contenders = [contender("baseline", "tfidf", predicted[0])]
        contenders += [contender("trial", f"t{number:03d}", predicted[number]) for number in range(1, 9)]
        judged = choose_by(contenders, labels, Preference(max_members=1, simplest=True), seed=draw)
        accuracy = [float((each == labels).mean()) for each in predicted]
        in_sample.append(max(accuracy[1:]) - accuracy[0])
        out_of_fold.append(judged[1].score - judged[0].score)
        kinds.append(chosen(judged).kind)
        assert judged[0].score == pytest.approx(accuracy[0])
        assert judged[1].weights == {f"t{1 + int(np.argmax(accuracy[1:])):03d}": 1.0}
    assert np.mean(in_sample) > 0.05
    assert np.mean(out_of_fold) < 0.03
    assert kinds.count("baseline") >= 28


def test_the_luckiest_of_equally_good_trials_is_not_chosen_over_a_mean() -> None:
    """Nine trials differ in a tenth of their predictions, which are right as often as wrong.

    By the rows they are chosen by, the best trial alone is ahead of the mean of the best five in half of all draws.
    """
    is_ahead, kinds = [], []
    for draw in range(40):
        rng = np.random.default_rng(draw)
        labels = rng.integers(NUM_CLASSES, size=100)
        rows = [np.flatnonzero(np.append(np.full(20, True), rng.random(10) > 0.5)) for _ in range(9)]
        trials = [contender("trial", str(number), wrong_at(labels, wrong)) for number, wrong in enumerate(rows)]
        judged = choose_by(trials, labels, seed=draw)
        mean = np.mean([trial.probabilities for trial in trials if trial.name in judged[1].weights], axis=0)
        is_ahead.append(min(map(len, rows)) < (mean.argmax(axis=1) != labels).sum())
        kinds.append(chosen(judged).kind)
    assert 16 <= sum(is_ahead) <= 24
    assert kinds.count("ensemble") >= 29


@pytest.mark.parametrize("kind", ["baseline", "trial"])
@PREFERENCES
def test_one_model_is_chosen_without_a_comparison(kind: SingleKind, preference: Preference) -> None:
    labels = balanced_labels(30)
    judged = choose_by([contender(kind, "only", wrong_at(labels, [0, 1, 2]))], labels, preference)
    assert judged == [JudgedKind(kind, {"only": 1.0}, 0.0, pytest.approx(0.9), 0.0, 0.0, chosen=True)]


@pytest.mark.parametrize("kind", ["baseline", "trial"])
@PREFERENCES
def test_models_of_one_kind_are_compared_with_each_other(kind: SingleKind, preference: Preference) -> None:
    labels = balanced_labels(60)
    models = [contender(kind, str(wrong), wrong_at(labels, range(wrong))) for wrong in (30, 3, 20)]
    assert [judged.kind for judged in choose_by(models, labels, preference)] == [kind, "ensemble"]
    (judged,) = choose_by(models, labels, Preference(1, simplest=preference.simplest))
    assert judged == JudgedKind(kind, {"3": 1.0}, 0.0, pytest.approx(0.95), 0.0, 0.0, chosen=True)


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "macro_f1"])
def test_the_score_of_a_single_model_is_scikit_learn_s(metric: str) -> None:
    rng = np.random.default_rng(1)
    labels = rng.choice(NUM_CLASSES, size=150, p=[0.7, 0.2, 0.1])
    predicted = wrong_at_random(labels, 60, rng)
    expected = {
        "accuracy": reference.accuracy_score(labels, predicted),
        "balanced_accuracy": reference.balanced_accuracy_score(labels, predicted),
        "macro_f1": reference.f1_score(labels, predicted, average="macro"),
    }
    (judged,) = choose_by([contender("trial", "t001", predicted)], labels, metric=metric)
    assert judged.score == pytest.approx(expected[metric], abs=1e-12)


@pytest.mark.parametrize("seed", range(2))
def test_scores_are_of_rows_left_out_of_the_choice(seed: int) -> None:
    """The same written with scikit-learn's scores, for a mean of two, by seeded folds."""
    labels = balanced_labels(60)
    models = noisy_models(labels, seed)
    rng = np.random.default_rng(seed)
    scores: dict[str, list[float]] = {"baseline": [], "trial": [], "ensemble": []}
    for _ in range(REPEATS):
        folds = stratified_folds(labels, FOLDS, rng)
        predicted = {kind: np.full(len(labels), -1) for kind in scores}
        for fold in range(FOLDS):
            inside, outside = folds != fold, folds == fold

            def key(model: Contender, inside: NDArray[np.bool_] = inside) -> tuple[float, float]:
                accuracy = reference.accuracy_score(labels[inside], model.probabilities[inside].argmax(axis=1))
                return -round(accuracy, 9), reference.log_loss(labels[inside], model.probabilities[inside])

            ranked = sorted(models, key=key)
            members = {kind: [model for model in ranked if model.kind == kind][:1] for kind in ("baseline", "trial")}
            for kind, best in (members | {"ensemble": ranked[:2]}).items():
                mean = np.mean([model.probabilities[outside] for model in best], axis=0)
                predicted[kind][outside] = mean.argmax(axis=1)
        for kind, classes in predicted.items():
            scores[kind].append(reference.accuracy_score(labels, classes))
    judged = choose_by(models, labels, Preference(max_members=2), seed=seed)
    assert {kind.kind: kind.score for kind in judged} == {
        kind: pytest.approx(np.mean(values)) for kind, values in scores.items()
    }


LABELS_OF = {
    "binary": np.arange(60) % 2,
    "a class with one row": np.array([0] * 40 + [1] * 19 + [2]),
    "classes with one row each": np.array([0] * 50 + list(range(1, 11))),
    "a class without rows": np.array([0] * 30 + [2] * 30),
    "rows of one class": np.zeros(20, np.int64),
    "ten rows": np.arange(10) % 3,
}


@pytest.mark.parametrize("metric", ["macro_f1", "micro_f1_minority"])
@pytest.mark.parametrize("which", LABELS_OF)
def test_any_labels_are_judged_and_the_same_every_time(which: str, metric: str) -> None:
    labels = LABELS_OF[which]
    models = noisy_models(labels, num=3)
    judged = choose_by(models, labels, metric=metric, seed=3)
    assert np.isfinite([(kind.score, kind.difference, kind.standard_error) for kind in judged]).all()
    assert chosen(judged).weights
    assert judged == choose_by(models, labels, metric=metric, seed=3)


def test_a_probability_of_zero_for_the_true_class_is_no_hindrance() -> None:
    labels = balanced_labels(30)
    models = [contender("trial", str(wrong), wrong_at(labels, range(wrong)), 1.0) for wrong in (2, 4, 6)]
    with np.errstate(all="raise"):
        assert choose_by(models, labels)[0].weights == {"2": 1.0}


def test_the_seed_draws_the_folds() -> None:
    labels = balanced_labels(60)
    scores = [tuple(kind.score for kind in choose_by(noisy_models(labels), labels, seed=seed)) for seed in range(4)]
    assert len(set(scores)) > 1


@pytest.mark.parametrize("seed", range(3))
@PREFERENCES
def test_what_is_reported_of_each_kind_agrees(preference: Preference, seed: int) -> None:
    labels = balanced_labels(60)
    models = noisy_models(labels, seed)
    judged = choose_by(models, labels, preference, seed=seed)
    names = {"baseline": {"model 0", "model 1"}, "trial": {"model 2", "model 3", "model 4"}}
    assert [kind.kind for kind in judged] == ["baseline", "trial", "ensemble"]
    best = chosen(judged)
    for kind in judged:
        assert kind.weights.keys() <= names.get(kind.kind, {model.name for model in models})
        assert sum(kind.weights.values()) == pytest.approx(1)
        assert len(kind.weights) == (3 if kind.kind == "ensemble" else 1)
        assert kind.difference == kind.score - best.score
        assert (kind.standard_error == 0) == kind.chosen
    if not preference.simplest:
        assert best is judged[2] or best.score > judged[2].score
        assert all(kind.difference <= kind.standard_error for kind in judged if best is judged[2])


def adjusted_rows(num_rows: int, tau: float, seed: int = 0) -> tuple[list[Contender], Labels]:
    """Return two models of classes 90 : 9 : 1 and rows of equal classes, which logits adjusted by tau predict best.

    The models' log-probabilities are those of a model of balanced classes plus tau times the logarithms of the shares.
    """
    rng = np.random.default_rng(seed)
    labels = balanced_labels(num_rows)
    models = []
    for name in ("first", "second", "third"):
        logits = 2.0 * np.eye(NUM_CLASSES)[labels] + rng.normal(size=(num_rows, NUM_CLASSES))
        probabilities = np.exp(logits + tau * np.log(TRAIN_COUNTS / TRAIN_COUNTS.sum()))
        models.append(Contender(name, "trial", probabilities / probabilities.sum(axis=1, keepdims=True)))
    return models, labels


TRAIN_COUNTS = np.array([90, 9, 1])
ADJUSTED = Preference(max_members=2, adjust=True)


@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_models_of_unequal_classes_are_adjusted_where_rows_have_equal_ones(tau: float) -> None:
    models, labels = adjusted_rows(300, tau)
    judged = choose_by(models, labels, ADJUSTED, "macro_f1", train_counts=TRAIN_COUNTS)
    best = chosen(judged)
    assert best.tau == pytest.approx(tau, abs=0.25)
    without = chosen(choose_by(models, labels, Preference(max_members=2), "macro_f1", train_counts=TRAIN_COUNTS))
    assert without.tau == 0
    assert best.score > without.score + 0.05
    mean = np.mean([model.probabilities for model in models if model.name in best.weights], axis=0)
    predicted = (np.log(mean) - best.tau * np.log(TRAIN_COUNTS / TRAIN_COUNTS.sum())).argmax(axis=1)
    assert best.score == pytest.approx(reference.f1_score(labels, predicted, average="macro"), abs=0.03)


def test_models_of_equal_classes_are_adjusted_by_luck_alone() -> None:
    """By more than one standard error a useless adjustment is ahead in less than a sixth of all draws."""
    taus = []
    for draw in range(30):
        models, labels = adjusted_rows(90, tau=0.0, seed=draw)
        judged = choose_by(models, labels, ADJUSTED, "macro_f1", seed=draw, train_counts=TRAIN_COUNTS)
        taus.append(chosen(judged).tau)
    assert sum(tau > 0 for tau in taus) <= 5


def test_members_are_those_that_are_best_when_adjusted() -> None:
    """Models that say the rare classes too seldom, but rank them well, are better than a balanced one with noise."""
    (first, second, third), labels = adjusted_rows(300, tau=1.0)
    noisy = contender("trial", "noisy", wrong_at(labels, range(110)))
    judged = choose_by([noisy, first, second], labels, ADJUSTED, "macro_f1", train_counts=TRAIN_COUNTS)
    assert chosen(judged).weights.keys() == {"first", "second"}
    plain = choose_by([noisy, first, third], labels, Preference(max_members=1), "macro_f1", train_counts=TRAIN_COUNTS)
    assert chosen(plain).weights == {"noisy": 1.0}
