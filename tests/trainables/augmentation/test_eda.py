"""EDA's four operations by hand and on any text; and synonyms that fit the grammar, from either lexicon."""

import re
import sys
from collections import Counter
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tailsweep.trainables.augmentation.eda import STOP_WORDS, WORD, Words, eda_copy
from tailsweep.trainables.augmentation.lexicon import LexiconError, _read, goes_with_article, synonyms_of
from tailsweep.trainables.config.data import EDA

NONE = {"alpha_sr": 0.0, "alpha_ri": 0.0, "alpha_rs": 0.0, "alpha_rd": 0.0}
SYNONYMS = {"big": ("large",), "error": ("blunder", "oversight"), "who": ("whoever",), "who's": ("x",)}
texts = st.text(alphabet="ab cE.,!?'-\n\u00e9\u4e2d9", max_size=40) | st.text(max_size=20)


def known(word: str) -> tuple[str, ...]:
    return SYNONYMS.get(word, ())


def copies(
    text: str, operation: str, alpha: float, count: int = 30, synonyms: Callable[..., tuple[str, ...]] = known
) -> set[str]:
    config = EDA(kind="eda", **{**NONE, f"alpha_{operation}": alpha})
    return {eda_copy(text, number, config, synonyms) for number in range(count)}


# --- the operations


def test_a_synonym_keeps_case_punctuation_and_blanks() -> None:
    assert copies("Big,  (BIG)\tdogs!", "sr", 1.0) == {"Large,  (BIG)\tdogs!"}  # BIG: taken for an abbreviation
    assert copies("BIG DOGS!", "sr", 1.0) == {"LARGE DOGS!"}  # a text all in capitals has none
    assert copies("Who saw it?", "sr", 1.0) == {"Who saw it?"}  # a stop word, whatever the lexicon says


def test_an_article_goes_with_the_synonym_after_it() -> None:
    assert copies("an error", "sr", 1.0) == {"an oversight"}
    assert copies("a error", "sr", 1.0) == {"a blunder"}
    assert copies("an, error", "sr", 1.0) == {"an, blunder", "an, oversight"}
    right = {"a": "dog unit user European one-off usual", "an": "apple hour honest umbrella idea"}
    for article, words in right.items():
        other = "an" if article == "a" else "a"
        for word in words.split():
            assert goes_with_article(word, article), word
            assert not goes_with_article(word, other), word


def test_alpha_is_the_share_of_words_that_are_replaced_at_least_one() -> None:
    text = " ".join(["big"] * 10)
    for alpha, replaced in ((0.01, 1), (0.1, 1), (0.29, 2), (0.3, 3), (1.0, 10)):
        for copy in copies(text, "sr", alpha, 5):
            assert copy.split().count("large") == replaced, alpha


def test_inserted_are_synonyms_of_the_texts_words_as_words_of_their_own() -> None:
    assert copies("big (dogs).", "ri", 0.1) == {"large big (dogs).", "big (large dogs).", "big (dogs large)."}
    assert copies("dogs bark", "ri", 0.1) == {"dogs bark"}  # no word has a synonym
    assert {len(copy.split()) for copy in copies("big dogs bark", "ri", 0.99)} == {5}  # two of three words


def test_swapped_are_two_words_and_punctuation_stays() -> None:
    assert copies("a, b; c.", "rs", 0.1) == {"b, a; c.", "c, b; a.", "a, c; b."}
    assert copies("alone.", "rs", 0.1) == {"alone."}


def test_deleted_words_take_a_blank_with_them_and_leave_punctuation() -> None:
    expected = {
        "one two, three.", "two, three.", "one, three.", "one two,.", ", three.", "one,.", "two,.",
    }  # fmt: skip
    assert copies("one two, three.", "rd", 0.5, 200) == expected
    assert copies("(one) two", "rd", 1.0) == {"() two", "(one)"}  # one word always stays


@given(texts, st.integers(0, 5))
def test_operations_on_any_text(text: str, number: int) -> None:
    def synonyms(word: str) -> tuple[str, ...]:
        return ("syn",) if word != "syn" else ()

    words, others = WORD.findall(text), WORD.sub("", text)
    for operation in ("sr", "ri", "rs", "rd"):
        config = EDA(kind="eda", **{**NONE, f"alpha_{operation}": 0.4})
        copy = eda_copy(text, number, config, synonyms)
        changed = WORD.findall(copy)
        if operation in ("sr", "rs"):
            assert WORD.sub("", copy) == others
            assert len(changed) == len(words)
        if operation == "rs":
            assert Counter(changed) == Counter(words)
        if operation == "ri" and changed != words:
            assert Counter(words) <= Counter(changed)
            assert "".join(WORD.sub("", copy).split()) == "".join(others.split())
        if operation == "rd":
            assert not words or changed
            assert Counter(changed) <= Counter(words) or not words
            assert "".join(WORD.sub("", copy).split()) == "".join(others.split())


@given(texts)
def test_words_and_gaps_are_the_text(text: str) -> None:
    assert str(Words(text)) == text


# --- what decides a copy


def test_a_copy_follows_from_seed_text_and_number() -> None:
    text = "the big error of a big machine in an old house with a big garden"
    config = EDA(kind="eda")
    first = [eda_copy(text, number, config, known) for number in range(8)]
    np.random.default_rng(0).random()
    assert first == [eda_copy(text, number, config, known) for number in range(8)]
    assert first != [eda_copy(text, number, EDA(kind="eda", seed=1), known) for number in range(8)]
    assert len(set(first)) > 6


def test_the_first_four_copies_come_from_the_four_operations() -> None:
    """Told apart by what they do to the number of words, and to which words there are."""
    text = " ".join(["big"] + [f"w{i}" for i in range(40)])
    config = EDA(kind="eda", alpha_ri=0.01, alpha_sr=0.01, alpha_rs=0.01, alpha_rd=0.3)
    for word in ("first", "second", "third"):  # each text has its own order
        kinds = set()
        for number in range(4):
            copy = eda_copy(f"{text} {word}", number, config, known).split()
            if len(copy) != 42:
                kinds.add("ri" if len(copy) == 43 else "rd")
            else:
                kinds.add("sr" if "large" in copy else "rs")
        assert kinds == {"sr", "ri", "rs", "rd"}


def test_an_operation_with_alpha_zero_is_left_out_and_one_must_stay() -> None:
    for copy in copies("one two three four five", "rs", 0.5):
        assert sorted(copy.split()) == sorted(["one", "two", "three", "four", "five"])
    with pytest.raises(ValueError, match="are all 0, but one of them must be above 0"):
        EDA(kind="eda", **NONE)


# --- synonyms


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("began", "commenced started"),
        ("begun", "commenced started"),
        ("chose", "picked selected"),
        ("speaks", "talks"),
        ("stopping", "ceasing halting"),  # stop doubles, halt does not
        ("admitted", "acknowledged conceded"),
        ("dying", "expiring perishing"),
        ("children", "kids youngsters"),
        ("people", "individuals"),
        ("thieves", "burglars robbers"),
        ("hypotheses", "theories"),
        ("quickly", "rapidly speedily swiftly"),
        ("biggest", "largest"),
    ],
)
def test_a_synonym_has_the_inflection_of_its_word(word: str, expected: str) -> None:
    assert synonyms_of("built_in")(word) == tuple(expected.split())


def test_what_a_word_can_be_twice_is_replaced_only_by_what_can_be_both() -> None:
    synonyms = synonyms_of("built_in")
    assert synonyms("walk") == ("stroll",)  # an action and a thing, and so is stroll
    assert synonyms("start") == ()  # to begin, a beginning
    assert synonyms("quit") == ()  # resign, resigned
    assert synonyms("forbidden") == ("prohibited",)
    assert synonyms("help") == ("aid",)  # to assist; assistance


def test_the_lexicon_is_of_hundreds_of_groups_of_plain_words_without_stop_words() -> None:
    groups, inflections = _read()
    synonyms = synonyms_of("built_in")
    words = [word for _, group in groups for word in group]
    assert all(re.fullmatch("[a-z]+", word) for word in words)
    assert len([group for _, group in groups if len(group) > 1]) > 400
    replaced = [(kind, word) for kind, group in groups if len(group) > 1 for word in group if synonyms(word)]
    assert len(replaced) > 1000
    twice = [
        pair for pair, times in Counter((kind, word) for kind, group in groups for word in group).items() if times > 1
    ]
    assert twice == []
    inflected = {form for kind, word in replaced for form in inflections.forms(word, kind).values()}
    assert {synonym for form in inflected for synonym in synonyms(form)} & STOP_WORDS == set()


# --- WordNet


def fake_wordnet() -> ModuleType:
    """Of its interface what is used here: two senses of ``large``, ``begin`` and ``start``, which is a noun as well."""
    counts = {("start", "v"): 20, ("begin", "v"): 50, ("start", "n"): 3, ("large", "a"): 9, ("big", "a"): 9}
    synsets = {
        "v": [["begin", "start", "get_down", "set_about"]],
        "n": [["start", "beginning"]],
        "a": [["large", "big"], ["large", "bombastic", "Orotund"]],
        "r": [],
    }
    bases = {"began": "begin", "begins": "begin", "starts": "start", "started": "start"}

    def lemma(name: str, part: str) -> SimpleNamespace:
        return SimpleNamespace(name=lambda: name, count=lambda: counts.get((name, part), 0))

    def holding(base: str, part: str) -> list[list[str]]:
        return [names for names in synsets[part] if base in names]

    def morphy(form: str, part: str) -> str | None:
        base = bases.get(form, form)
        return base if holding(base, part) else None

    module = ModuleType("nltk.corpus")
    module.wordnet = SimpleNamespace(  # type: ignore[attr-defined]
        ensure_loaded=lambda: None,
        morphy=morphy,
        lemmas=lambda base, part: [lemma(base, part) for _ in holding(base, part)],
        synsets=lambda base, part: [
            SimpleNamespace(lemmas=lambda names=names: [lemma(name, part) for name in names])
            for names in holding(base, part)
        ],
    )
    return module


def test_wordnet_gives_single_words_of_the_commonest_part_of_speech_inflected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nltk", ModuleType("nltk"))
    monkeypatch.setitem(sys.modules, "nltk.corpus", fake_wordnet())
    synonyms = synonyms_of("wordnet")
    assert synonyms("large") == ("big", "bombastic")
    assert synonyms("starts") == ("begins",)  # the action, 20 times to 3
    assert synonyms("began") == ("started",)
    assert synonyms("started") == ()  # began or begun
    assert synonyms("unheard") == ()


def test_missing_wordnet_is_an_error_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nltk", None)
    monkeypatch.setitem(sys.modules, "nltk.corpus", None)
    with pytest.raises(LexiconError, match=r"nltk is not installed: pip install nltk.*or say lexicon: built_in"):
        synonyms_of("wordnet")

    def no_corpus() -> None:
        raise LookupError("Resource wordnet not found.")

    without = fake_wordnet()
    without.wordnet.ensure_loaded = no_corpus
    monkeypatch.setitem(sys.modules, "nltk", ModuleType("nltk"))
    monkeypatch.setitem(sys.modules, "nltk.corpus", without)
    with pytest.raises(LexiconError, match=r"nltk has no such corpus here: python -m nltk.downloader wordnet"):
        synonyms_of("wordnet")
