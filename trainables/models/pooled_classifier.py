"""An encoder with one pooled vector per text and a linear or mlp head, as ``transformers`` opens it.

A copy of this file lies in every model folder that no class of ``transformers`` opens. It needs ``transformers`` alone:

    from transformers import pipeline

    classify = pipeline("text-classification", "path/to/this/folder", trust_remote_code=True)
"""

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class PooledClassifierConfig(PretrainedConfig):  # type: ignore[misc]
    """The encoder's configuration, and pooling and shape of the head."""

    model_type = "tailsweep_pooled_classifier"

    def __init__(
        self, encoder: dict[str, Any] | None = None, head: dict[str, Any] | None = None, **others: Any
    ) -> None:
        self.encoder = encoder or {}
        self.head = head or {}
        super().__init__(**others)


class PooledClassifierForSequenceClassification(PreTrainedModel):  # type: ignore[misc]
    """Token ids and mask (B, T) to logits (B, C)."""

    config_class = PooledClassifierConfig
    base_model_prefix = "encoder"

    def __init__(self, config: PooledClassifierConfig) -> None:
        super().__init__(config)
        encoder_config = AutoConfig.for_model(**config.encoder)
        encoder = AutoModel.from_config(encoder_config)
        encoder = encoder.get_encoder() if encoder_config.is_encoder_decoder else encoder
        self.pooling = config.head["pooling"]
        if self.pooling != "pooler" and getattr(encoder, "pooler", None) is not None:
            encoder.pooler = nn.Identity() if encoder_config.model_type == "squeezebert" else None
        self.encoder = encoder
        self.dropout = nn.Dropout(config.head["dropout"])
        width, hidden = int(encoder_config.hidden_size), int(config.head.get("hidden") or 1)
        self.head = (
            nn.Linear(width, config.num_labels)
            if config.head["kind"] == "linear"
            else nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, config.num_labels))
        )
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **encoder_inputs: Any,
    ) -> SequenceClassifierOutput:
        """Return the logits, and the cross-entropy if there are ``labels``."""
        encoder_inputs.pop("return_dict", None)
        output = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **encoder_inputs)
        states = output.last_hidden_state
        if self.pooling == "pooler":
            pooled = output.pooler_output
        elif self.pooling == "cls":
            pooled = states[:, 0]
        elif attention_mask is None:
            pooled = states.mean(1)
        else:
            mask = attention_mask.unsqueeze(-1).to(states.dtype)
            pooled = (states * mask).sum(1) / mask.sum(1)
        logits = self.head(self.dropout(pooled))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)
