"""What every test may lean on: no hub, a cache of this run's own, tiny models on disk and a small CSV of rows.

The models are randomly initialised, but with weights large enough that their outputs depend on every token: with the
usual 0.02 a model of width 16 gives nearly the same logits for any row, and a test could not tell right from wrong.
"""

import atexit
import gc
import os
import signal
import tempfile

# Before anything imports torch, transformers or datasets, which read their environment once.
_cache = tempfile.TemporaryDirectory(prefix="tailsweep-tests-", ignore_cleanup_errors=True)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TAILSWEEP_CACHE"] = _cache.name
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # in a script's background, where tests press Ctrl-C all the same
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # models this small gain nothing from threads, and lose on a busy machine

import csv  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, Protocol  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402

MAX_LENGTH = 40  # tokens of a row that the tiny models take
HIDDEN_SIZE = 16
NUM_LAYERS = 3
UNUSED_WORDS = 60  # that the tiny models have an embedding for, after those of their tokenizer; as many as occur

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


# Tests that go on from one sweep stay in one process of the two; those whose own processes take seconds to start stay
# together. (xdist has marks for that, but pytest 9.2 does not tell it of them.)
RAY_FILES = (
    ("test_run_sweep.py", "test_object_store.py", "test_resume.py", "test_security.py"),
    ("test_run_comparison.py", "test_cross_validation.py", "test_faults.py", "test_publish_features.py",
     "test_two_phase.py"),
)  # fmt: skip
WHOLE_FILES = (
    "test_bucket.py", "test_cluster_commands.py", "test_clusters.py", "test_doctor_on_nodes.py",
    "test_wandb_tracker.py", "test_wandb_offline.py",
)  # fmt: skip
FORKING = (
    "test_workers_", "test_two_workers_", "test_of_several_processes_", "test_what_a_killed_process_",
    "test_a_file_that_cannot_be_",
)  # fmt: skip


# What plain `pytest` leaves to `make test`: the same facts for more architectures, and tests that start processes.
MORE_ARCHITECTURES = {"roberta", "distilbert", "electra", "albert", "mpnet"}


def _turn(item: pytest.Item) -> int:
    """The longest first; before them what must not have had a Ray in its process, which keeps its token mode."""
    if item.path.name == "test_client.py":
        return 0
    return 2 if item.get_closest_marker("ray") is None else 1


@pytest.hookimpl(tryfirst=True)  # before markers are selected by
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_turn)
    for item in items:
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        names = {name for given in parameters for name in (given if isinstance(given, tuple) else (given,))
                 if isinstance(name, str)}  # fmt: skip
        if item.name.startswith(FORKING) or item.path.name in WHOLE_FILES or names & MORE_ARCHITECTURES:
            item.add_marker(pytest.mark.thorough)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::", 1)[0]
            for group in RAY_FILES:
                if file.endswith(group):
                    return group[0]
            if any(f"::{name}" in nodeid for name in FORKING):
                return "forking"
            return file if file.endswith(WHOLE_FILES) else nodeid

    return Together(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """All that was imported stays until the end: not looked through at every collection, nor taken apart at exit."""
    gc.freeze()
    atexit.register(gc.freeze)


class TinyModel(Protocol):
    def __call__(self, architecture: str, dropout: float = 0.1) -> Path:
        """The folder of a tiny model: config, safetensors and tokenizer.

        Args:
            architecture: bert, roberta, distilbert, modernbert, electra, albert, deberta-v2 or mpnet.
            dropout: everywhere the architecture has one.
        """


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
    """``rows.csv`` with the columns text and label: ``ROWS``, shuffled, each with words of its class among others.

    The default shares of ``test`` (0.2) and 0.2 for ``validation`` leave 33, 18 and 6 rows to train on.
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
            # Biases and the scales of norms too, which start as 0 and 1: nothing may be lost on the way unseen.
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.resize_token_embeddings(len(tokenizer) + UNUSED_WORDS, mean_resizing=False)
    torch.set_rng_state(state)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _settings(architecture: str, dropout: float) -> dict[str, Any]:
    """What the architecture calls its sizes and dropouts; DeBERTa-v2's other settings are those of its v3 models."""
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
            of_stack = {"dropout": dropout, "attention_dropout": dropout, "seq_classif_dropout": dropout}
            return {
                "dim": HIDDEN_SIZE, "n_layers": NUM_LAYERS, "n_heads": 2, "hidden_dim": 32,
                "max_position_embeddings": MAX_LENGTH, "initializer_range": 0.3,
            } | of_stack  # fmt: skip
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
    """WordPiece over the words above, with the special tokens where the architecture's own tokenizer has them."""
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
