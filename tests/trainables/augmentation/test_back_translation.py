"""Back-translation by tiny, randomly initialized Marian models: whose translation is whose, and what is kept."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from tailsweep.trainables.augmentation import back_translation
from tailsweep.trainables.augmentation.back_translation import TOP_K, Translator, _Draws, _sentences, back_translations
from tailsweep.trainables.augmentation.rebalance import synthesize_examples
from tailsweep.trainables.config.data import BackTranslation, BeamSearch, DataConfig, Sampling
from tailsweep.trainables.data.splits import Splits
from tailsweep.trainables.errors import ModelError
from tailsweep.trainables.models.hub import quiet_transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = ["the", "a", "patient", "drug", "oral", "absorbed", "renal", "urine", "dose", "was", "in", "with", "plasma"]
SAMPLING = Sampling(kind="sampling", temperature=1.0)
BEAMS = BeamSearch(kind="beam_search", num_beams=3)
SENTENCES = ["the patient was in", "a dose", "oral", "renal urine with a drug absorbed in plasma", "the dose was oral"]


def save_marian(folder: Path, seed: int) -> str:
    """A model whose output depends on its input, with a tokenizer of whole words (Marian's own needs sentencepiece)."""
    vocabulary = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer_model = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer_model.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer_model.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer_model, model_max_length=40, **special)
    vocabularies = {
        f"{side}_{name}": size
        for side in ("encoder", "decoder")
        for name, size in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 32))
    }
    config = transformers.MarianConfig(
        vocab_size=len(vocabulary), d_model=16, max_position_embeddings=40, init_std=0.6, pad_token_id=0,
        eos_token_id=1, bos_token_id=None, forced_eos_token_id=None, decoder_start_token_id=0, **vocabularies,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.MarianMTModel(config)
    model.final_logits_bias[0, 1] = 0.5  # so that most translations end before their limit
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Four models, two pivots of them."""
    folder = tmp_path_factory.mktemp("marian")
    return [save_marian(folder / f"m{seed}", seed) for seed in range(4)]


@pytest.fixture
def translator(names: list[str], tmp_path: Path) -> Callable[..., Translator]:
    def make(decoding: Any = SAMPLING, seed: int = 0, name: str = names[0]) -> Translator:
        return Translator(name, decoding, seed, tmp_path / "cache")

    return make


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many sentences each batch that was really translated had."""
    sizes: list[int] = []
    generate = Translator._generate

    def recorded(self: Translator, ids: list[list[int]], asked: list[Any]) -> list[str]:
        sizes.append(len(asked))
        return generate(self, ids, asked)

    monkeypatch.setattr(Translator, "_generate", recorded)
    return sizes


def config(names: Sequence[str], decoding: Any = SAMPLING, **fields: Any) -> BackTranslation:
    pivots = [{"to": to, "back": back} for to, back in zip(names[::2], names[1::2], strict=True)]
    return BackTranslation.model_validate(
        {"kind": "back_translation", "pivots": pivots, "decoding": decoding, **fields}
    )


# --- a translation


def test_beam_search_gives_what_generate_gives_a_sentence_alone(translator: Any, names: list[str]) -> None:
    translations = translator(BEAMS).translate([(text, 0) for text in SENTENCES])
    tokenizer = transformers.AutoTokenizer.from_pretrained(names[0])
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(names[0]).eval()
    for text in SENTENCES:
        given = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        limit = 2 * given["input_ids"].shape[1] + 10  # then, the end
        ids = model.generate(**given, num_beams=3, do_sample=False, max_new_tokens=limit + 1, forced_eos_token_id=1)
        assert translations[text, 0] == tokenizer.decode(ids[0], skip_special_tokens=True)
    assert len(set(translations.values())) > 2


def test_a_draw_has_the_probabilities_of_the_softmax() -> None:
    """Of 4,000 draws, the standard error of a share is 0.008 at most."""
    scores = torch.tensor([[1.0, 0.0, -1.0, 2.0]])
    rows = scores.expand(4000, 4).contiguous()
    drawn = _Draws([torch.Generator().manual_seed(seed) for seed in range(4000)], 0.7)(rows[:, :1], rows).argmax(1)
    shares = torch.bincount(drawn, minlength=4) / 4000
    torch.testing.assert_close(shares, torch.softmax(scores[0] / 0.7, 0), atol=0.032, rtol=0)


def test_only_the_likeliest_tokens_are_drawn() -> None:
    scores = torch.arange(100.0)[None].expand(200, 100).contiguous() / 1000  # nearly uniform
    drawn = _Draws([torch.Generator().manual_seed(seed) for seed in range(200)], 1.0)(scores, scores).argmax(1)
    assert drawn.min() >= 100 - TOP_K
    assert len(drawn.unique()) > 30


@pytest.mark.parametrize("decoding", [SAMPLING, BEAMS], ids=lambda config: config.kind)
def test_a_translation_does_not_depend_on_what_else_is_translated(
    decoding: Any, translator: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = translator(decoding).translate([(text, draw) for draw in (0, 1) for text in SENTENCES])
    for path in (tmp_path / "cache").rglob("*.parquet"):
        path.unlink()
    monkeypatch.setattr(back_translation, "TOKENS_AT_ONCE", {"cpu": 1})  # each alone
    torch.rand(5)
    alone = translator(decoding)
    assert [alone.translate([request])[request] for request in reversed(together)] == list(reversed(together.values()))


def test_draws_and_seeds_give_other_translations(translator: Any) -> None:
    def translation(draw: int, seed: int) -> str:
        text: str = translator(seed=seed).translate([(SENTENCES[3], draw)])[SENTENCES[3], draw]
        return text

    assert len({translation(0, 0), translation(1, 0), translation(0, 1), translation(2, 0)}) == 4


# --- what is kept


def test_what_was_translated_is_not_translated_again_nor_the_model_loaded(
    messages_logged: list[str],
    translator: Any,
    generated: list[int],
    names: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = [(text, 0) for text in SENTENCES]
    monkeypatch.setattr(back_translation, "SECONDS_BETWEEN_WORDS", -1)
    first = translator().translate([*asked, *asked])
    assert generated == [5]
    assert messages_logged == [
        f"loading {names[0]}, which translates on the cpu",
        f"translating by {names[0]}: 5 of 5 sentences",
    ]
    assert translator().translate(asked) == first
    translator().translate([*asked, ("plasma", 0)])
    assert generated == [5, 1]
    assert len(messages_logged) == 4


def test_an_interrupted_run_continues_after_its_last_batch(
    translator: Any, generated: list[int], names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(back_translation, "TOKENS_AT_ONCE", {"cpu": 1})
    asked = [(text, 0) for text in SENTENCES]
    whole = Translator(names[0], SAMPLING, 0, tmp_path / "never interrupted").translate(asked)
    generated.clear()
    write = Translator._write

    def killed(self: Translator, asked: Any, translations: list[str]) -> None:
        if len(generated) == 3:
            raise KeyboardInterrupt
        write(self, asked, translations)

    monkeypatch.setattr(Translator, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        translator().translate(asked)
    monkeypatch.setattr(Translator, "_write", write)
    assert generated == [1, 1, 1]
    assert translator().translate(asked) == whole
    assert generated == [1] * 6  # two were done: the third is made again, and two more


def test_a_damaged_file_is_made_again(translator: Any, generated: list[int]) -> None:
    first = translator().translate([(text, 0) for text in SENTENCES])
    (file,) = translator().folder.glob("*.parquet")
    file.write_bytes(file.read_bytes()[:-40])
    assert translator().translate(list(first)) == first
    assert generated == [5, 5]
    assert pq.read_table(file).num_rows == 5


def test_other_weights_settings_and_seeds_have_keys_of_their_own(
    translator: Any, names: list[str], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in Path(names[0]).iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    base = translator().folder
    assert translator(name=str(copy)).folder == base  # the same files elsewhere
    assert translator(BEAMS, seed=1).folder == translator(BEAMS, seed=2).folder  # which has no use for a seed
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    others = [translator(name=str(copy)), translator(seed=1), translator(BEAMS)]
    others += [translator(Sampling(kind="sampling", temperature=0.9)), translator(BeamSearch(kind="beam_search"))]
    assert len({base, *(other.folder for other in others)}) == 6


# --- rows


def test_copies_go_round_the_pivots_and_back_by_each(names: list[str], tmp_path: Path) -> None:
    text = "the patient was oral. a dose in\n\nplasma 7!  12"
    with back_translations(config(names, BEAMS), tmp_path / "cache") as copies:
        results = copies([(text, 0), (text, 1)])
    sentences = ["the patient was oral.", "a dose in", "plasma 7!"]
    for copy, (to, back) in zip(results, (names[:2], names[2:]), strict=True):
        there, home = (Translator(name, BEAMS, 0, tmp_path / "other") for name in (to, back))
        middle = there.translate([(sentence, 0) for sentence in sentences])
        again = home.translate([(text, 0) for text in middle.values()])
        parts = [again.get((middle[sentence, 0], 0), "") for sentence in sentences]
        assert copy == f"{parts[0]} {parts[1]}\n\n{parts[2]}  12".strip()  # what has no letters stays as it is
    assert results[0] != results[1]


def test_the_draws_of_a_pivot_do_not_depend_on_how_many_pivots_there_are(names: list[str], tmp_path: Path) -> None:
    results = []
    for count, numbers in ((2, (0, 1)), (4, (0, 2))):
        with back_translations(config(names[:count]), tmp_path / str(count)) as copies:
            results.append(copies([(SENTENCES[3], number) for number in numbers]))
    assert results[0] == results[1]


def test_joined_sentences_are_the_text() -> None:
    text = "One. Two?  Three!\n\nfour 1.5 " + "word " * 200 + "end"
    parts = _sentences(text)
    assert "".join(parts) == text
    assert parts[:7] == ["One.", " ", "Two?", "  ", "Three!", "\n\n", "four 1.5 " + " ".join(["word"] * 78)]
    assert max(len(part.split()) for part in parts) == back_translation.MOST_WORDS
    assert _sentences("") == []


def splits(counts: dict[str, int]) -> Splits:
    generator = torch.Generator().manual_seed(0)
    texts, labels = [], []
    for label, count in enumerate(counts.values()):
        for _ in range(count):
            texts.append(" ".join(WORDS[i] for i in torch.randint(len(WORDS), (6,), generator=generator)))
            labels.append(label)
    held_out = datasets.Dataset.from_dict({"text": ["held out"], "label": [0]})
    return Splits(datasets.Dataset.from_dict({"text": texts, "label": labels}), held_out, held_out, tuple(counts), ())


def test_beam_search_makes_one_copy_per_row_and_pivot_and_sampling_as_many_as_are_needed(
    names: list[str], tmp_path: Path, generated: list[int]
) -> None:
    rows = splits({"many": 7, "few": 1})
    synthetic = {}
    for decoding in (BEAMS, SAMPLING):
        data = DataConfig(train="not read here", augmentation=config(names, decoding))
        synthetic[decoding.kind] = synthesize_examples(rows, data, tmp_path / "cache")
    assert len(synthetic["beam_search"].texts) <= 2
    assert (
        synthetic["beam_search"]
        .notes[-1]
        .endswith("beam search gives a row one copy per pivot: set decoding: {kind: sampling}, or name more pivots")
    )
    assert len(synthetic["sampling"].texts) == 6
    assert set(synthetic["sampling"].sources.tolist()) == {7}
    generated.clear()
    data = DataConfig(train="not read here", augmentation=config(names))
    assert synthesize_examples(rows, data, tmp_path / "cache").texts == synthetic["sampling"].texts
    assert generated == []


def test_a_model_that_cannot_be_loaded_is_named_with_a_hint(names: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("no one/none", r'pivots: cannot load "no one/none": .*\n .*HF_HUB_OFFLINE is set'),
        (str(tmp_path / "empty"), r'data.augmentation.pivots: cannot load ".*empty"'),
    ):
        data = DataConfig(train="not read here", augmentation=config([name, names[0]]))
        with pytest.raises(ModelError, match=message):
            synthesize_examples(splits({"many": 3, "few": 2}), data, tmp_path / "cache")
