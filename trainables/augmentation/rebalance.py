"""Rows made of the training rows until every class is as large as the largest: how many, of which, and which not.

The texts come from ``eda.py``, ``back_translation.py`` or ``paraphrases.py``; here are the rules they share. A class
below ``up_to`` times the largest one gets rows, each of its training rows as many as any other, to one. A made row has
a text that no training, validation or test row and no other made row has, blanks and case apart: what is in train is
nothing new, and what is in validation or test would be a leak. A copy that has not is made again, up to
``MOST_FAILURES`` times on end. What is made of a row does not depend on the other rows, unless they have its copies'
texts.
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
from tailsweep.trainables.data.splits import Splits, listed

MOST_FAILURES = 10  # copies of a text, one after the other, that are not new: then it is asked for no more
MOST_LISTED = 20  # classes

Copies = Callable[[Sequence[tuple[str, int]]], list[str]]  # texts, each with the number of the copy, from 0 -> copies


@dataclass(frozen=True)
class MadeRows:
    """Rows beside the training rows; n of them."""

    texts: list[str]
    labels: NDArray[np.int64]  # (n,)
    sources: NDArray[np.int64]  # (n,), number of the training row each was made of; -1: not known
    kind: str
    notes: list[str]


def made_rows(splits: Splits, config: DataConfig, cache_dir: Path, say: Callable[[str], None]) -> MadeRows:
    """What ``config.augmentation`` makes of the training rows.

    Args:
        cache_dir: the project's cache, in which translations are kept.
        say: told how the work goes, where it takes long.

    Raises:
        InputError: it cannot be done as asked.
    """
    asked = config.augmentation
    assert asked is not None, "rows: augmented without data.augmentation"
    texts, labels = list(splits.train["text"]), list(splits.train["label"])
    class_counts = np.bincount(labels, minlength=len(splits.label_names))
    size = math.ceil(asked.up_to * int(class_counts.max()) - 1e-9)  # that every class is to reach
    missing = np.maximum(size - class_counts, 0)
    new = _New(texts, [*splits.validation["text"], *splits.test["text"]])
    notes, without_source, most = [], 0, None
    if isinstance(asked, Paraphrases):
        read = read_paraphrases(config, asked, texts, labels, splits.label_names, cache_dir)
        notes, without_source = read.notes, read.without_source
        chosen = _sample(read.texts, read.labels, missing, asked.seed, new)
        made = [(read.texts[row], read.labels[row], read.sources[row]) for row in chosen]
    else:
        if isinstance(asked, BackTranslation) and isinstance(asked.decoding, BeamSearch):
            most = len(asked.pivots)
        with _eda(asked) if isinstance(asked, EDA) else back_translations(asked, cache_dir, say) as copies:
            copied = _copied(texts, labels, missing, asked.seed, copies, most, new)
        made = [(text, labels[source], source) for text, source in copied]
    made.sort(key=lambda row: row[2])
    made_counts = np.bincount([label for _, label, _ in made], minlength=len(class_counts)).astype(np.int64)
    notes += _notes(asked, splits.label_names, class_counts, made_counts, size, new, without_source)
    return MadeRows(
        texts=[text for text, _, _ in made],
        labels=np.array([label for _, label, _ in made], dtype=np.int64),
        sources=np.array([source for _, _, source in made], dtype=np.int64),
        kind=asked.kind,
        notes=notes,
    )


class _New:
    """Which texts may be added: those that nobody has yet. Counts those that may not."""

    def __init__(self, train: Iterable[str], held_out: Iterable[str]) -> None:
        self.taken = {_bare(text) for text in train}
        self.held_out = {_bare(text) for text in held_out}
        self.leaks = 0  # validation or test has it
        self.known = 0  # train has it, or another made row, or there is nothing in it

    def admits(self, text: str) -> bool:
        """Whether the text is new; it is not a second time."""
        bare = _bare(text)
        if bare in self.held_out:
            self.leaks += 1
        elif bare in self.taken or not bare:
            self.known += 1
        else:
            self.taken.add(bare)
            return True
        return False


def _bare(text: str) -> str:
    return " ".join(text.split()).casefold()


@contextmanager
def _eda(config: EDA) -> Iterator[Copies]:
    synonyms = synonyms_of(config.lexicon)
    yield lambda asked: [eda_copy(text, number, config, synonyms) for text, number in asked]


def _copied(
    texts: Sequence[str],
    labels: Sequence[int],
    missing: NDArray[np.int64],
    seed: int,
    copies: Copies,
    most: int | None,
    new: _New,
) -> list[tuple[str, int]]:
    """Copies of training rows, each with its row's number: of each class as many as are missing, where that can be.

    The rows of a class take turns. Copies are numbered by text, so that two rows with one text have different ones.

    Args:
        most: different copies that a text can have; None: no such limit.
    """
    queues = {label: deque[int]() for label in np.flatnonzero(missing).tolist()}
    for row in _order(texts, seed):
        if labels[row] in queues:
            queues[labels[row]].append(row)
    left = missing.copy()
    numbers: Counter[str] = Counter()  # copies asked for so far, by text
    failures: Counter[str] = Counter()  # since the last that was new, by text
    made: list[tuple[str, int]] = []
    while True:
        asked: list[tuple[int, int]] = []  # row and number of the copy
        for label, queue in queues.items():
            wanted = min(int(left[label]), MOST_FAILURES * len(queue))
            while wanted and queue:
                row = queue.popleft()
                text = texts[row]
                if numbers[text] == most or failures[text] >= MOST_FAILURES:
                    continue
                asked.append((row, numbers[text]))
                numbers[text] += 1
                queue.append(row)
                wanted -= 1
        if not asked:
            return made
        for (row, _), copy in zip(asked, copies([(texts[row], number) for row, number in asked]), strict=True):
            if new.admits(copy):
                made.append((copy, row))
                left[labels[row]] -= 1
                failures[texts[row]] = 0
            else:
                failures[texts[row]] += 1


def _sample(texts: Sequence[str], labels: Sequence[int], missing: NDArray[np.int64], seed: int, new: _New) -> list[int]:
    """Rows of a file, of each class as many as are missing, or all there are."""
    left = missing.copy()
    chosen = []
    for row in _order(texts, seed):
        if new.admits(texts[row]) and left[labels[row]] > 0:
            left[labels[row]] -= 1
            chosen.append(row)
    return chosen


def _order(texts: Sequence[str], seed: int) -> list[int]:
    """The rows at random, but by what they say: another row among them leaves the others in their order."""
    return sorted(range(len(texts)), key=lambda row: hashlib.sha256(f"{seed}:{texts[row]}".encode()).digest())


def _notes(
    asked: EDA | BackTranslation | Paraphrases,
    label_names: Sequence[str],
    class_counts: NDArray[np.int64],
    made_counts: NDArray[np.int64],
    size: int,
    new: _New,
    without_source: int,
) -> list[str]:
    """What was made of each class, what was left out and why, and where too little was made."""
    told = f"augmentation ({asked.kind}): "
    classes = list(zip(label_names, class_counts.tolist(), made_counts.tolist(), strict=True))
    if not made_counts.any() and (class_counts >= size).all():
        return [f"{told}nothing was made: every class has {size:,} rows or more"]
    counted = listed([f"{name} {had:,} + {made:,}" for name, had, made in classes], MOST_LISTED)
    notes = [f"{told}{made_counts.sum():,} rows were made; training rows + made rows of each class: {counted}"]
    left_out = {
        "whose text is in validation or test": new.leaks,
        # Of copies, which are made again, many say nothing new: a deletion that happened to delete nothing, say.
        "whose text is in train or the file before": new.known if isinstance(asked, Paraphrases) else 0,
        "whose source is no training row of their class": without_source,
    }
    if any(left_out.values()):
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items() if count)
        notes.append(f"{told}left out: {reasons}")
    short = [f"{name} {had + made:,}" for name, had, made in classes if had + made < size]
    if short:
        notes.append(f"{told}these classes stay below {size:,} rows: {listed(short, MOST_LISTED)}; {_remedy(asked)}")
    return notes


def _remedy(asked: EDA | BackTranslation | Paraphrases) -> str:
    if isinstance(asked, Paraphrases):
        return "the file has no more for them"
    if isinstance(asked, EDA):
        return "their texts are too short, or have too few words that the lexicon knows, for more different copies"
    if isinstance(asked.decoding, BeamSearch):
        return "beam search gives a row one copy per pivot: say decoding: {kind: sampling}, or name more pivots"
    return "their rows' translations are the same again and again: raise decoding.temperature, or name more pivots"
