"""Synonyms of a word in the same inflection: ``began`` -> ``commenced, started``, ``mice`` -> nothing.

They come from the built-in lexicon (``synonyms.txt``) or from WordNet, which needs nltk and its corpus. English only.
A word may have several readings: a form of a verb and of a noun, or two tenses. It is replaced only by words that fit
all its readings. This avoids most of the errors of a thesaurus without grammar.
"""

import re
from collections import defaultdict
from collections.abc import Callable
from functools import cache, lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Literal, NamedTuple

from tailsweep.trainables.errors import InputError

if TYPE_CHECKING:
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

Synonyms = Callable[[str], tuple[str, ...]]  # of a word in lower case, sorted; none where it is not known

FILE = "synonyms.txt"
GROUPS = ("verb", "noun", "mass", "adj", "adv")
VOWELS = "aeiou"


class LexiconError(InputError):
    """The error of a sweep that uses WordNet on a machine without it."""


def synonyms_of(lexicon: Literal["built_in", "wordnet"]) -> Synonyms:
    """Return the function that gives a word's synonyms.

    Raises:
        LexiconError: nltk or its corpus is missing.
    """
    return _wordnet() if lexicon == "wordnet" else _built_in()


class Inflections(NamedTuple):
    """The inflections that follow no rule."""

    irregular: dict[str, tuple[str, str]]  # verb: past, past participle
    doubling: set[str]  # verbs that double their last letter, though of several syllables
    plural: dict[str, str]

    def forms(self, word: str, kind: str) -> dict[str, str]:
        """Return each inflection of a base form by its name; mass nouns, adjectives and adverbs have the base alone."""
        if kind == "verb":
            past = participle = _joined(word, "ed", word in self.doubling)
            if word in self.irregular:
                past, participle = self.irregular[word]
            return {
                "base": word,
                "s": _with_s(word),
                "past": past,
                "participle": participle,
                "ing": _joined(word, "ing", word in self.doubling),
            }
        if kind == "noun":
            return {"base": word, "plural": self.plural.get(word) or _with_s(word)}
        return {"base": word}


def _with_s(word: str) -> str:
    if word.endswith("sis"):
        return f"{word[:-2]}es"
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return f"{word}es"
    if word.endswith("y") and word[-2] not in VOWELS:
        return f"{word[:-1]}ies"
    return f"{word}s"


def _joined(word: str, ending: Literal["ed", "ing"], doubles: bool) -> str:
    """``stop`` -> ``stopped``, ``carry`` -> ``carried``, ``die`` -> ``dying``."""
    if doubles or re.fullmatch(r"(?:qu|[^aeiou])*[aeiou][bdfgklmnprstvz]", word):
        return word + word[-1] + ending
    if ending == "ed":
        if word.endswith("e"):
            return f"{word}d"
        return f"{word[:-1]}ied" if word.endswith("y") and word[-2] not in VOWELS else f"{word}ed"
    if word.endswith("ie"):
        return f"{word[:-2]}ying"
    return f"{word[:-1]}ing" if word.endswith("e") and not word.endswith(("ee", "oe", "ye")) else f"{word}ing"


@lru_cache(maxsize=1)
def _read() -> tuple[list[tuple[str, list[str]]], Inflections]:
    """Read the groups of ``synonyms.txt``, each with its kind, and the irregular inflections."""
    groups: list[tuple[str, list[str]]] = []
    inflections = Inflections({}, set(), {})
    file = resources.files("tailsweep.trainables.augmentation").joinpath(FILE)
    for line in file.read_text(encoding="utf-8").splitlines():
        directive, *words = line.split() or ["#"]
        if directive in GROUPS:
            groups.append((directive, words))
        elif directive == "also":
            groups += [(words[0], [word]) for word in words[1:]]
        elif directive == "irregular":
            inflections.irregular[words[0]] = (words[1], words[2])
        elif directive == "doubling":
            inflections.doubling.update(words)
        elif directive == "plural":
            inflections.plural[words[0]] = words[1]
        else:
            assert directive.startswith("#"), line
    return groups, inflections


@lru_cache(maxsize=1)
def _built_in() -> Synonyms:
    groups, inflections = _read()
    readings: dict[str, list[set[str]]] = defaultdict(list)  # form -> its replacements in each reading
    for kind, words in groups:
        forms = [inflections.forms(word, kind) for word in words]
        for inflection in forms[0]:
            group_forms = [forms_of_word[inflection] for forms_of_word in forms]
            for form in group_forms:
                readings[form].append(set(group_forms) - {form})
    known = {form: tuple(sorted(set.intersection(*ways))) for form, ways in readings.items()}
    return lambda word: known.get(word, ())


def _wordnet() -> Synonyms:
    wordnet = _load_wordnet()
    inflections = _read()[1]
    kinds = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}

    @cache
    def synonyms(word: str) -> tuple[str, ...]:
        """Return synonyms for the word's most frequent part of speech and its base form."""
        counts: dict[str, int] = {}  # part of speech: how often WordNet's texts have the word as one
        for part in kinds:
            base = wordnet.morphy(word, part)
            lemmas = [] if base is None else wordnet.lemmas(base, part)
            if lemmas:
                counts[part] = sum(lemma.count() for lemma in lemmas)
        if not counts:
            return ()
        part = max(counts, key=lambda part: counts[part])
        base = wordnet.morphy(word, part)
        names = {lemma.name() for synset in wordnet.synsets(base, part) for lemma in synset.lemmas()}
        words = {name for name in names if re.fullmatch(r"[a-z]+", name)} - {base}
        ways = [name for name, form in inflections.forms(base, kinds[part]).items() if form == word]
        if not ways:
            return ()
        replacing = [{inflections.forms(base_form, kinds[part])[way] for base_form in words} for way in ways]
        return tuple(sorted(set.intersection(*replacing) - {word}))

    return synonyms


def _load_wordnet() -> "WordNetCorpusReader":
    try:
        from nltk.corpus import wordnet
    except ImportError:
        raise LexiconError(
            "data.augmentation.lexicon is wordnet, but nltk is not installed: pip install nltk, then "
            "python -m nltk.downloader wordnet; or say lexicon: built_in"
        ) from None
    try:
        wordnet.ensure_loaded()
    except LookupError:
        raise LexiconError(
            "data.augmentation.lexicon is wordnet, but nltk has no such corpus here: python -m nltk.downloader wordnet "
            "(NLTK_DATA says where nltk looks), or say lexicon: built_in"
        ) from None
    return wordnet


def goes_with_article(word: str, article: str) -> bool:
    """Return whether ``article``, ``a`` or ``an``, may stand before a word."""
    vowel = re.match(r"(?!eu|uni|use|usu|uti|one)[aeiou]|hour|hon(?:est|or|our)|heir", word.lower()) is not None
    return vowel == (article.lower() == "an")
