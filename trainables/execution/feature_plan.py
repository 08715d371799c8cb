"""Plan which outputs of a frozen trunk are cached for a stage, and under which key, or why the trunk must run live."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from tailsweep.trainables import report_keys
from tailsweep.trainables.config.trial import StageConfig
from tailsweep.trainables.data.tokenized import PreparedData, TokenizedExamples
from tailsweep.trainables.execution.packed import PackedClassifier, why_not_packable
from tailsweep.trainables.execution.packing import Packing
from tailsweep.trainables.execution.probe import BF16_TOLERANCE, difference, one_by_one, probe_rows, probing
from tailsweep.trainables.execution.probe import TOLERANCE as PATH_TOLERANCE
from tailsweep.trainables.execution.trunk import (
    TOLERANCE,
    SplitPoint,
    TokenTop,
    VectorTop,
    find_split_point,
    trunk_outputs,
)
from tailsweep.trainables.models.layers import set_trainable
from tailsweep.trainables.storage.cache import checked_key
from torch import Tensor, nn
from transformers import PreTrainedModel

FORMAT_VERSION = 1  # of an entry; part of its key

Dtype = Literal["fp32", "bf16"]
ITEM_BYTES = {"fp32": 4, "bf16": 2}
# Of a model's configuration: what names its classes and where it came from.
_NOT_THE_TRUNKS = {
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "architectures",
    "transformers_version",
    "dtype",
}


@dataclass(frozen=True)
class FeaturePlan:
    """An entry of the cache before it is computed."""

    key: str
    split_point: SplitPoint
    dtype: Dtype
    width: int  # H
    num_rows: int
    counts: tuple[int, int]  # vectors of train and of validation: rows, or tokens where the split point is at tokens
    packed: bool  # False: the architecture takes padded batches only
    training_split: str = report_keys.TRAIN  # which rows those of "train" are, see StageConfig

    def dump(self) -> dict[str, object]:
        """Return the plan as plain values."""
        return asdict(self)

    @classmethod
    def load(cls, dumped: Mapping[str, object]) -> "FeaturePlan":
        """Load a dumped plan and check it.

        Raises:
            DataError: The key, which names a folder, is invalid.
        """
        checked_key(str(dumped["key"]))
        return _PLAN.validate_python(dumped)

    @property
    def num_bytes(self) -> int:
        """The size of the entry on disk."""
        return sum(self.counts) * self.width * ITEM_BYTES[self.dtype]


_PLAN = TypeAdapter(FeaturePlan)


def plan_features(
    model: nn.Module, stage: StageConfig, data: PreparedData, dtype: Dtype, device: torch.device
) -> FeaturePlan | str:
    """Plan what is cached for a stage, or return why its trunk must run live. Sets what trains on the model.

    A probe on two rows decides: the top on the trunk's outputs must give the whole model's logits.
    """
    if stage.frozen_dropout:
        return "frozen_dropout makes the trunk's output random"
    set_trainable(model, stage.trainable)
    split_point = find_split_point(model, stage.trainable)
    if split_point is None:
        return "everything trains"
    split = stage.training_split
    rows, validation = data.rows_of(split), data.validation
    packed = why_not_packable(model, rows, device, "fp32") is None
    if (reason := why_not_splittable(model, split_point, rows, dtype, packed, device)) is not None:
        return reason
    width, identity = _identity(model, split_point, data.key_of(split), dtype)
    counts = [int(part.offsets[-1]) if split_point.per_token else len(part) for part in (rows, validation)]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    num_rows = len(rows) + len(validation)
    return FeaturePlan(key, split_point, dtype, width, num_rows, (counts[0], counts[1]), packed, split)


def why_not_splittable(
    model: nn.Module, split_point: SplitPoint, rows: TokenizedExamples, dtype: Dtype, packed: bool, device: torch.device
) -> str | None:
    """Return why the top alone does not give the model's logits on two rows; None if it does."""
    name = type(model.base_model).__name__
    few = probe_rows(rows, 2)
    try:
        with probing(model):
            expected = whole_model(model, rows, few, packed, device)()
            if difference(expected, one_by_one(model, rows, few, device)) > PATH_TOLERANCE:
                return f"{name} gives other logits in a padded batch"
            states = trunk_outputs(model, split_point, whole_model(model, rows, few, packed, device))
            if dtype == "bf16":
                states = states.bfloat16().float()
            if not split_point.per_token:
                logits = VectorTop(model, split_point)(states)
            elif packed:
                logits = TokenTop(model, split_point)(states[0], Packing.from_lengths(rows.lengths[few], device))
            else:
                mask = torch.from_numpy(rows.padded(few)[1]).to(device)
                logits = TokenTop(model, split_point)(states, mask)
    except Exception as error:  # whatever an architecture makes of the split point, the live trunk is there
        return f"{name} cannot be split at {split_point} ({type(error).__name__})"
    off = difference(logits, expected)
    if not off <= (TOLERANCE if dtype == "fp32" else BF16_TOLERANCE):
        return f"{name}, split at {split_point}, gives other logits (off by {off:.1g})"
    return None


def whole_model(
    model: nn.Module, rows: TokenizedExamples, batch: NDArray[np.int64], packed: bool, device: torch.device
) -> Callable[[], Tensor]:
    """Return a call of the whole model on some rows."""
    if packed:
        ids = torch.from_numpy(rows.tokens[rows.positions(batch)].astype(np.int64)).to(device)
        packing = Packing.from_lengths(rows.lengths[batch], device)
        classifier = PackedClassifier(model)
        return lambda: classifier(ids, packing)
    input_ids, attention_mask = (torch.from_numpy(array).to(device) for array in rows.padded(batch))
    return lambda: model(input_ids=input_ids, attention_mask=attention_mask).logits


def _identity(
    model: nn.Module, split_point: SplitPoint, data_key: str, dtype: Dtype
) -> tuple[int, list[str | int | None]]:
    """Return the vectors' width and the inputs of the entry's key. The data's key covers rows, tokenizer and length."""
    digest = hashlib.sha256()
    config = cast(PreTrainedModel, model.base_model).config
    settings = {k: v for k, v in config.to_dict().items() if not k.startswith("_") and k not in _NOT_THE_TRUNKS}
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, parameter in sorted(model.named_parameters()):
        if not parameter.requires_grad:
            digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\n".encode())
            digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    weights = digest.hexdigest()
    pooling = getattr(model, "pooling", None) if split_point.kind == "pooled" else None  # whose vector it is
    return int(config.hidden_size), [
        FORMAT_VERSION,
        weights,
        data_key,
        split_point.kind,
        split_point.layer,
        pooling,
        dtype,
    ]
