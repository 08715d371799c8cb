"""Plain good practice, to be measured against: sdpa, random batches padded to their longest row, fused AdamW.

The frozen trunk of a stage is in eval mode, as in this project, and runs in every step. fp32, or bf16 by autocast.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from numpy.typing import NDArray
from tailsweep.trainables.data.tokenized import TokenizedExamples
from tailsweep.trainables.execution.trunk import SplitPoint
from tailsweep.trainables.models.layers import set_train_mode
from torch import Tensor, nn

BATCH_SIZE = 16


def features(
    encoder: nn.Module,
    tokenizer: Any,
    max_length: int,
    split: SplitPoint,
    dtype: str,
    device: torch.device,
    texts: Sequence[str],
) -> list[Tensor]:
    """From texts to a trunk's outputs, batch by batch: padded token states (B, T, H), or their means (B, H)."""
    encoder.eval()
    outputs = []
    with torch.inference_mode(), _autocast(device, dtype):
        for start in range(0, len(texts), BATCH_SIZE):
            batch = tokenizer(
                list(texts[start : start + BATCH_SIZE]),
                padding=True,
                truncation=True,
                max_length=max_length,
                return_tensors="pt",
            ).to(device)
            mask = batch["attention_mask"]
            output = encoder(input_ids=batch["input_ids"], attention_mask=mask, output_hidden_states=split.per_token)
            if split.per_token:
                outputs.append(output.hidden_states[split.layer].cpu())
            else:
                real = mask.unsqueeze(-1)
                outputs.append(((output.last_hidden_state * real).sum(1) / real.sum(1)).cpu())
    return outputs


class Training:
    """A stage's loop; what trains has been set on the model, which is on its device. The rows are tokenized."""

    def __init__(
        self,
        model: nn.Module,
        rows: TokenizedExamples,
        learning_rate: float,
        total_steps: int,
        dtype: str,
        device: torch.device,
    ) -> None:
        self.model = model
        self.rows = rows
        self.dtype = dtype
        self.device = device
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=learning_rate, eps=1e-8, weight_decay=0.0, fused=True)
        self.schedule = transformers.get_linear_schedule_with_warmup(self.optimizer, 0, total_steps)

    def steps(self, batches: Sequence[NDArray[np.int64]]) -> float:
        """A step per batch of row numbers; the mean of their losses."""
        set_train_mode(self.model, frozen_dropout=False)
        total = torch.zeros((), device=self.device)
        for batch in batches:
            input_ids, mask = (torch.from_numpy(array).to(self.device) for array in self.rows.padded(batch))
            labels = torch.from_numpy(self.rows.labels[batch]).to(self.device)
            with _autocast(self.device, self.dtype):
                logits = self.model(input_ids=input_ids, attention_mask=mask).logits
            loss = F.cross_entropy(logits.float(), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
            total += loss.detach()
        return float(total) / len(batches)


def _autocast(device: torch.device, dtype: str) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == "bf16")
