"""Rows translated to another language and back by translation models of ``transformers``, kept for later sweeps.

A text is translated sentence by sentence: that is what such models have learned, and of a longer text they leave parts
out. Every translation is kept in ``<cache>/translations/<key>``, the key being of the model's files and of all that
decides what it says; so a sweep run again translates nothing, and one that was killed continues after its last batch.

What a sentence's translation is follows from (model, decoding, seed, sentence, number of the copy), whatever else is
in its batch: where tokens are drawn, every sentence has random numbers of its own.
"""

import gc
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError

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
from tailsweep.trainables.errors import ModelError, describe_error
from tailsweep.trainables.models.hub import MORE_THAN_TENSORS, quiet_transformers
from tailsweep.trainables.storage.atomic import replace_file
from tailsweep.trainables.storage.cache import META_FILE, cache_errors
from tailsweep.trainables.storage.checksums import file_sha256
from torch import Tensor

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1  # of what is kept; part of its key
FOLDER = "translations"  # in the project's cache
MODEL_FILES = ("*.json", "*.safetensors", "*.bin", "*.spm", "*.model", "*.txt")
TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 32768}  # of a batch's sentences, padded
TOP_K = 50  # of the likeliest tokens one is drawn, as generate() does
MOST_WORDS = 80  # of a sentence; longer sentences are split at a blank
SECONDS_BETWEEN_WORDS = 15  # on how far it is

SENTENCE_ENDS = re.compile(r"((?<=[.!?])\s+|\s*\n\s*)")
Request = tuple[str, int]  # a sentence, or a text, and the number of the draw


@contextmanager
def back_translations(config: BackTranslation, cache_dir: Path) -> Iterator[Callable[[Sequence[Request]], list[str]]]:
    """Yield a function that copies texts: it translates (text, number) into pivot ``number % pivots`` and back.

    The models stay loaded inside the context. Its end frees the device's memory.

    Raises:
        ModelError: A model cannot be loaded. The function raises it too.
        DataError: The cache cannot be written. The function raises it too.
    """
    models: dict[str, Translator] = {}
    for pivot in config.pivots:
        for name in (pivot.to, pivot.back):
            models.setdefault(name, Translator(name, config.decoding, config.seed, cache_dir))

    def copies(requests: Sequence[Request]) -> list[str]:
        translated = [""] * len(requests)
        for index, pivot in enumerate(config.pivots):
            sentences = {}  # place in `requests`, where it is this pivot's turn -> sentences, and the draw
            for place, (text, number) in enumerate(requests):
                if number % len(config.pivots) == index:
                    sentences[place] = _sentences(text), number // len(config.pivots)
            pending = [(part, draw) for parts, draw in sentences.values() for part in parts if _says_something(part)]
            there = models[pivot.to].translate(pending)
            back = models[pivot.back].translate((there[request], request[1]) for request in pending)
            for place, (parts, draw) in sentences.items():
                by_way = {part: back.get((there[part, draw], draw), "") for part in parts if _says_something(part)}
                translated[place] = "".join(by_way.get(part, part) for part in parts).strip()
        return translated

    try:
        yield copies
    finally:
        models.clear()
        gc.collect()
        torch.cuda.empty_cache()


class Translator:
    """A translation model and its cache of translations. The model is loaded at the first sentence not in the cache.

    Args:
        name: A folder or a hub name.
    """

    def __init__(self, name: str, decoding: Sampling | BeamSearch, seed: int, cache_dir: Path) -> None:
        self.name = name
        self.decoding = decoding
        self.seed = seed
        self.cache_dir = cache_dir
        self.source = _folder_of(name)
        identity = [FORMAT_VERSION, _fingerprint(self.source), decoding.model_dump(), TOP_K, MOST_WORDS]
        if isinstance(decoding, Sampling):
            identity.append(seed)
        key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
        self.folder = cache_dir / FOLDER / key

    def translate(self, requests: Iterable[Request]) -> dict[Request, str]:
        """Return the translation of each request whose sentence is not empty. One process at a time uses a model."""
        pending = list(dict.fromkeys(request for request in requests if request[0]))
        if not pending:
            return {}
        with cache_errors(self.cache_dir):
            self.folder.mkdir(parents=True, exist_ok=True)
        with cache_errors(self.cache_dir), FileLock(f"{self.folder}.lock"):
            known = self._read()
            missing = [request for request in pending if request not in known]
            if missing:
                known |= self._translate(missing)
        return {request: known[request] for request in pending}

    def _read(self) -> dict[Request, str]:
        known: dict[Request, str] = {}
        for path in sorted(self.folder.glob("*.parquet")):
            try:
                columns = pq.read_table(path).to_pydict()
                known |= dict(
                    zip(zip(columns["text"], columns["draw"], strict=True), columns["translation"], strict=True)
                )
            except (pa.ArrowException, KeyError):  # damaged: translated again
                path.unlink()
        return known

    def _translate(self, requests: list[Request]) -> dict[Request, str]:
        """Translate in batches of similar length; write each batch when it is done."""
        tokenizer, _ = self._loaded
        texts = [text for text, _ in requests]
        ids = tokenizer(texts, truncation=True, max_length=self._longest)["input_ids"]
        lengths = np.array([len(token_ids) for token_ids in ids])
        translations: dict[Request, str] = {}
        said = time.monotonic()
        for batch in length_batches(lengths, TOKENS_AT_ONCE[self._device.type]):
            batch_requests = [requests[i] for i in batch]
            batch_translations = self._generate([ids[i] for i in batch], batch_requests)
            self._write(batch_requests, batch_translations)
            translations |= dict(zip(batch_requests, batch_translations, strict=True))
            if time.monotonic() - said > SECONDS_BETWEEN_WORDS:
                said = time.monotonic()
                logger.info(f"translating by {self.name}: {len(translations):,} of {len(requests):,} sentences")
        return translations

    def _generate(self, ids: list[list[int]], requests: list[Request]) -> list[str]:
        tokenizer, model = self._loaded
        given = tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(self._device)
        limits = [min(2 * len(token_ids) + 10, self._longest - 1) for token_ids in ids]
        beams = self.decoding.num_beams if isinstance(self.decoding, BeamSearch) else 1
        processors: list[_Draws | _EndsInTime] = []
        if isinstance(self.decoding, Sampling):
            processors.append(_Draws([self._generator(request) for request in requests], self.decoding.temperature))
        processors.append(_EndsInTime(limits, beams, model.generation_config.eos_token_id))
        with torch.inference_mode():
            generated = model.generate(
                input_ids=given["input_ids"],
                attention_mask=given["attention_mask"],
                num_beams=beams,
                do_sample=False,
                max_new_tokens=max(limits) + 1,
                logits_processor=transformers.LogitsProcessorList(processors),
            )
        return [str(text).strip() for text in tokenizer.batch_decode(generated, skip_special_tokens=True)]

    def _generator(self, request: Request) -> torch.Generator:
        text, draw = request
        digest = hashlib.sha256(f"{self.seed}:{draw}:{text}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def _write(self, requests: list[Request], translations: list[str]) -> None:
        """Write translations to a file of their own, atomically."""
        meta = self.folder / META_FILE
        if not meta.exists():
            description = {"model": self.name, "decoding": self.decoding.model_dump(), "seed": self.seed}
            with replace_file(meta) as partial:
                partial.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        columns = {"text": [t for t, _ in requests], "draw": [d for _, d in requests], "translation": translations}
        name = hashlib.sha256(json.dumps(requests).encode()).hexdigest()[:32]
        with replace_file(self.folder / f"{name}.parquet") as partial:
            pq.write_table(pa.table(columns), partial)

    @cached_property
    def _loaded(self) -> tuple[transformers.PreTrainedTokenizerBase, transformers.PreTrainedModel]:
        """The tokenizer, and the model in eval mode on the device."""
        logger.info(f"loading {self.name}, which translates on the {self._device.type}")
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
        """The largest number of tokens that the model accepts."""
        tokenizer, model = self._loaded
        return min(int(tokenizer.model_max_length), int(getattr(model.config, "max_position_embeddings", 512)))

    @property
    def _device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class _Draws(transformers.LogitsProcessor):  # type: ignore[misc]
    """A processor that turns greedy search into sampling by the Gumbel-max trick.

    The argmax of logit / temperature plus Gumbel noise is distributed as the softmax. Each row has its own generator.
    """

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
    """A processor that ends each row at the row's own limit of tokens."""

    def __init__(self, limits: list[int], beams: int, end: int | list[int]) -> None:
        self.limits = torch.tensor(limits).repeat_interleave(beams)
        self.end = end if isinstance(end, int) else end[0]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        over = input_ids.shape[1] - 1 >= self.limits.to(scores.device)  # the first token says that it starts
        ended = torch.full_like(scores, -torch.inf)
        ended[:, self.end] = 0.0
        return torch.where(over[:, None], ended, scores)


def _sentences(text: str) -> list[str]:
    """Split a text into its sentences and the blanks between them; joined, they are the text."""
    parts = []
    for part in SENTENCE_ENDS.split(text):
        words = re.split(r"(\s+)", part)
        parts += ["".join(words[start : start + 2 * MOST_WORDS]) for start in range(0, len(words), 2 * MOST_WORDS)]
    # A blank where a long sentence was split would not survive translation.
    return [piece for part in parts for piece in re.split(r"(\s+\Z)", part) if piece]


def _says_something(part: str) -> bool:
    return any(character.isalpha() for character in part)


def _folder_of(name: str) -> Path:
    """Return the folder of a model: the named folder, or the hub's local copy, downloaded if needed."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(MODEL_FILES)))
    except (OSError, ValueError) as error:
        raise _cannot_load(name, error) from error


def _fingerprint(folder: Path) -> str:
    """Return a SHA-256 of the bytes of the weights, the configuration and the tokenizer."""
    paths = sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern)})
    return hashlib.sha256(json.dumps([(path.name, file_sha256(path)) for path in paths]).encode()).hexdigest()


def _cannot_load(name: str, error: Exception) -> ModelError:
    cause = describe_error(error)
    if isinstance(error, UnpicklingError):
        cause = MORE_THAN_TENSORS
    hint = "it must be a folder with a model and its tokenizer, or a name on the hub that this machine can reach"
    if "sentencepiece" in str(error).lower():
        hint = "its tokenizer needs sentencepiece: pip install sentencepiece"
    elif os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}:
        hint = "HF_HUB_OFFLINE is set, so that only folders and the hub's local cache can be used"
    return ModelError(f'data.augmentation.pivots: cannot load "{name}": {cause}\n    {hint}')
