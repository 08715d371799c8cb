"""Fine-tuning as the official two-stage code and most tutorials write it: our own port, to be measured against.

Rows tokenized one by one and padded to 128; batches of 16; eager attention, with attentions and hidden states returned
whether or not anyone reads them; AdamW parameter by parameter; a frozen trunk that is run in every step, with its
dropout. All in fp32. Where the originals differ (a DataLoader or none, the head), this takes the cheaper way.
"""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from numpy.typing import NDArray
from tailsweep.trainables.execution.trunk import SplitPoint
from torch import Tensor, nn

BATCH_SIZE = 16


def as_eager(model: nn.Module) -> nn.Module:
    """The classifier with attention that can return its weights. Changes the model it is given."""
    transformer = model if isinstance(model, transformers.PreTrainedModel) else model.base_model
    cast(Any, transformer).set_attn_implementation("eager")
    return model


def encode(texts: Sequence[str], tokenizer: Any, max_length: int) -> tuple[Tensor, Tensor]:
    """``input_ids`` and ``attention_mask``, (n, max_length) each, row by row."""
    rows = [
        tokenizer(text, padding="max_length", truncation=True, max_length=max_length, return_tensors="pt")
        for text in texts
    ]
    return torch.cat([row["input_ids"] for row in rows]), torch.cat([row["attention_mask"] for row in rows])


def forward(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Any:
    return model(input_ids=input_ids, attention_mask=attention_mask, output_attentions=True, output_hidden_states=True)


@torch.no_grad()
def features(
    encoder: nn.Module, tokenizer: Any, max_length: int, split: SplitPoint, device: torch.device, texts: Sequence[str]
) -> list[Tensor]:
    """From texts to a trunk's outputs, batch by batch: padded token states (B, L, H), or their means (B, H)."""
    encoder.eval()
    input_ids, attention_mask = encode(texts, tokenizer, max_length)
    outputs = []
    for start in range(0, len(texts), BATCH_SIZE):
        mask = attention_mask[start : start + BATCH_SIZE].to(device)
        output = forward(encoder, input_ids[start : start + BATCH_SIZE].to(device), mask)
        if split.per_token:
            outputs.append(output.hidden_states[split.layer].cpu())
        else:
            states, real = output.last_hidden_state, mask.unsqueeze(-1)
            outputs.append(((states * real).sum(1) / real.sum(1)).cpu())
    return outputs


class Training:
    """A stage's loop; what trains has been set on the model, which is an eager one on its device.

    Args:
        texts, labels: of the rows.
        total_steps: of the linear schedule.
    """

    def __init__(
        self,
        model: nn.Module,
        texts: Sequence[str],
        labels: NDArray[np.int64],
        tokenizer: Any,
        max_length: int,
        learning_rate: float,
        total_steps: int,
        device: torch.device,
    ) -> None:
        self.model = model
        self.device = device
        self.input_ids, self.attention_mask = encode(texts, tokenizer, max_length)
        self.labels = torch.from_numpy(np.array(labels))
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=learning_rate, eps=1e-8, weight_decay=0.0, foreach=False, fused=False
        )
        self.schedule = transformers.get_linear_schedule_with_warmup(self.optimizer, 0, total_steps)

    def steps(self, batches: Sequence[NDArray[np.int64]]) -> float:
        """A step per batch of row numbers; the mean of their losses."""
        self.model.train()
        total = 0.0
        for rows in batches:
            batch = torch.from_numpy(rows)
            output = forward(
                self.model, self.input_ids[batch].to(self.device), self.attention_mask[batch].to(self.device)
            )
            loss = F.cross_entropy(output.logits, self.labels[batch].to(self.device))
            total += loss.item()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
        return total / len(batches)
