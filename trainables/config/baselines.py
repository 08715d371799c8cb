"""The names of the baselines; what each is, is in ``trainables/baselines.py``."""

from typing import Literal, get_args

Baseline = Literal["tfidf", "tfidf_balanced", "embeddings", "embeddings_balanced", "svm_balanced"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)
TextBaseline = Literal["tfidf", "tfidf_balanced", "svm_balanced"]  # those that need no encoder
