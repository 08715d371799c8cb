from collections import Counter

import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from tailsweep.trainables.data.demo import DEMO_NUM_ROWS, DEMO_SEED, class_sizes, demo_rows


def test_same_seed_gives_the_same_rows_and_another_seed_others() -> None:
    assert demo_rows(200, 1) == demo_rows(200, 1)
    assert demo_rows(200, 1)[0] != demo_rows(200, 2)[0]


def test_class_shares_are_those_of_the_squared_adme_counts() -> None:
    # 4562^2 : 1622^2 : 1253^2 : 1017^2 : 941^2 = 77.3 : 9.8 : 5.8 : 3.8 : 3.3 %; what rounding leaves over is "other"
    expected = {"other": 775, "absorption": 97, "excretion": 58, "distribution": 38, "metabolism": 32}
    assert class_sizes(1000) == expected
    assert Counter(demo_rows(1000, 3)[1]) == expected


@pytest.mark.parametrize("num_rows", [5, 6, 17, 3000])
def test_every_class_occurs_and_rows_are_as_many_as_asked(num_rows: int) -> None:
    texts, labels = demo_rows(num_rows, 0)
    assert len(texts) == len(labels) == num_rows
    assert len(set(labels)) == 5


def test_texts_are_distinct_and_short() -> None:
    texts, _ = demo_rows(DEMO_NUM_ROWS, DEMO_SEED)
    words = [len(text.split()) for text in texts]
    assert len(set(texts)) == len(texts)
    assert 15 <= sum(words) / len(words) <= 25
    assert max(words) <= 45
    assert not any("{" in text for text in texts)


def test_rare_classes_can_be_learnt_but_are_hard() -> None:
    texts, labels = demo_rows(DEMO_NUM_ROWS, DEMO_SEED)
    words = make_pipeline(CountVectorizer(), LogisticRegression(max_iter=300))
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    predicted = cross_val_predict(words, texts, labels, cv=folds)
    rare = ["excretion", "distribution", "metabolism"]
    assert 0.3 < f1_score(labels, predicted, labels=rare, average="macro") < 0.85
    assert f1_score(labels, predicted, labels=["other"], average="macro") > 0.9


def test_label_noise_leaves_foreign_rows_in_rare_classes() -> None:
    """Some rows carry a label none of whose sentences is of that class; no class is free of them."""
    texts, labels = demo_rows(5000, 0)
    marks = {
        "metabolism": ("converted", "oxidized", "circulating", "turnover", "activity is low", "metabolite", "First-")
    }
    labelled = [text for text, label in zip(texts, labels, strict=True) if label == "metabolism"]
    foreign = sum(not any(mark in text for mark in marks["metabolism"]) for text in labelled)
    assert 0.01 < foreign / len(labelled) < 0.15
