"""Easy data augmentation (Wei & Zou 2019, arXiv 1901.11196): a copy of a text with some of its words changed.

One of four operations makes a copy: n words are replaced by synonyms; synonyms of n words are inserted somewhere; n
times two words change places; each word is deleted with a certain probability. n is the share alpha of the text's
words, at least 1. As in the authors' code, but that punctuation and blanks stay where they are, that a word keeps the
case of its first letter, and that an article goes with the synonym after it.

What a copy is follows from (seed, text, number of the copy) alone.
"""

import hashlib
import re

import numpy as np
from tailsweep.trainables.augmentation.lexicon import Synonyms, goes_with_article
from tailsweep.trainables.config.data import EDA

WORD = re.compile(r"[^\W_]+(?:['’.-][^\W_]+)*")  # well-known, don't, 3.5
# Too much hangs on these for a synonym, and few have one.
STOP_WORDS = frozenset(
    word
    for words in (
        "a about above after again against all also am an and any are aren't as at be because been before being below",
        "between both but by can can't cannot could couldn't did didn't do does doesn't doing don't down during each",
        "few for from further get got had hadn't has hasn't have haven't having he her here hers herself him himself",
        "his how i i'm if in into is isn't it it's its itself just let like may me might more most must my myself no",
        "nor not now of off on once only or other our ours out over own same shall she should so some such than that",
        "the their theirs them then there these they this those through to too under until up upon us very was wasn't",
        "we were weren't what when where which while who whom whose why will with won't would wouldn't you your yours",
    )
    for word in words.split()
)


class Words:
    """A text as words and the gaps between them: ``gaps[i]`` stands before ``words[i]``, the last gap at the end."""

    def __init__(self, text: str) -> None:
        self.words: list[str] = WORD.findall(text)
        self.gaps: list[str] = WORD.split(text)
        self.capitals = text.isupper()

    def __str__(self) -> str:
        return "".join(gap + word for gap, word in zip(self.gaps, [*self.words, ""], strict=True))

    def insert(self, place: int, word: str) -> None:
        """Insert a word before the one at ``place``, or after the last one."""
        gap = self.gaps[place]
        last = place == len(self.words)
        self.gaps[place : place + 1] = [" ", gap] if last else [gap, " "]
        self.words.insert(place, word)

    def delete(self, place: int) -> None:
        """Delete a word with the blanks on one of its sides; keep the punctuation around it."""
        before, after = self.gaps[place : place + 2]
        if place == 0 or not before[-1:].isspace():
            after = after.lstrip() if place == 0 or before else after
        else:
            before = before.rstrip()
        self.gaps[place : place + 2] = [before + after]
        del self.words[place]

    def as_written(self, word: str, like: str) -> str:
        """Return ``word`` with the first letter's case of ``like``; all in capitals if the whole text is."""
        if self.capitals:
            return word.upper()
        return word[0].upper() + word[1:] if like[0].isupper() else word


def eda_copy(text: str, number: int, config: EDA, synonyms: Synonyms) -> str:
    """Return copy ``number`` (from 0) of a text. It equals the text if the operation has nothing to change.

    A text's first copies come from different operations, in an order that depends on the text.
    """
    operations = {
        _replace: config.alpha_sr, _insert: config.alpha_ri, _swap: config.alpha_rs, _delete: config.alpha_rd
    }  # fmt: skip
    used = [(operation, alpha) for operation, alpha in operations.items() if alpha > 0]
    order = _random(config.seed, text, "order").permutation(len(used))
    operation, alpha = used[order[number % len(used)]]
    changed = Words(text)
    if changed.words:
        operation(changed, alpha, synonyms, _random(config.seed, text, number))
    return str(changed)


def _replace(text: Words, alpha: float, synonyms: Synonyms, rng: np.random.Generator) -> None:
    """Replace n words that are not stop words, each by one of its synonyms."""
    remaining = _count(text, alpha)
    for place in rng.permutation(len(text.words)):
        choices = _synonyms_at(text, place, synonyms)
        if choices and remaining > 0:
            text.words[place] = text.as_written(choices[rng.integers(len(choices))], text.words[place])
            remaining -= 1


def _insert(text: Words, alpha: float, synonyms: Synonyms, rng: np.random.Generator) -> None:
    """Insert n times a synonym of a random word at a random place."""
    known = [choices for place in range(len(text.words)) if (choices := _synonyms_at(text, place, synonyms))]
    for _ in range(_count(text, alpha) if known else 0):
        choices = known[rng.integers(len(known))]
        word = choices[rng.integers(len(choices))]
        text.insert(int(rng.integers(len(text.words) + 1)), word.upper() if text.capitals else word)


def _swap(text: Words, alpha: float, synonyms: Synonyms, rng: np.random.Generator) -> None:
    """Swap two random words n times."""
    for _ in range(_count(text, alpha) if len(text.words) > 1 else 0):
        first, second = rng.choice(len(text.words), size=2, replace=False)
        text.words[first], text.words[second] = text.words[second], text.words[first]


def _delete(text: Words, alpha: float, synonyms: Synonyms, rng: np.random.Generator) -> None:
    """Delete each word with probability alpha; keep at least one."""
    deleted = rng.random(len(text.words)) < alpha
    if deleted.all():
        deleted[rng.integers(len(deleted))] = False
    for place in np.flatnonzero(deleted)[::-1]:
        text.delete(int(place))


def _count(text: Words, alpha: float) -> int:
    return max(1, int(alpha * len(text.words)))


def _synonyms_at(text: Words, place: int, synonyms: Synonyms) -> tuple[str, ...]:
    """Return the synonyms of a word; none of a stop word or of an abbreviation.

    An abbreviation is a word in capitals in a text that is not all capitals.
    """
    word = text.words[place]
    if word.lower() in STOP_WORDS or (len(word) > 1 and word.isupper() and not text.capitals):
        return ()
    choices = synonyms(word.lower())
    article = text.words[place - 1].lower() if place > 0 and text.gaps[place].isspace() else ""
    return tuple(each for each in choices if goes_with_article(each, article)) if article in ("a", "an") else choices


def _random(seed: int, text: str, purpose: int | str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}:{purpose}:{text}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))
