"""Rehearse a model before anything is spent: does it classify, learn, and survive being saved, as a sweep will ask?

What fails here would fail in every trial, or worse, after all of them. The examples are real: the shortest, the longest
and some between. The truth is what ``transformers`` computes of one example by itself.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import torch
import transformers
from filelock import FileLock
from numpy.typing import NDArray
from pydantic import TypeAdapter
from tailsweep.trainables import report_keys
from tailsweep.trainables.config.trial import ModelConfig, Trainable
from tailsweep.trainables.data.tokenized import PreparedData, TokenizedExamples
from tailsweep.trainables.errors import ModelError, describe_error
from tailsweep.trainables.execution.backends import Execution, live_execution
from tailsweep.trainables.execution.probe import TOLERANCE, difference, one_by_one, probe_rows, probing
from tailsweep.trainables.models.classifier import PooledClassifier, load_classifier, save_classifier
from tailsweep.trainables.models.hub import quiet_transformers, resolve, weights_digest
from tailsweep.trainables.models.layers import set_train_mode, set_trainable
from tailsweep.trainables.storage.atomic import replace_file
from tailsweep.trainables.storage.cache import META_FILE, cache_errors
from tailsweep.trainables.storage.json_text import parse_json
from torch import Tensor, nn

VERSION = 1  # of what a rehearsal checks
FOLDER = "rehearsals"  # of the cache
TRAINABLE: TypeAdapter[Trainable] = TypeAdapter(Trainable)

UNFINISHED = "was rehearsed as far as classifying"  # which is not remembered

MEMORY_SHARE = 2.5  # of the weights: gradients, activations of a few examples, a copy while they are saved
DISK_SHARE = 1.2
STEP = 1e-3  # learning rate of the one step that is taken
CPU = torch.device("cpu")


def rehearse_once(
    model: nn.Module, config: ModelConfig, data: PreparedData, trainable: Mapping[str, Trainable], cache_dir: Path
) -> list[str]:
    """Do as :func:`rehearse`, unless that was done before with the same weights, settings and versions.

    Args:
        model: as ``build_classifier`` builds it, on the CPU; of no use afterwards.
        config: of the model.
        data: the examples it is to be trained on.
        trainable: what trains, by the setting that says so.
        cache_dir: the project's cache, which remembers.
    """
    identity = [
        VERSION,
        weights_digest(config.name),
        config.model_dump(mode="json"),
        sorted({json.dumps(TRAINABLE.dump_python(setting, mode="json")) for setting in trainable.values()}),
        [torch.__version__, transformers.__version__],
        [data.pad_token_id, int(data.train.lengths.min()), int(data.train.lengths.max())],
    ]
    folder = cache_dir / FOLDER / hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    if identity[1] is not None:
        with suppress(OSError, ValueError, KeyError, TypeError):
            notes: list[str] = parse_json((folder / META_FILE).read_text(encoding="utf-8"))["notes"]
            return notes
    notes = rehearse(model, config, data, trainable)
    if identity[1] is not None and not any(UNFINISHED in note for note in notes):
        with cache_errors(cache_dir):
            folder.mkdir(parents=True, exist_ok=True)
            meta = {"format_version": VERSION, "model": config.name, "notes": notes}
            with FileLock(f"{folder}.lock"), replace_file(folder / META_FILE) as partial:
                partial.write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    return notes


def rehearse(
    model: nn.Module, config: ModelConfig, data: PreparedData, trainable: Mapping[str, Trainable]
) -> list[str]:
    """Classify, train for one step, save, open and classify again; the model is of no use afterwards.

    Args:
        model: as ``build_classifier`` builds it, on the CPU.
        config: of the model.
        data: the examples it is to be trained on.
        trainable: what trains, by the setting that says so.

    Returns:
        What the user should know: that examples cannot be padded, for instance.

    Raises:
        ModelError: A step fails, or gives other numbers than it must; the message says which, and what helps.
    """
    rows = data.train
    few = probe_rows(rows)
    with _step(config, "classifying"):
        execution = live_execution(model, data, CPU, "fp32")
        expected = _classify(execution, few)
        with probing(model):
            alone = one_by_one(model, rows, few, CPU)
    if not torch.isfinite(alone).all():
        raise ModelError(
            f'model.name: "{config.name}" gives values that are not numbers (NaN): its weights are damaged'
        )
    if (off := difference(expected, alone)) > TOLERANCE:
        raise ModelError(
            f'model.name: "{config.name}" gives other logits in a batch than by itself (off by {off:.1g}): choose '
            "another model, or another model.head"
        )
    _check_pooling(model, config, rows)
    notes = [] if "one length" not in execution.description else [f"{execution.description}; this is slower"]
    if (scarce := _too_little(model)) is not None:
        return [*notes, f"{config.name} {UNFINISHED}: too little {scarce} here for the rest"]
    for name, setting in trainable.items():
        with _step(config, f"training {name}"):
            _train(model, execution, few, setting)
    with _step(config, "saving and opening it"), tempfile.TemporaryDirectory(prefix="tailsweep-") as folder:
        _reopen(model, config, data, execution, few, Path(folder))
    return notes


def _too_little(model: nn.Module) -> str | None:
    """Return what this machine lacks to train the model for a step and to save it; None if nothing."""
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    if psutil.virtual_memory().available < MEMORY_SHARE * size:
        return "memory"
    return "disk" if shutil.disk_usage(tempfile.gettempdir()).free < DISK_SHARE * size else None


@contextmanager
def _step(config: ModelConfig, name: str) -> Iterator[None]:
    """Turn whatever an architecture raises within a step into a :class:`ModelError`."""
    try:
        yield
    except Exception as error:  # any: it is the architecture's
        if isinstance(error, ModelError) and str(error).startswith("model."):
            raise
        head = config.head if isinstance(config.head, str) else f"{config.head.pooling}-pooled"
        raise ModelError(
            f'model.name: {name} fails for "{config.name}" with a {head} head: {describe_error(error)}; choose another '
            "model.head, or another model"
        ) from error


def _classify(execution: Execution, rows: NDArray[np.int64]) -> Tensor:
    """Return the logits of training rows, in eval mode."""
    with probing(execution.module):
        logits = [
            execution.module(*execution.inputs(report_keys.TRAIN, part)).float()
            for part in execution.parts(report_keys.TRAIN, rows)
        ]
    order = np.concatenate(execution.parts(report_keys.TRAIN, rows))
    place = {int(row): number for number, row in enumerate(order)}
    return torch.cat(logits)[[place[int(row)] for row in rows]]


def _check_pooling(model: nn.Module, config: ModelConfig, rows: TokenizedExamples) -> None:
    """Check that the pooled vector depends on the whole row: the first token of a causal model sees only itself."""
    if not isinstance(model, PooledClassifier) or model.pooling == "mean":
        return
    longest = int(np.argmax(rows.lengths))
    input_ids, mask = (torch.from_numpy(array) for array in rows.padded(np.array([longest])))
    other = input_ids[:, :1].expand_as(input_ids)  # the first token, and nothing of the others
    if torch.equal(other, input_ids):
        return
    with probing(model):
        same = torch.equal(
            model(input_ids=input_ids, attention_mask=mask).logits, model(input_ids=other, attention_mask=mask).logits
        )
    if same:
        raise ModelError(
            f'model.head.pooling is {model.pooling}, but the first token of "{config.name}" does not see the others '
            "(it is a causal model), so that every text has the same vector: use mean, or the native head"
        )


def _train(model: nn.Module, execution: Execution, rows: NDArray[np.int64], trainable: Trainable) -> None:
    """Take one step, and check that it reaches what is to be trained."""
    set_trainable(model, trainable)
    set_train_mode(model, frozen_dropout=False)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.zero_grad(set_to_none=True)
    for part in execution.parts(report_keys.TRAIN, rows):
        logits = execution.module(*execution.inputs(report_keys.TRAIN, part)).float()
        # Linear: a cross-entropy of logits that are far apart has no gradient.
        (logits * torch.linspace(-1, 1, logits.shape[1])).mean().backward()
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients or not any(bool(gradient.any()) for gradient in gradients):
        raise ValueError("nothing of it has a gradient")
    if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
        raise ValueError("its gradients are not numbers (NaN)")
    torch.optim.SGD(parameters, lr=STEP).step()
    model.zero_grad(set_to_none=True)


def _reopen(
    model: nn.Module,
    config: ModelConfig,
    data: PreparedData,
    execution: Execution,
    rows: NDArray[np.int64],
    folder: Path,
) -> None:
    """Save the model as its user will get it, open it, and compare."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        resolve(config.name), trust_remote_code=config.trust_remote_code
    )
    expected = _classify(execution, rows)
    names = tuple(f"class {number}" for number in range(expected.shape[1]))
    with quiet_transformers():
        save_classifier(model, tokenizer, folder, config.head, names)
        opened, _ = load_classifier(folder)
    with probing(opened):
        logits = one_by_one(opened, data.train, rows, CPU)
    if (off := difference(logits, expected)) > TOLERANCE:
        raise ValueError(f"opened again it gives other logits (off by {off:.1g})")
