"""Rows translated to another language and back by translation models of ``transformers``, kept for later sweeps.

A text is translated sentence by sentence: that is what such models have learned, and of a longer text they leave parts
out. Every translation is kept in ``<cache>/translations/<key>``, the key being of the model's files and of all that
decides what it says; so a sweep run again translates nothing, and one that was killed goes on after its last batch.

What a sentence's translation is follows from (model, decoding, seed, sentence, number of the copy), whatever else is
in its batch: where tokens are drawn, every sentence has random numbers of its own.
"""

import gc
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from filelock import FileLock
from safetensors import SafetensorError
from tailsweep.trainables.config.data import BackTranslation, BeamSearch, Sampling
from tailsweep.trainables.data.tokenized import length_batches
from tailsweep.trainables.errors import ModelError
from tailsweep.trainables.models.hub import MORE_THAN_TENSORS, quiet_transformers
from tailsweep.trainables.storage.cache import META_FILE, cache_errors, sync_to_disk
from tailsweep.trainables.storage.checksums import file_sha256
from torch import Tensor

FORMAT_VERSION = 1  # of what is kept; part of its key
FOLDER = "translations"  # in the project's cache
MODEL_FILES = ("*.json", "*.safetensors", "*.bin", "*.spm", "*.model", "*.txt")
TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 32768}  # of a batch's sentences, padded
TOP_K = 50  # of the likeliest tokens one is drawn, as generate() does
MOST_WORDS = 80  # of a sentence; longer ones are cut, at a blank
SECONDS_BETWEEN_WORDS = 15  # on how far it is

SENTENCE_ENDS = re.compile(r"((?<=[.!?])\s+|\s*\n\s*)")
Asked = tuple[str, int]  # a sentence and the number of the draw


@contextmanager
def back_translations(
    config: BackTranslation, cache_dir: Path, say: Callable[[str], None]
) -> Iterator[Callable[[Sequence[Asked]], list[str]]]:
    """What makes copies: (text, number of the copy) -> the text by way of pivot ``number % pivots``, and back.

    The models stay loaded within, and afterwards leave the device's memory to those who train.

    Raises (it, and what it gives):
        ModelError: a model cannot be loaded.
        DataError: the cache cannot be written.
    """
    models: dict[str, Translator] = {}
    for pivot in config.pivots:
        for name in (pivot.to, pivot.back):
            models.setdefault(name, Translator(name, config.decoding, config.seed, cache_dir, say))

    def copies(asked: Sequence[Asked]) -> list[str]:
        made = [""] * len(asked)
        for index, pivot in enumerate(config.pivots):
            cut = {}  # of each place in what is asked for, if it is this pivot's turn: sentences, and the draw
            for place, (text, number) in enumerate(asked):
                if number % len(config.pivots) == index:
                    cut[place] = _sentences(text), number // len(config.pivots)
            wanted = [(part, draw) for parts, draw in cut.values() for part in parts if _says_something(part)]
            there = models[pivot.to].translate(wanted)
            back = models[pivot.back].translate((there[one], one[1]) for one in wanted)
            for place, (parts, draw) in cut.items():
                by_way = {part: back.get((there[part, draw], draw), "") for part in parts if _says_something(part)}
                made[place] = "".join(by_way.get(part, part) for part in parts).strip()
        return made

    try:
        yield copies
    finally:
        models.clear()
        gc.collect()
        torch.cuda.empty_cache()


class Translator:
    """One model, with what it has ever translated; loaded when it first meets a sentence that is not among that.

    Args:
        name: a folder or a hub name.
    """

    def __init__(
        self, name: str, decoding: Sampling | BeamSearch, seed: int, cache_dir: Path, say: Callable[[str], None]
    ) -> None:
        self.name = name
        self.decoding = decoding
        self.seed = seed
        self.say = say
        self.cache_dir = cache_dir
        self.source = _folder_of(name)
        identity = [FORMAT_VERSION, _fingerprint(self.source), decoding.model_dump(), TOP_K, MOST_WORDS]
        if isinstance(decoding, Sampling):
            identity.append(seed)
        key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
        self.folder = cache_dir / FOLDER / key

    def translate(self, asked: Iterable[Asked]) -> dict[Asked, str]:
        """Of every sentence and draw the translation; of an empty one none. One process at a time works on a model."""
        wanted = list(dict.fromkeys(one for one in asked if one[0]))
        if not wanted:
            return {}
        with cache_errors(self.cache_dir):
            self.folder.mkdir(parents=True, exist_ok=True)
        with cache_errors(self.cache_dir), FileLock(f"{self.folder}.lock"):
            known = self._read()
            left = [one for one in wanted if one not in known]
            if left:
                known |= self._translate(left)
        return {one: known[one] for one in wanted}

    def _read(self) -> dict[Asked, str]:
        known: dict[Asked, str] = {}
        for path in sorted(self.folder.glob("*.parquet")):
            try:
                columns = pq.read_table(path).to_pydict()
                known |= dict(
                    zip(zip(columns["text"], columns["draw"], strict=True), columns["translation"], strict=True)
                )
            except (pa.ArrowException, KeyError):  # damaged: translated again
                path.unlink()
        return known

    def _translate(self, asked: list[Asked]) -> dict[Asked, str]:
        """Batches of like length, each written when it is done."""
        tokenizer, _ = self._loaded
        texts = [text for text, _ in asked]
        ids = tokenizer(texts, truncation=True, max_length=self._longest)["input_ids"]
        lengths = np.array([len(of_one) for of_one in ids])
        made: dict[Asked, str] = {}
        said = time.monotonic()
        for batch in length_batches(lengths, TOKENS_AT_ONCE[self._device.type]):
            of_batch = [asked[i] for i in batch]
            translations = self._generate([ids[i] for i in batch], of_batch)
            self._write(of_batch, translations)
            made |= dict(zip(of_batch, translations, strict=True))
            if time.monotonic() - said > SECONDS_BETWEEN_WORDS:
                said = time.monotonic()
                self.say(f"translating by {self.name}: {len(made):,} of {len(asked):,} sentences")
        return made

    def _generate(self, ids: list[list[int]], asked: list[Asked]) -> list[str]:
        tokenizer, model = self._loaded
        given = tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(self._device)
        limits = [min(2 * len(of_one) + 10, self._longest - 1) for of_one in ids]
        beams = self.decoding.num_beams if isinstance(self.decoding, BeamSearch) else 1
        processors: list[Any] = []
        if isinstance(self.decoding, Sampling):
            processors.append(_Draws([self._generator(one) for one in asked], self.decoding.temperature))
        processors.append(_EndsInTime(limits, beams, model.generation_config.eos_token_id))
        with torch.inference_mode():
            found = model.generate(
                input_ids=given["input_ids"],
                attention_mask=given["attention_mask"],
                num_beams=beams,
                do_sample=False,
                max_new_tokens=max(limits) + 1,
                logits_processor=transformers.LogitsProcessorList(processors),
            )
        return [str(text).strip() for text in tokenizer.batch_decode(found, skip_special_tokens=True)]

    def _generator(self, asked: Asked) -> torch.Generator:
        text, draw = asked
        digest = hashlib.sha256(f"{self.seed}:{draw}:{text}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def _write(self, asked: list[Asked], translations: list[str]) -> None:
        """The file appears whole or not at all."""
        meta = self.folder / META_FILE
        if not meta.exists():
            told = {"model": self.name, "decoding": self.decoding.model_dump(), "seed": self.seed}
            _appear(meta, lambda path: path.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8"))
        columns = {"text": [t for t, _ in asked], "draw": [d for _, d in asked], "translation": translations}
        name = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]
        _appear(self.folder / f"{name}.parquet", lambda path: pq.write_table(pa.table(columns), path))

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """Tokenizer and model, in eval mode on the device."""
        self.say(f"loading {self.name}, which translates on the {self._device.type}")
        try:
            with quiet_transformers():
                tokenizer = transformers.AutoTokenizer.from_pretrained(self.source, trust_remote_code=False)
                model = transformers.AutoModelForSeq2SeqLM.from_pretrained(
                    self.source, dtype=torch.float32, trust_remote_code=False
                )
        except (OSError, ValueError, KeyError, ImportError, SafetensorError, UnpicklingError) as error:
            raise _cannot_load(self.name, error) from error
        return tokenizer, model.to(self._device).eval()

    @cached_property
    def _longest(self) -> int:
        """Tokens that the model takes."""
        tokenizer, model = self._loaded
        return min(int(tokenizer.model_max_length), int(getattr(model.config, "max_position_embeddings", 512)))

    @property
    def _device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class _Draws(transformers.LogitsProcessor):  # type: ignore[misc]
    """Lets a search for the likeliest token find one that was drawn: the largest of logit / temperature plus Gumbel
    noise is distributed as the softmax (the Gumbel-max trick). Each row has a generator of its own."""

    def __init__(self, generators: list[torch.Generator], temperature: float) -> None:
        self.generators = generators
        self.temperature = temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        likely, tokens = scores.topk(min(TOP_K, scores.shape[1]))
        uniform = torch.stack([torch.rand(likely.shape[1], generator=generator) for generator in self.generators])
        gumbel = -torch.log(-torch.log(uniform)).to(scores.device)
        drawn = tokens.gather(1, (likely / self.temperature + gumbel).argmax(1, keepdim=True))
        return torch.full_like(scores, -torch.inf).scatter(1, drawn, 0.0)


class _EndsInTime(transformers.LogitsProcessor):  # type: ignore[misc]
    """Ends a row that has reached its limit of tokens, by its own limit and not by those of the rows beside it."""

    def __init__(self, limits: list[int], beams: int, end: int | list[int]) -> None:
        self.limits = torch.tensor(limits).repeat_interleave(beams)
        self.end = end if isinstance(end, int) else end[0]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        over = input_ids.shape[1] - 1 >= self.limits.to(scores.device)  # the first token says that it starts
        ended = torch.full_like(scores, -torch.inf)
        ended[:, self.end] = 0.0
        return torch.where(over[:, None], ended, scores)


def _sentences(text: str) -> list[str]:
    """The sentences of a text and what lies between them; put together they are the text."""
    parts = []
    for part in SENTENCE_ENDS.split(text):
        words = re.split(r"(\s+)", part)
        parts += ["".join(words[start : start + 2 * MOST_WORDS]) for start in range(0, len(words), 2 * MOST_WORDS)]
    # A blank where a long sentence was cut would not survive being translated.
    return [piece for part in parts for piece in re.split(r"(\s+\Z)", part) if piece]


def _says_something(part: str) -> bool:
    return any(character.isalpha() for character in part)


def _folder_of(name: str) -> Path:
    """Where a model's files are: the folder itself, or the hub's copy on this machine, fetched if need be."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(MODEL_FILES)))
    except (OSError, ValueError) as error:
        raise _cannot_load(name, error) from error


def _fingerprint(folder: Path) -> str:
    """Of the weights, the configuration and the tokenizer, by their bytes."""
    paths = sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern)})
    return hashlib.sha256(json.dumps([(path.name, file_sha256(path)) for path in paths]).encode()).hexdigest()


def _cannot_load(name: str, error: Exception) -> ModelError:
    lines = str(error).strip().splitlines()
    cause = next((line for line in lines if line.strip()), type(error).__name__)
    if isinstance(error, UnpicklingError):
        cause = MORE_THAN_TENSORS
    remedy = "it must be a folder with a model and its tokenizer, or a name on the hub that this machine can reach"
    if "sentencepiece" in str(error).lower():
        remedy = "its tokenizer needs sentencepiece: pip install sentencepiece"
    elif os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}:
        remedy = "HF_HUB_OFFLINE is set, so that only folders and the hub's local cache can be used"
    return ModelError(f'data.augmentation.pivots: cannot load "{name}": {cause}\n    {remedy}')


def _appear(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file beside its place and rename it there. The caller holds the folder's lock."""
    partial = path.with_name(f".{path.name}.partial")
    write(partial)
    sync_to_disk(partial)
    partial.rename(path)
