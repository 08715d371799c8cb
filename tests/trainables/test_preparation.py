"""Tokenized splits against plain per-row calls of the tokenizer; the cache under damage and under several callers."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tailsweep.trainables import preparation
from tailsweep.trainables.config.data import AuditConfig, DataConfig, DataSource
from tailsweep.trainables.data.splits import DataError, load_splits
from tailsweep.trainables.data.tokenized import TokenizedExamples, fetch_prepared, length_batches, open_prepared
from tailsweep.trainables.preparation import prepare
from tailsweep.trainables.storage.atomic import replace_folder
from tailsweep.trainables.storage.cache import default_cache_dir
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS = ["plasma", "renal", "half", "life", "of", "the", "drug", "##s", "was", "long"]

ANY_TWINS = AuditConfig(max_leaked_fraction=1.0)  # of one file in all roles


def save_tokenizer(folder: Path, words: list[str] = WORDS, **settings: Any) -> str:
    """A tiny WordPiece tokenizer in the manner of BERT's."""
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer_model = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer_model.normalizer = normalizers.Lowercase()
    tokenizer_model.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer_model.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer_model, **{**special, **settings})
    fast.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def tokenizer_path(tmp_path: Path) -> str:
    return save_tokenizer(tmp_path / "tokenizer")


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    """Rows of 2 to 23 tokens in two classes of 48 and 24, cut at 12."""
    rng = np.random.default_rng(0)
    texts = [f"row {i} " + " ".join(rng.choice(WORDS, size=rng.integers(0, 20))) for i in range(72)]
    rows = [{"text": text, "label": "rare" if i % 3 == 0 else "common"} for i, text in enumerate(texts)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return DataConfig(train=str(path), validation=0.25, test=0.25, max_length=12)


def test_tokens_and_labels_are_those_of_each_row_in_order(
    config: DataConfig, tokenizer_path: str, tmp_path: Path
) -> None:
    prepared = prepare(config, tokenizer_path, tmp_path / "cache")
    splits = load_splits(config)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_path)
    for name in ("train", "validation", "test"):
        rows: TokenizedExamples = getattr(prepared, name)
        expected = getattr(splits, name)
        assert len(rows) == len(expected)
        assert rows.labels.tolist() == expected["label"][:]
        for i, text in enumerate(expected["text"]):
            ids = tokenizer(text, truncation=True, max_length=12)["input_ids"]
            assert rows.tokens[rows.offsets[i] : rows.offsets[i + 1]].tolist() == ids
            assert rows.lengths[i] == len(ids)
    assert prepared.label_names == ("common", "rare")
    assert prepared.class_counts.tolist() == [24, 12]
    assert prepared.pad_token_id == 0


def test_arrays_are_read_only_views_of_the_mapped_file(config: DataConfig, tokenizer_path: str, tmp_path: Path) -> None:
    train = prepare(config, tokenizer_path, tmp_path / "cache").train
    for array, dtype in ((train.tokens, np.int32), (train.offsets, np.int64), (train.labels, np.int64)):
        assert array.dtype == dtype
        assert not array.flags.owndata
        assert not array.flags.writeable


def test_truncated_rows_are_counted_and_rows_that_just_fit_are_not(tokenizer_path: str, tmp_path: Path) -> None:
    # [CLS] and [SEP] take two of five tokens: three words fit, the fourth is cut
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "of the drug,a\n" * 3 + "of the long drug,b\n" * 2, encoding="utf-8")
    config = DataConfig(train=str(path), validation=str(path), test=str(path), max_length=5, audit=ANY_TWINS)
    prepared = prepare(config, tokenizer_path, tmp_path / "cache")
    assert prepared.train.lengths.tolist() == [5] * 5
    assert prepared.train.tokens[-5:].tolist() == [2, 8, 9, 13, 3]  # [CLS] of the long [SEP]
    assert prepared.notes[-1] == ("truncated to 5 tokens: 2 of 5 train rows, 2 of 5 validation rows, 2 of 5 test rows")
    meta = json.loads((prepared.folder / "meta.json").read_text(encoding="utf-8"))
    assert meta["splits"]["train"]["truncated"] == 2


def test_the_models_own_limit_caps_the_length_and_says_so(config: DataConfig, tmp_path: Path) -> None:
    path = save_tokenizer(tmp_path / "short", model_max_length=8)
    prepared = prepare(config, path, tmp_path / "cache")
    assert prepared.train.lengths.max() == 8
    assert "data.max_length is 12, but the model takes at most 8 tokens: rows end there" in prepared.notes


def test_a_tokenizer_without_padding_pads_with_what_ends_a_text(config: DataConfig, tmp_path: Path) -> None:
    padless = save_tokenizer(tmp_path / "padless", pad_token=None)
    tokenizer = transformers.AutoTokenizer.from_pretrained(padless)
    assert prepare(config, padless, tmp_path / "cache").pad_token_id == tokenizer.unk_token_id  # it ends none
    ending = save_tokenizer(tmp_path / "ending", pad_token=None, eos_token="[SEP]")
    assert prepare(config, ending, tmp_path / "cache").pad_token_id == tokenizer.sep_token_id


def test_padded_batches_equal_those_of_the_tokenizer(config: DataConfig, tokenizer_path: str, tmp_path: Path) -> None:
    prepared = prepare(config, tokenizer_path, tmp_path / "cache")
    texts = load_splits(config).train["text"][:]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_path)
    for indices in ([3, 0, 35], [35], list(range(36)), [7, 7]):
        expected = tokenizer([texts[i] for i in indices], truncation=True, max_length=12, padding=True)
        input_ids, attention_mask = prepared.train.padded(np.array(indices))
        assert input_ids.dtype == attention_mask.dtype == np.int64
        assert input_ids.tolist() == expected["input_ids"]
        assert attention_mask.tolist() == expected["attention_mask"]


def test_padding_takes_the_given_id_after_the_last_row_too() -> None:
    rows = TokenizedExamples(np.array([5, 6, 7, 8], np.int32), np.array([0, 3, 4]), np.array([0, 1]), pad_token_id=9)
    input_ids, attention_mask = rows.padded(np.array([1, 0]))
    assert input_ids.tolist() == [[8, 9, 9], [5, 6, 7]]
    assert attention_mask.tolist() == [[1, 0, 0], [1, 1, 1]]


@given(st.lists(st.integers(1, 9), max_size=40), st.integers(1, 30))
def test_length_batches_hold_each_row_once_from_the_longest_down(lengths: list[int], max_tokens: int) -> None:
    batches = length_batches(np.array(lengths, dtype=np.int64), max_tokens)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert [lengths[i] for batch in batches for i in batch] == sorted(lengths, reverse=True)
    for batch in batches:
        padded = len(batch) * max(lengths[i] for i in batch)
        assert padded <= max_tokens or len(batch) == 1  # a row that is longer is a batch of its own
    for batch in batches[:-1]:
        assert (len(batch) + 1) * max(lengths[i] for i in batch) > max_tokens


def test_positions_are_those_of_the_rows_tokens_in_the_order_asked_for() -> None:
    rows = TokenizedExamples(np.arange(10, 17, dtype=np.int32), np.array([0, 3, 4, 7]), np.array([0, 1, 0]), 0)
    assert rows.tokens[rows.positions(np.array([2, 0]))].tolist() == [14, 15, 16, 10, 11, 12]
    assert rows.between(1, 3).tokens.tolist() == [13, 14, 15, 16]
    assert rows.between(1, 3).offsets.tolist() == [0, 1, 4]
    assert rows.between(1, 3).labels.tolist() == [1, 0]


# --- the cache ---


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders of the entries that were written, in order."""
    folders: list[Path] = []

    def recorded(folder: Path) -> AbstractContextManager[Path]:
        folders.append(folder)
        return replace_folder(folder)

    monkeypatch.setattr(preparation, "replace_folder", recorded)
    return folders


def test_the_same_rows_are_tokenised_once_also_from_another_file(
    config: DataConfig, tokenizer_path: str, tmp_path: Path, written: list[Path]
) -> None:
    first = prepare(config, tokenizer_path, tmp_path / "cache")
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(Path(config.train).read_bytes())
    again = prepare(config.model_copy(update={"train": str(copy)}), tokenizer_path, tmp_path / "cache")
    assert written == [first.folder] == [again.folder]
    assert again.key == first.key == first.folder.name


def test_other_rows_lengths_and_tokenizers_have_keys_of_their_own(
    config: DataConfig, tokenizer_path: str, tmp_path: Path
) -> None:
    changed = Path(config.train).read_text(encoding="utf-8").replace('"row 5 ', '"row five ')
    (tmp_path / "changed.jsonl").write_text(changed, encoding="utf-8")
    relabelled = Path(config.train).read_text(encoding="utf-8").replace('"rare"', '"scarce"')
    (tmp_path / "relabelled.jsonl").write_text(relabelled, encoding="utf-8")
    variants = [
        (config, tokenizer_path),
        (config.model_copy(update={"train": str(tmp_path / "changed.jsonl")}), tokenizer_path),
        (config.model_copy(update={"train": str(tmp_path / "relabelled.jsonl")}), tokenizer_path),
        (config.model_copy(update={"split_seed": 1}), tokenizer_path),
        (config.model_copy(update={"max_length": 13}), tokenizer_path),
        (config, save_tokenizer(tmp_path / "other", WORDS[::-1])),
    ]
    keys = {prepare(data, path, tmp_path / "cache").key for data, path in variants}
    assert len(keys) == len(variants)


def test_renamed_classes_have_a_key_of_their_own(config: DataConfig, tokenizer_path: str, tmp_path: Path) -> None:
    """Same texts, same class indices, same splits (given, not drawn by class name): only the names differ."""
    renamed = tmp_path / "renamed.jsonl"
    renamed.write_text(Path(config.train).read_text(encoding="utf-8").replace('"rare"', '"scarce"'), encoding="utf-8")
    configs = [
        DataConfig(train=path, validation=path, test=path, max_length=12, audit=ANY_TWINS)
        for path in (config.train, str(renamed))
    ]
    keys = {prepare(config, tokenizer_path, tmp_path / "c").key for config in configs}
    assert len(keys) == 2


def test_a_tokenizer_elsewhere_with_the_same_content_has_the_same_key(config: DataConfig, tmp_path: Path) -> None:
    paths = [save_tokenizer(tmp_path / name) for name in ("one", "two")]
    assert len({prepare(config, path, tmp_path / "cache").key for path in paths}) == 1


def test_several_callers_at_once_tokenise_once(
    config: DataConfig, tokenizer_path: str, tmp_path: Path, written: list[Path]
) -> None:
    # Each call has a file lock of its own, so that threads stand for processes here; the rows are loaded beforehand.
    splits = load_splits(config)
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(4) as threads:
        patch.setattr(preparation, "load_splits", lambda *_: splits)
        keys = list(threads.map(lambda _: prepare(config, tokenizer_path, tmp_path / "cache").key, range(4)))
    assert len(set(keys)) == 1
    assert len(written) == 1


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("train.arrow", truncate),
        ("test.arrow", flip),
        ("validation.arrow", Path.unlink),
        ("meta.json", truncate),
        ("meta.json", Path.unlink),
    ],
)
def test_a_damaged_entry_is_made_again(
    config: DataConfig, tokenizer_path: str, tmp_path: Path, written: list[Path], name: str, damage: Any
) -> None:
    first = prepare(config, tokenizer_path, tmp_path / "cache")
    expected = {path.name: path.read_bytes() for path in first.folder.iterdir()}
    damage(first.folder / name)
    prepare(config, tokenizer_path, tmp_path / "cache")
    assert len(written) == 2
    assert {path.name: path.read_bytes() for path in first.folder.iterdir()} == expected


def test_what_a_killed_process_left_is_cleared(config: DataConfig, tokenizer_path: str, tmp_path: Path) -> None:
    first = prepare(config, tokenizer_path, tmp_path / "cache")
    partial = first.folder.with_name(f".{first.key}.partial")
    first.folder.rename(partial)
    (partial / "rubbish").write_text("x", encoding="utf-8")
    again = prepare(config, tokenizer_path, tmp_path / "cache")
    assert sorted(path.name for path in again.folder.iterdir()) == [
        "meta.json", "test.arrow", "train.arrow", "validation.arrow",
    ]  # fmt: skip
    assert not partial.exists()


def test_an_entry_opens_again_as_it_was_made(config: DataConfig, tokenizer_path: str, tmp_path: Path) -> None:
    entry = prepare(config, tokenizer_path, tmp_path / "cache")
    opened = open_prepared(entry.folder)
    assert (opened.key, opened.label_names, opened.notes) == (entry.key, entry.label_names, entry.notes)
    assert opened.class_counts.tolist() == entry.class_counts.tolist()
    assert opened.test.tokens.tolist() == entry.test.tokens.tolist()


def test_opening_a_truncated_or_missing_entry_says_so(config: DataConfig, tokenizer_path: str, tmp_path: Path) -> None:
    folder = prepare(config, tokenizer_path, tmp_path / "cache").folder
    truncate(folder / "train.arrow")
    with pytest.raises(DataError, match=r"cannot be opened \(train.arrow has \d+ bytes, but was written with \d+\)"):
        open_prepared(folder)
    with pytest.raises(DataError, match=r"cannot be opened"):
        open_prepared(tmp_path / "nowhere")


def test_a_cache_that_cannot_be_written_names_the_setting(
    config: DataConfig, tokenizer_path: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(DataError, match=r"cannot write the cache .*TAILSWEEP_CACHE"):
        prepare(config, tokenizer_path, tmp_path / "file" / "cache")


def test_a_folder_without_a_tokenizer_is_refused(config: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"model.name: cannot load the tokenizer of"):
        prepare(config, str(tmp_path / "empty"), tmp_path / "cache")


def test_the_cache_folder_can_be_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TAILSWEEP_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("TAILSWEEP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir().name == "tailsweep"


# --- a node that lacks them ---


def test_another_machine_fetches_the_published_copy_and_repairs_a_damaged_one(
    config: DataConfig, tokenizer_path: str, tmp_path: Path
) -> None:
    local = prepare(config, tokenizer_path, tmp_path / "here")
    published = DataSource(key=local.key, published=str(local.folder), digest=local.digest)
    nowhere = published.model_copy(update={"published": "/nowhere"})
    there = tmp_path / "there"
    for damage in (lambda: None, lambda: truncate(there / "tokens" / local.key / "train.arrow")):
        damage()
        copy = fetch_prepared(published, there)
        assert copy.folder == there / "tokens" / local.key
        np.testing.assert_array_equal(copy.train.tokens, local.train.tokens)
        assert (copy.label_names, copy.notes) == (local.label_names, local.notes)
    assert [path.name for path in (there / "tokens").iterdir() if not path.name.endswith(".lock")] == [local.key]
    fetch_prepared(nowhere, there)  # nothing to fetch: the copy here is whole
    with pytest.raises(DataError, match="/nowhere"):
        fetch_prepared(nowhere, tmp_path / "elsewhere")


def test_rows_other_than_the_sweeps_are_replaced_or_refused(
    config: DataConfig, tokenizer_path: str, tmp_path: Path
) -> None:
    """Another's entry below the same key, with checksums of its own: whole, but of other rows."""
    local = prepare(config, tokenizer_path, tmp_path / "here")
    there = tmp_path / "there"
    source = DataSource(key=local.key, published=str(local.folder), digest=local.digest)
    exchange_splits(fetch_prepared(source, there).folder)
    np.testing.assert_array_equal(fetch_prepared(source, there).train.tokens, local.train.tokens)

    exchange_splits(local.folder)
    assert fetch_prepared(source, there).digest == local.digest  # the entry here is as it should be
    elsewhere = tmp_path / "elsewhere"
    with pytest.raises(DataError, match="are not those that the sweep began with: restore"):
        fetch_prepared(source, elsewhere)
    assert not (elsewhere / "tokens" / local.key).exists()


def test_a_published_copy_that_is_damaged_is_not_taken_into_the_cache(
    config: DataConfig, tokenizer_path: str, tmp_path: Path
) -> None:
    local = prepare(config, tokenizer_path, tmp_path / "here")
    path = local.folder / "train.arrow"
    content = path.read_bytes()
    path.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
    with pytest.raises(DataError, match="are not those that the sweep began with"):
        fetch_prepared(
            DataSource(key=local.key, published=str(local.folder), digest=local.digest), tmp_path / "elsewhere"
        )


def exchange_splits(folder: Path) -> None:
    """Validation rows for test rows, with the checksums that belong to them."""
    meta = json.loads((folder / "meta.json").read_text())
    splits = meta["splits"]
    splits["validation"], splits["test"] = splits["test"], splits["validation"]
    (folder / "validation.arrow").rename(folder / "aside")
    (folder / "test.arrow").rename(folder / "validation.arrow")
    (folder / "aside").rename(folder / "test.arrow")
    (folder / "meta.json").write_text(json.dumps(meta))
