"""ONNX files: run by ONNX Runtime, on other rows and sizes than those they were traced and checked on."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from support.architectures import ARCHITECTURES, LABELS, save_model, sentences
from tailsweep.trainables.config.trial import HeadConfig, ModelConfig
from tailsweep.trainables.models.classifier import build_classifier
from tailsweep.trainables.models.onnx_export import ONNX_FILE, OnnxError, write_onnx
from torch import Tensor, nn

BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}
MEAN = HeadConfig(pooling="mean")
CASES = [
    ("bert", "native"),
    *((name, "native") for name in ("albert", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet", "roberta")),
    *((name, MEAN) for name in ("bert", "modernbert")),
]
QUICK = CASES[0]


def padded(tokenizer: Any, texts: list[str]) -> tuple[Tensor, Tensor]:
    batch = tokenizer(texts, padding=True, truncation=True, max_length=24, return_tensors="pt")
    return batch["input_ids"], batch["attention_mask"]


@pytest.mark.parametrize(
    ("name", "head"),
    [pytest.param(*case, marks=pytest.mark.thorough if case == QUICK else pytest.mark.slow) for case in CASES],
)
def test_onnx_runtime_gives_the_models_probabilities(name: str, head: Any, tmp_path: Path) -> None:
    source = save_model(BY_NAME[name], tmp_path / "source")
    model = build_classifier(ModelConfig(name=str(source), head=head), LABELS, seed=0).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    texts = sentences(12)
    assert write_onnx(model, tmp_path, [padded(tokenizer, texts[:4])]) < 1e-5
    session = onnxruntime.InferenceSession(tmp_path / ONNX_FILE)
    for others in (texts[4:], texts[5:6], [texts[7], " ".join(texts)]):
        ids, mask = padded(tokenizer, others)
        with torch.no_grad():
            expected = model(input_ids=ids, attention_mask=mask).logits.softmax(1).numpy()
        (logits,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        assert expected.std() > 1e-3
        np.testing.assert_allclose(torch.from_numpy(logits).softmax(1).numpy(), expected, atol=1e-5)


class Drawn(nn.Module):
    """Other logits at every call."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        logits = torch.rand(input_ids.shape[0], 3) * 9 + attention_mask.sum(1, keepdim=True) * 1e-3
        return transformers.modeling_outputs.SequenceClassifierOutput(logits=logits)


class Untraceable(nn.Module):
    """What cannot be traced."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        if torch.compiler.is_exporting():
            raise RuntimeError("one reason\nin two lines")
        return transformers.modeling_outputs.SequenceClassifierOutput(logits=torch.rand(len(input_ids), 3))


@pytest.mark.thorough
@pytest.mark.parametrize(("model", "reason"), [(Drawn(), "would differ"), (Untraceable(), "one reason")])
def test_what_computes_something_else_leaves_no_file(model: nn.Module, reason: str, tmp_path: Path) -> None:
    rows = torch.ones(3, 7, dtype=torch.int64), torch.ones(3, 7, dtype=torch.int64)
    with pytest.raises(OnnxError, match=reason) as raised:
        write_onnx(model.eval(), tmp_path, [rows])
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())
