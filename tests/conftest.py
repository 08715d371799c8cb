"""Fixtures of all tests: no hub, a cache for this run only, tiny models on disk and a small CSV of examples.

The models are randomly initialized, with weights so large that their outputs depend on every token. With the usual
0.02, a model of width 16 gives nearly the same logits for any text, and a test could not detect an error.
"""

import atexit
import gc
import os
import signal
import tempfile

# Before anything imports torch, transformers or datasets, which read their environment once.
_cache = tempfile.TemporaryDirectory(prefix="tailsweep-tests-", ignore_cleanup_errors=True)
_state = tempfile.TemporaryDirectory(prefix="tailsweep-tests-", ignore_cleanup_errors=True)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TAILSWEEP_CACHE"] = _cache.name
os.environ["XDG_STATE_HOME"] = _state.name  # of the key that run directories are signed with
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # in the background of a script, where tests still send Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # below nohup, which the processes of tests would inherit
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads do not help models this small

import csv  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, Protocol  # noqa: E402

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from support.messages import messages  # noqa: E402

hypothesis.settings.register_profile("without a clock", deadline=None)  # a loaded machine is no failure
hypothesis.settings.load_profile("without a clock")

MAX_LENGTH = 40  # tokens of a text that the tiny models accept
HIDDEN_SIZE = 16
NUM_LAYERS = 3
UNUSED_WORDS = 60  # embeddings of the tiny models beyond the vocabulary of their tokenizer: as many as it has

OWN_WORDS = {
    "absorption": "oral absorbed bioavailability peak intestine fasted food tablet tmax gut",
    "excretion": "renal urine feces clearance excreted kidney elimination unchanged bile half",
    "metabolism": "hepatic enzyme oxidation metabolite liver inhibitor substrate cytochrome induced pathway",
}
SHARED_WORDS = (
    "the a of in was and with after dose drug patients study plasma mean hours subjects single daily concentration "
    "level healthy increase reported percent observed about values adults treatment data"
)
ROWS = {"absorption": 55, "excretion": 30, "metabolism": 10}  # of the CSV, by class


# A whole sweep can be the fixture of a test that starts Ray. This ends a test that hangs, not one on a slow machine.
RAY_TIMEOUT = 1200  # seconds

# Plain `pytest` tests one architecture; `make test` runs the same tests on these too.
MORE_ARCHITECTURES = {"roberta", "distilbert", "electra", "albert", "mpnet"}


@pytest.hookimpl(tryfirst=True)  # before tests are selected by their markers
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests of more architectures, give those that start Ray their time, order all, append groups to ids."""
    items.sort(key=_turn)
    for item in items:
        if _strings(item) & MORE_ARCHITECTURES:
            item.add_marker(pytest.mark.thorough)
        if item.get_closest_marker("ray") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(RAY_TIMEOUT))
        if hasattr(config, "workerinput") and (marker := item.get_closest_marker("xdist_group")):
            _append_to_id(item, f"@{marker.args[0]}")


def _turn(item: pytest.Item) -> int:
    """Return the rank of a test: the tests that start Ray first, because they take longest, after `before_ray`."""
    if item.get_closest_marker("before_ray"):
        return 0
    return 1 if item.get_closest_marker("ray") else 2


def _strings(item: pytest.Item) -> set[str]:
    """Return the parameters of a test that are strings."""
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    flat = (name for value in values for name in (value if isinstance(value, tuple) else (value,)))
    return {name for name in flat if isinstance(name, str)}


def _append_to_id(item: pytest.Item, suffix: str) -> None:
    """Append `suffix` to the id of a test in a worker: the ids are all that the scheduler sees.

    xdist 3.8 does the same with `--dist loadgroup`, but assigns `_nodeid`, which pytest 9.2 no longer has: there `_id`
    holds a `NodeId`.
    """
    if hasattr(item, "_id"):
        from _pytest.nodeid import NodeId

        item._id = NodeId.parse(item.nodeid + suffix)
    else:
        item._nodeid = item.nodeid + suffix


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Return a scheduler that keeps the tests of an `xdist_group` in one process and spreads all others."""
    from xdist.scheduler import LoadScopeScheduling

    class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            test, _, group = nodeid.rpartition("@")
            # An `@` within brackets belongs to a parameter.
            return group if test and "]" not in group else nodeid

    return GroupScheduling(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Exempt what was imported from garbage collection, which saves time at every collection and at exit."""
    gc.freeze()
    atexit.register(gc.freeze)


class TinyModel(Protocol):
    """A function that makes tiny models, each once per session."""

    def __call__(self, architecture: str, dropout: float = 0.1) -> Path:
        """Return the folder of a tiny model: config, safetensors and tokenizer.

        Args:
            architecture: bert, roberta, distilbert, modernbert, electra, albert, deberta-v2 or mpnet.
            dropout: the probability of every dropout of the architecture.
        """


@pytest.fixture
def messages_logged() -> Iterator[list[str]]:
    """The messages of the ``tailsweep`` loggers."""
    with messages() as logged:
        yield logged


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    folders: dict[tuple[str, float], Path] = {}

    def folder_of(architecture: str, dropout: float = 0.1) -> Path:
        if (architecture, dropout) not in folders:
            folder = tmp_path_factory.mktemp(architecture) / f"tiny-{architecture}"
            _save_tiny_model(folder, architecture, dropout)
            folders[architecture, dropout] = folder
        return folders[architecture, dropout]

    return folder_of


@pytest.fixture(scope="session")
def rows_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of ``rows.csv`` with the columns text and label: ``ROWS``, shuffled, with words of each class.

    The default ``test`` (0.2) and a ``validation`` of 0.2 leave 33, 18 and 6 training examples.
    """
    rng = np.random.default_rng(0)
    rows = []
    for label, count in ROWS.items():
        for _ in range(count):
            own = rng.choice(OWN_WORDS[label].split(), size=rng.integers(4, 9))
            shared = rng.choice(SHARED_WORDS.split(), size=rng.integers(2, 12))
            rows.append((" ".join(rng.permutation([*own, *shared])), label))
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows(rows[i] for i in rng.permutation(len(rows)))
    return path


def _save_tiny_model(folder: Path, architecture: str, dropout: float) -> None:
    import torch
    import transformers

    tokenizer = _tokenizer(architecture)
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("pad", "cls", "sep")}
    config = transformers.AutoConfig.for_model(
        architecture,
        vocab_size=len(tokenizer),
        bos_token_id=ids["cls_token_id"],
        eos_token_id=ids["sep_token_id"],
        **ids,
        **_settings(architecture, dropout),
    )
    state = torch.get_rng_state()
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            # Also biases and the scales of norms, which start as 0 and 1: an error in any of them must be visible.
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.resize_token_embeddings(len(tokenizer) + UNUSED_WORDS, mean_resizing=False)
    torch.set_rng_state(state)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _settings(architecture: str, dropout: float) -> dict[str, Any]:
    """Return sizes and dropouts by the architecture's names, with the settings of v3 models for DeBERTa-v2."""
    sizes = {
        "hidden_size": HIDDEN_SIZE,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": MAX_LENGTH,
        "initializer_range": 0.3,  # also of the native head, which is drawn when a test builds a classifier
    }
    dropouts = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    match architecture:
        case "bert":
            return sizes | dropouts
        case "roberta":  # its positions are counted from padding_idx + 1 = 2
            return sizes | dropouts | {"max_position_embeddings": MAX_LENGTH + 2, "type_vocab_size": 1}
        case "distilbert":
            dropouts = {"dropout": dropout, "attention_dropout": dropout, "seq_classif_dropout": dropout}
            return {
                "dim": HIDDEN_SIZE, "n_layers": NUM_LAYERS, "n_heads": 2, "hidden_dim": 32,
                "max_position_embeddings": MAX_LENGTH, "initializer_range": 0.3,
            } | dropouts  # fmt: skip
        case "modernbert":
            places = ("embedding_dropout", "attention_dropout", "mlp_dropout", "classifier_dropout")
            return sizes | dict.fromkeys(places, dropout) | {"local_attention": 8, "global_attn_every_n_layers": 2}
        case "deberta-v2":
            relative = {
                "relative_attention": True, "position_buckets": 8, "share_att_key": True, "norm_rel_ebd": "layer_norm",
                "pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "type_vocab_size": 0,
                "pooler_hidden_act": "gelu", "pooler_dropout": dropout,
            }  # fmt: skip
            return sizes | dropouts | relative
        case "electra":
            return sizes | dropouts | {"embedding_size": 8}
        case "mpnet":
            return sizes | dropouts | {"max_position_embeddings": MAX_LENGTH + 2}
        case "albert":
            return sizes | dropouts | {"embedding_size": 8, "classifier_dropout_prob": dropout}
    raise AssertionError(f"no tiny {architecture}")


def _tokenizer(architecture: str) -> Any:
    """Return a WordPiece tokenizer of the words above, with special tokens where the architecture's own has them."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    if architecture == "roberta":
        special = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>"}
    else:
        special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    words = [*special.values(), *SHARED_WORDS.split(), *" ".join(OWN_WORDS.values()).split()]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=special["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    cls, sep = special["cls_token"], special["sep_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}", special_tokens=[(cls, vocabulary[cls]), (sep, vocabulary[sep])]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", "attention_mask"],  # DistilBERT and ModernBERT take no token_type_ids
        **special,
    )
