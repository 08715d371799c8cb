"""Synthetic examples that balance the classes: how many each class gets, from which rows, and which are rejected.

The texts come from ``eda.py``, ``back_translation.py`` or ``paraphrases.py``; here are the rules they share. A class
below ``target_ratio`` times the largest one gets synthetic examples. They are spread evenly over its training rows:
the counts of two rows differ by one at most.

The text of a synthetic example differs from that of every training, validation and test row and of every other
synthetic example, blanks and case apart. A text of train adds nothing; a text of validation or test is a leak. A
rejected copy is replaced, up to ``MOST_FAILURES`` times in a row. The copies of a row do not depend on the other rows,
unless these have the same texts as its copies.
"""

import hashlib
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tailsweep.trainables.augmentation.back_translation import back_translations
from tailsweep.trainables.augmentation.eda import eda_copy
from tailsweep.trainables.augmentation.lexicon import synonyms_of
from tailsweep.trainables.augmentation.paraphrases import read_paraphrases
from tailsweep.trainables.config.data import EDA, BackTranslation, BeamSearch, DataConfig, Paraphrases
from tailsweep.trainables.data.rows import listed
from tailsweep.trainables.data.splits import Splits
from tailsweep.trainables.errors import DataError

MOST_FAILURES = 10  # copies of a text in a row that are not new; then the text is copied no more
MOST_LISTED = 20  # classes

Copies = Callable[[Sequence[tuple[str, int]]], list[str]]  # texts, each with the number of the copy, from 0 -> copies


@dataclass(frozen=True)
class SyntheticExamples:
    """The n examples that augmentation adds to the training rows."""

    texts: list[str]
    labels: NDArray[np.int64]  # (n,)
    sources: NDArray[np.int64]  # (n,), number of the training row that each is a copy of; -1: not known
    kind: str
    notes: list[str]


def synthesize_examples(splits: Splits, config: DataConfig, cache_dir: Path) -> SyntheticExamples:
    """Synthesize examples from the training rows, as ``config.augmentation`` says.

    Args:
        cache_dir: the project's cache, in which translations are kept.

    Raises:
        InputError: The examples cannot be synthesized with these settings.
    """
    augmentation = config.augmentation
    assert augmentation is not None, "sampling: augmented without data.augmentation"
    texts, labels = list(splits.train["text"]), list(splits.train["label"])
    class_counts = np.bincount(labels, minlength=len(splits.label_names))
    target_size = math.ceil(augmentation.target_ratio * int(class_counts.max()) - 1e-9)  # of every class
    originals = class_counts if augmentation.originals else np.zeros_like(class_counts)
    missing = np.maximum(target_size - originals, 0)
    new_texts = _NewTexts(texts, [*splits.validation["text"], *splits.test["text"]])
    notes, without_source, max_copies = [], 0, None
    if isinstance(augmentation, Paraphrases):
        read = read_paraphrases(config, augmentation, texts, labels, splits.label_names)
        notes, without_source = read.notes, read.without_source
        chosen = _sample(_Pool(read.texts, read.labels, missing, augmentation.seed), new_texts)
        examples = [(read.texts[row], read.labels[row], read.sources[row]) for row in chosen]
    else:
        if isinstance(augmentation, BackTranslation) and isinstance(augmentation.decoding, BeamSearch):
            max_copies = len(augmentation.pivots)
        with (
            _eda(augmentation)
            if isinstance(augmentation, EDA)
            else back_translations(augmentation, cache_dir) as copies
        ):
            copied = _copy_rows(_Pool(texts, labels, missing, augmentation.seed), copies, max_copies, new_texts)
        examples = [(text, labels[source], source) for text, source in copied]
    examples.sort(key=lambda example: example[2])
    synthetic_counts = np.bincount([label for _, label, _ in examples], minlength=len(class_counts)).astype(np.int64)
    sizes = _ClassSizes(splits.label_names, originals, synthetic_counts, target_size)
    if not augmentation.originals and not examples:
        raise DataError(
            f"data.augmentation ({augmentation.kind}) makes no example, and originals is false: there is nothing to "
            "train on"
        )
    notes += _notes(augmentation, sizes, new_texts, without_source)
    return SyntheticExamples(
        texts=[text for text, _, _ in examples],
        labels=np.array([label for _, label, _ in examples], dtype=np.int64),
        sources=np.array([source for _, _, source in examples], dtype=np.int64),
        kind=augmentation.kind,
        notes=notes,
    )


@dataclass(frozen=True)
class _Pool:
    """The rows that examples are drawn from, and how many each class needs."""

    texts: Sequence[str]
    labels: Sequence[int]
    missing: NDArray[np.int64]  # (C,)
    seed: int

    def order(self) -> list[int]:
        """Return the rows in a random order that depends on their texts alone, not on the rows next to them."""
        digests = [hashlib.sha256(f"{self.seed}:{text}".encode()).digest() for text in self.texts]
        return sorted(range(len(self.texts)), key=digests.__getitem__)


@dataclass(frozen=True)
class _ClassSizes:
    """The size of each class before and after augmentation."""

    label_names: Sequence[str]
    training: NDArray[np.int64]  # (C,)
    synthetic: NDArray[np.int64]  # (C,)
    target: int  # of every class


class _NewTexts:
    """The filter that admits each text once, and none of the splits' texts. It counts the rejected ones."""

    def __init__(self, train: Iterable[str], held_out: Iterable[str]) -> None:
        self.taken = {_normalized(text) for text in train}
        self.held_out = {_normalized(text) for text in held_out}
        self.leaks = 0  # texts of validation or test
        self.known = 0  # texts of train or of another synthetic example, and empty ones

    def admits(self, text: str) -> bool:
        """Return whether the text is new; a second call with it returns False."""
        normalized = _normalized(text)
        if normalized in self.held_out:
            self.leaks += 1
        elif normalized in self.taken or not normalized:
            self.known += 1
        else:
            self.taken.add(normalized)
            return True
        return False


def _normalized(text: str) -> str:
    return " ".join(text.split()).casefold()


@contextmanager
def _eda(config: EDA) -> Iterator[Copies]:
    synonyms = synonyms_of(config.lexicon)
    yield lambda requests: [eda_copy(text, number, config, synonyms) for text, number in requests]


def _copy_rows(pool: _Pool, copies: Copies, max_copies: int | None, new_texts: _NewTexts) -> list[tuple[str, int]]:
    """Copy training rows until no class misses any, or no row has another new copy.

    The rows of a class take turns. Copies are numbered by text, so that two rows with one text have different ones.

    Args:
        pool: The training rows.
        copies: Makes the copies.
        max_copies: How many different copies a text can have; None: no such limit.
        new_texts: Decides which copies are kept.

    Returns:
        Each copy with the number of its row.
    """
    texts, labels = pool.texts, pool.labels
    queues = {label: deque[int]() for label in np.flatnonzero(pool.missing).tolist()}
    for row in pool.order():
        if labels[row] in queues:
            queues[labels[row]].append(row)
    remaining = pool.missing.copy()
    numbers: Counter[str] = Counter()  # copies requested so far, by text
    failures: Counter[str] = Counter()  # since the last that was new, by text
    examples: list[tuple[str, int]] = []
    while True:
        requests: list[tuple[int, int]] = []  # row and number of the copy
        for label, queue in queues.items():
            num_requests = min(int(remaining[label]), MOST_FAILURES * len(queue))
            while num_requests and queue:
                row = queue.popleft()
                text = texts[row]
                if numbers[text] == max_copies or failures[text] >= MOST_FAILURES:
                    continue
                requests.append((row, numbers[text]))
                numbers[text] += 1
                queue.append(row)
                num_requests -= 1
        if not requests:
            return examples
        for (row, _), copy in zip(requests, copies([(texts[row], number) for row, number in requests]), strict=True):
            if new_texts.admits(copy):
                examples.append((copy, row))
                remaining[labels[row]] -= 1
                failures[texts[row]] = 0
            else:
                failures[texts[row]] += 1


def _sample(pool: _Pool, new_texts: _NewTexts) -> list[int]:
    """Draw rows of a file: of each class as many as are missing, or all there are."""
    remaining = pool.missing.copy()
    chosen = []
    for row in pool.order():
        if new_texts.admits(pool.texts[row]) and remaining[pool.labels[row]] > 0:
            remaining[pool.labels[row]] -= 1
            chosen.append(row)
    return chosen


def _notes(
    augmentation: EDA | BackTranslation | Paraphrases, sizes: _ClassSizes, new_texts: _NewTexts, without_source: int
) -> list[str]:
    """Describe how many examples each class got, which texts were rejected and why, and which classes stay small."""
    prefix = f"augmentation ({augmentation.kind}): "
    classes = list(zip(sizes.label_names, sizes.training.tolist(), sizes.synthetic.tolist(), strict=True))
    if not sizes.synthetic.any() and (sizes.training >= sizes.target).all():
        return [f"{prefix}no synthetic examples: every class has {sizes.target:,} rows or more"]
    counted = listed([f"{name} {training:,} + {synthetic:,}" for name, training, synthetic in classes], MOST_LISTED)
    notes = [f"{prefix}{sizes.synthetic.sum():,} synthetic examples; training + synthetic of each class: {counted}"]
    rejected = {
        "whose text is in validation or test": new_texts.leaks,
        # Many copies repeat a text, such as a deletion that deletes nothing; they are replaced.
        "whose text is in train or the file before": new_texts.known if isinstance(augmentation, Paraphrases) else 0,
        "whose source is no training row of their class": without_source,
    }
    if any(rejected.values()):
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in rejected.items() if count)
        notes.append(f"{prefix}left out: {reasons}")
    short = [
        f"{name} {training + synthetic:,}"
        for name, training, synthetic in classes
        if training + synthetic < sizes.target
    ]
    if short:
        notes.append(
            f"{prefix}these classes stay below {sizes.target:,} rows: {listed(short, MOST_LISTED)}; "
            f"{_hint(augmentation)}"
        )
    return notes


def _hint(augmentation: EDA | BackTranslation | Paraphrases) -> str:
    if isinstance(augmentation, Paraphrases):
        return "the file has no more for them"
    if isinstance(augmentation, EDA):
        return "their texts are too short, or have too few words that the lexicon knows, for more different copies"
    if isinstance(augmentation.decoding, BeamSearch):
        return "beam search gives a row one copy per pivot: set decoding: {kind: sampling}, or name more pivots"
    return "their rows' translations are the same again and again: raise decoding.temperature, or name more pivots"
