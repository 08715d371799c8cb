"""The execution paths to a batch's logits: each row once, the same gradients, and the same trials on each."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.loaded_classifier import build_classifier
from tailsweep.trainables import report_keys
from tailsweep.trainables.config.trial import StageConfig, TrialConfig
from tailsweep.trainables.data.tokenized import PreparedData, TokenizedExamples
from tailsweep.trainables.execution import backends
from tailsweep.trainables.execution.backends import (
    Execution,
    PackedExecution,
    PaddedExecution,
    cached_execution,
    live_execution,
)
from tailsweep.trainables.execution.feature_plan import FeaturePlan, plan_features
from tailsweep.trainables.execution.feature_store import Features, make_features
from tailsweep.trainables.models.layers import set_train_mode
from tailsweep.trainables.training.runtime import SingleProcess
from tailsweep.trainables.training.stages import TrialRun, run_two_stages
from torch import Tensor, nn

TinyModel = Callable[..., Path]
CPU = torch.device("cpu")
LABELS = ("a", "b", "c")
ROWS = {"train": 41, "validation": 19, "test": 5}
TOP_LAYER = {"top_layers": 1}


def rows_of(count: int, seed: int) -> TokenizedExamples:
    """Rows of 1 to 40 random words, and labels that a word tells."""
    rng = np.random.default_rng(seed)
    lengths = np.concatenate([[40, 1, 3, 3], rng.integers(1, 41, count - 4)])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = rng.integers(5, 50, offsets[-1]).astype(np.int32)
    return TokenizedExamples(tokens, offsets, tokens[offsets[:-1]].astype(np.int64) % 3, pad_token_id=0)


@pytest.fixture(scope="module")
def data() -> PreparedData:
    splits = {split: rows_of(count, seed) for seed, (split, count) in enumerate(ROWS.items())}
    counts = np.bincount(splits["train"].labels, minlength=3)
    assert counts.min() > 3
    return PreparedData(Path("nowhere"), "rows", "digest", LABELS, counts, (), 0, **splits)


def trial(folder: Path, head: str, trainable: Any, dropout: float = 0.0, **stage_options: Any) -> TrialConfig:
    """Stage one alone, two epochs; ``dropout`` is that of a head of ours."""
    stage_one = {"trainable": trainable, "batch_size": 16, "learning_rate": 3e-4, "epochs": 2} | stage_options
    return TrialConfig.model_validate(
        {
            "data": {"train": "not read here"},
            "model": {"name": str(folder), "head": head if head == "native" else {"pooling": head, "dropout": dropout}},
            "stage_one": stage_one,
            "stage_two": {"epochs": 0},
        }
    )


def built(config: TrialConfig) -> nn.Module:
    return build_classifier(config.model, LABELS, config.seed)


def cached(model: nn.Module, stage: StageConfig, data: PreparedData, folder: Path) -> Features:
    plan = plan_features(model, stage, data, "fp32", CPU)
    assert isinstance(plan, FeaturePlan), plan
    return make_features(plan, model, data, folder, CPU)


@pytest.fixture(scope="module")
def every_execution(
    tiny_model: TinyModel, data: PreparedData, tmp_path_factory: pytest.TempPathFactory
) -> list[Execution]:
    """Padded, packed, and on cached vectors, tokens and padded tokens."""
    folder = tmp_path_factory.mktemp("features")
    actual: list[Execution] = []
    for architecture, trainable in (("deberta-v2", None), ("bert", None), *CACHED):
        config = trial(tiny_model(architecture), "native", trainable or "all")
        model = built(config)
        if trainable is None:
            actual.append(live_execution(model, data, CPU, "fp32"))
        else:
            features = cached(model, config.stage_one, data, folder)
            actual.append(cached_execution(model, features, data, CPU, "fp32"))
    return actual


CACHED: list[tuple[str, Any]] = [("bert", "head"), ("bert", "pooler"), ("bert", TOP_LAYER), ("deberta-v2", TOP_LAYER)]


def test_an_execution_says_which_it_is_and_why_it_is_not_a_faster_one(every_execution: list[Execution]) -> None:
    padded, *others = [execution.description for execution in every_execution]
    assert padded.startswith("padded: DebertaV2Model gives other logits on packed rows (off by ")
    assert others == [
        "packed",
        "cached pooled vectors",
        "cached first token vectors",
        "cached tokens entering layer 3, packed",
        "cached tokens entering layer 3, padded",
    ]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_an_evaluation_sees_each_row_once(
    split: str, every_execution: list[Execution], monkeypatch: pytest.MonkeyPatch
) -> None:
    for tokens, vectors in ((60, 8), (2048, 4096), (1, 1)):
        monkeypatch.setattr(backends, "TOKENS_AT_ONCE", {"cpu": tokens})
        monkeypatch.setattr(backends, "EVALUATION_VECTORS", vectors)
        for execution in every_execution:
            batches = execution.evaluation_batches(split)
            assert all(len(batch) for batch in batches)
            assert sorted(np.concatenate(batches)) == list(range(ROWS[split])), execution.description
            assert (len(batches) > 1) == (tokens < 2048)


def test_parts_hold_the_micro_batch_s_rows(every_execution: list[Execution], data: PreparedData) -> None:
    rng = np.random.default_rng(0)
    for count in (0, 1, 7, 8, 9, 33):
        rows = rng.integers(0, ROWS["train"], count)  # oversampled: some come more than once
        for execution in every_execution:
            parts = execution.parts("train", rows)
            assert sorted(np.concatenate(parts)) == sorted(rows), execution.description
            assert parts, execution.description  # an empty one too: its worker still exchanges gradients
            assert all(len(part) for part in parts) or count == 0


def test_padding_is_spared_on_a_cpu_and_launches_on_a_gpu(tiny_model: TinyModel, data: PreparedData) -> None:
    model = built(trial(tiny_model("bert"), "native", "all"))
    rows = np.random.default_rng(0).permutation(ROWS["train"])[:20]
    parts = PaddedExecution(model, data, CPU, "").parts("train", rows)
    assert [len(part) for part in parts] == [8, 8, 4]
    lengths = data.train.lengths[np.concatenate(parts)]
    assert lengths.tolist() == sorted(data.train.lengths[rows])
    (alone,) = PaddedExecution(model, data, torch.device("cuda"), "").parts("train", rows)
    assert alone.tolist() == rows.tolist()
    (packed,) = PackedExecution(model, data, CPU).parts("train", rows)
    assert data.train.lengths[packed].tolist() == lengths.tolist()  # equal lengths attend in one call


# --- cached features against the live trunk


CASES: list[tuple[str, str, Any]] = [
    *((name, "native", "head") for name in ("bert", "roberta", "deberta-v2")),
    ("distilbert", "mean", "head"),
    ("bert", "native", "pooler"),
    ("roberta", "pooler", "pooler"),
    ("albert", "native", "pooler"),
    ("deberta-v2", "native", "pooler"),
    *((name, "native", TOP_LAYER) for name in ("bert", "roberta", "electra", "deberta-v2")),
    ("modernbert", "mean", {"top_layers": 2}),
]


def name_of(value: object) -> str:
    return "top" if isinstance(value, dict) else str(value)


@pytest.mark.parametrize(("architecture", "head", "trainable"), CASES, ids=name_of)
def test_a_step_on_cached_features_has_the_gradients_of_one_behind_the_live_trunk(
    architecture: str, head: str, trainable: Any, tiny_model: TinyModel, data: PreparedData, tmp_path: Path
) -> None:
    config = trial(tiny_model(architecture, dropout=0.0), head, trainable)
    model = built(config)
    features = cached(model, config.stage_one, data, tmp_path)
    rows = np.array([4, 7, 7, 1, 0, 2, 3, 11, 29, 40])

    def step(execution: Execution) -> tuple[float, dict[str, Tensor]]:
        """The loss and its gradients, summed over the parts that the execution path makes of the rows."""
        set_train_mode(model, frozen_dropout=False)
        model.zero_grad()
        total = 0.0
        for part in execution.parts("train", rows):
            logits = execution.module(*execution.inputs("train", part))
            loss = nn.functional.cross_entropy(logits, torch.from_numpy(data.train.labels[part]), reduction="sum") / 10
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        return total, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    live, on_features = (
        live_execution(model, data, CPU, "fp32"),
        cached_execution(model, features, data, CPU, "fp32"),
    )
    assert on_features.description.startswith("cached")
    expected_loss, expected = step(live)
    loss, actual = step(on_features)
    assert loss == pytest.approx(expected_loss, abs=1e-6)
    assert actual.keys() == expected.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, atol=1e-6, rtol=0, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize(("architecture", "head", "trainable"), CASES, ids=name_of)
def test_a_trial_on_cached_features_is_the_trial_behind_the_live_trunk(
    architecture: str,
    head: str,
    trainable: Any,
    tiny_model: TinyModel,
    data: PreparedData,
    tmp_path: Path,
) -> None:
    """Two epochs, every report and the parameters at the end, with dropout: the top gets its rows in the live path's
    order and so drops the same."""
    config = trial(tiny_model(architecture), head, trainable, 0.1, gradient_accumulation=2)
    initial = built(config).state_dict()

    def trained(with_features: bool) -> tuple[list[Any], dict[str, Tensor]]:
        model, runtime = built(config), SingleProcess(CPU)
        features = cached(model, config.stage_one, data, tmp_path) if with_features else None
        run_two_stages(TrialRun(config, data, runtime, features), model)
        return list(runtime.reports), model.state_dict()

    live_reports, expected = trained(with_features=False)
    reports, actual = trained(with_features=True)
    assert len(reports) == len(live_reports) == 2
    for report, live_report in zip(reports, live_reports, strict=True):
        assert str(report[report_keys.EXECUTION]).startswith("cached")
        assert str(live_report[report_keys.EXECUTION]).startswith(
            "padded" if architecture == "deberta-v2" else "packed"
        )
        apart = {report_keys.EXECUTION, report_keys.SECONDS}
        measured = {key: value for key, value in report.items() if key not in apart}
        assert measured == pytest.approx({k: v for k, v in live_report.items() if k not in apart}, abs=1e-6)
    assert max((expected[name] - initial[name]).abs().max() for name in initial) > 1e-3
    for name, value in expected.items():
        # The gradient of a key's bias is 0 in truth; Adam answers to what rounding leaves of it.
        close = 1e-4 if re.search(r"key.*bias|k_lin.bias|k.bias", name) else 1e-6
        torch.testing.assert_close(actual[name], value, atol=close, rtol=0, msg=lambda text, n=name: f"{n}: {text}")


# --- what a fault leads to


def test_features_of_other_weights_are_not_trained_on(
    tiny_model: TinyModel, data: PreparedData, tmp_path: Path
) -> None:
    config = trial(tiny_model("bert"), "native", TOP_LAYER)
    model = built(config)
    features = cached(model, config.stage_one, data, tmp_path)
    features.train.mul_(1.01)  # in this process's memory alone
    execution = cached_execution(model, features, data, CPU, "fp32")
    assert isinstance(execution, PackedExecution)
    assert execution.description.startswith("packed (the cached features give other logits, off by ")


@pytest.mark.parametrize("trainable", ["head", TOP_LAYER], ids=name_of)
def test_bf16_features_are_taken_and_named_by_their_split_point(
    trainable: Any, tiny_model: TinyModel, data: PreparedData, tmp_path: Path
) -> None:
    config = trial(tiny_model("bert"), "native", trainable)
    model = built(config)
    plan = plan_features(model, config.stage_one, data, "bf16", CPU)
    assert isinstance(plan, FeaturePlan)
    features = make_features(plan, model, data, tmp_path, CPU)
    for precision in ("fp32", "bf16"):
        assert cached_execution(model, features, data, CPU, precision).description.startswith("cached")
