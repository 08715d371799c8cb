"""Model folders as plain transformers opens them: the same probabilities, or a refusal."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from support.architectures import ARCHITECTURES, LABELS, save_model, sentences
from tailsweep.trainables.config.trial import HeadConfig, ModelConfig
from tailsweep.trainables.inference import classify
from tailsweep.trainables.models.classifier import build_classifier, load_classifier, save_classifier

NAMES = ["albert", "bert", "bart", "distilbert", "electra", "gpt2", "modernbert", "roberta", "t5", "xlnet"]
QUICK = {"bert", "distilbert", "gpt2", "t5"}
HEADS: dict[str, Any] = {
    "native": "native",
    "mean": HeadConfig(pooling="mean"),
    "cls": HeadConfig(pooling="cls"),
    "pooler": HeadConfig(pooling="pooler"),
    "mlp": HeadConfig(pooling="mean", kind="mlp", hidden=8),
}
HAS_POOLER = {"albert", "bert", "roberta"}
BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.thorough if name in QUICK else pytest.mark.slow) for name in NAMES]
)
def test_stock_transformers_gives_our_probabilities_or_refuses(name: str, tmp_path: Path) -> None:
    source = save_model(BY_NAME[name], tmp_path / "source")
    texts = sentences(12)
    for head, config in HEADS.items():
        if head == "pooler" and name not in HAS_POOLER:
            continue
        folder = tmp_path / head
        model = build_classifier(ModelConfig(name=str(source), head=config), LABELS, seed=0).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        tokenizer.model_max_length = 24
        save_classifier(model, tokenizer, folder, config, LABELS)
        loaded, tokenizer = load_classifier(folder)
        ours = classify(loaded, tokenizer, texts)
        assert ours.std(axis=0).max() > 1e-3
        is_standard = not (folder / "pooled_classifier.py").exists()
        if not is_standard:
            with pytest.raises(ValueError, match="trust_remote_code"):
                transformers.pipeline("text-classification", str(folder), device="cpu", trust_remote_code=False)
        stock = transformers.pipeline(
            "text-classification", str(folder), device="cpu", trust_remote_code=None if is_standard else True
        )
        for text, probabilities in zip(texts, ours, strict=True):
            (scores,) = [stock(text, truncation=True, top_k=None)]
            by_label = {score["label"]: score["score"] for score in scores}
            assert [by_label[label] for label in LABELS] == pytest.approx(probabilities.tolist(), abs=1e-5)


def test_a_pooler_and_a_linear_head_are_a_standard_class(tmp_path: Path) -> None:
    source = save_model(BY_NAME["bert"], tmp_path / "source")
    head = HeadConfig(pooling="pooler")
    model = build_classifier(ModelConfig(name=str(source), head=head), LABELS, seed=0).train()
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    state = torch.get_rng_state()
    save_classifier(model, tokenizer, tmp_path / "best", head, LABELS)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert type(load_classifier(tmp_path / "best")[0]).__name__ == "BertForSequenceClassification"
    assert np.all([not path.name.endswith(".py") for path in (tmp_path / "best").iterdir()])
