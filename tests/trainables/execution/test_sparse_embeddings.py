"""Training the words that occur alone, against training the whole table; a tiny model has as many others."""

import math
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.loaded_classifier import build_classifier
from tailsweep.trainables import report_keys
from tailsweep.trainables.config.data import DataConfig
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.data.tokenized import PreparedData, TokenizedExamples
from tailsweep.trainables.execution import sparse_embeddings
from tailsweep.trainables.execution.backends import Execution, PaddedExecution, live_execution
from tailsweep.trainables.execution.sparse_embeddings import SparseEmbeddingTraining, word_embedding
from tailsweep.trainables.models.layers import any_row, set_trainable
from tailsweep.trainables.preparation import prepare
from tailsweep.trainables.storage.cache import default_cache_dir
from tailsweep.trainables.training import stages
from tailsweep.trainables.training.runtime import Report, SingleProcess
from tailsweep.trainables.training.stages import TrainingDiverged, TrialRun, run_two_stages
from torch import nn

TinyModel = Callable[..., Path]
CPU = torch.device("cpu")
WEIGHT_DECAY = 0.1
TRAIN_ROWS = 20
SKIPPED = {"epochs": 0}
ARCHITECTURES = ["bert", "roberta", "electra", "deberta-v2"]


@pytest.fixture(scope="module")
def data_of(tiny_model: TinyModel, rows_csv: Path) -> Callable[[str], PreparedData]:
    def data_of(architecture: str) -> PreparedData:
        """A few rows; each validation row has a word that is in no training row, in place of its second token."""
        config = DataConfig(train=str(rows_csv), validation=0.2, test=0.2)
        # All tiny models but RoBERTa read the same tokens.
        read_by = architecture if architecture == "roberta" else "bert"
        data = prepare(config, str(tiny_model(read_by)), default_cache_dir())
        train, validation = data.train.between(0, TRAIN_ROWS), data.validation.between(0, 10)
        tokens = np.array(validation.tokens)
        tokens[validation.offsets[:-1] + 1] = num_words(data) + np.arange(len(validation))
        class_counts = np.bincount(train.labels)
        assert class_counts.min() > 0
        return replace(data, train=train, class_counts=class_counts, validation=replace(validation, tokens=tokens))

    return data_of


@pytest.fixture(scope="module")
def data(data_of: Callable[[str], PreparedData]) -> PreparedData:
    return data_of("bert")


def num_words(data: PreparedData) -> int:
    """Of the tokenizer: the highest id is that of a word that some row has."""
    return int(max(rows.tokens.max() for rows in (data.train, data.test))) + 1


def trial(model: Path, stage_one: dict[str, Any], stage_two: dict[str, Any], **model_options: Any) -> TrialConfig:
    usual = {"batch_size": 10, "learning_rate": 1e-3, "weight_decay": WEIGHT_DECAY}  # two steps of an epoch
    return TrialConfig.model_validate(
        {
            "data": {"train": "not read here"},
            "model": {"name": str(model), **model_options},
            "stage_one": usual | stage_one,
            "stage_two": usual | stage_two,
        }
    )


class Looking(SingleProcess):
    """Keeps how many words the model had when the optimizer was made, and when there was something to report."""

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__(CPU, folder)
        self.at_wrapping: list[int] = []
        self.at_reports: list[int] = []
        self.model = nn.Module()

    def place(self, model: nn.Module) -> nn.Module:
        self.model = model
        return model

    def wrap(self, model: nn.Module) -> nn.Module:
        self.at_wrapping.append(words_of(self.model))
        return model

    def report(self, report: Report, checkpoint: Path | None) -> None:
        self.at_reports.append(words_of(self.model))
        super().report(report, checkpoint)


def table(model: nn.Module) -> nn.Embedding:
    embedding = model.base_model.get_input_embeddings()  # type: ignore[operator, union-attr]
    assert isinstance(embedding, nn.Embedding)
    return embedding


def words_of(model: nn.Module) -> int:
    return len(table(model).weight)


def train(
    config: TrialConfig,
    data: PreparedData,
    folder: Path | None = None,
    start: Path | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[nn.Module, Looking]:
    model = build_classifier(config.model, data.label_names, config.seed).to(dtype)
    runtime = Looking(folder)
    run_two_stages(TrialRun(config, data, runtime), model, start)
    return model, runtime


def without_seconds(reports: Sequence[Report]) -> list[dict[str, Any]]:
    return [{key: value for key, value in report.items() if key != report_keys.SECONDS} for report in reports]


def occurring(data: PreparedData, padding: Collection[int]) -> list[int]:
    return sorted({*data.train.tokens.tolist(), *padding})


# --- the same as the whole table


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_trial_is_the_one_that_trains_the_whole_table(
    architecture: str,
    tiny_model: TinyModel,
    data_of: Callable[[str], PreparedData],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = data_of(architecture)
    config = trial(
        tiny_model(architecture, dropout=0.1),
        {"sampling": "class_balanced", "loss": {"name": "ldam"}},
        {"epochs": 2, "gradient_accumulation": 2, "max_grad_norm": 0.5, "warmup_fraction": 0.3, "layer_decay": 0.5},
    )
    model, runtime = train(config, data)
    monkeypatch.setattr(sparse_embeddings, "word_embedding", lambda model: None)
    whole, whole_runtime = train(config, data)

    padding = {data.pad_token_id, table(model).padding_idx} - {None}
    assert runtime.at_wrapping == [len(occurring(data, padding))] * 2
    assert whole_runtime.at_wrapping == [words_of(whole)] * 2
    assert runtime.at_reports == whole_runtime.at_reports == [words_of(whole)] * 3
    torch.testing.assert_close(dict(model.state_dict()), dict(whole.state_dict()), atol=1e-9, rtol=0)
    suffix = f", {len(occurring(data, padding))} of {words_of(whole)} word embeddings"
    for actual, expected in zip(without_seconds(runtime.reports), without_seconds(whole_runtime.reports), strict=True):
        assert str(actual.pop(report_keys.EXECUTION)) == str(expected.pop(report_keys.EXECUTION)) + suffix
        assert actual == pytest.approx(expected, abs=1e-9)


def test_rates_differ_by_layer_where_the_row_that_finds_the_layers_has_words_that_do_not_occur(
    tiny_model: TinyModel, data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = {"pooling": "mean", "kind": "linear"}  # that of a token is traced before, since it is packed otherwise
    config = trial(tiny_model("bert"), SKIPPED, {"layer_decay": 0.5}, head=head)
    probe = any_row(build_classifier(config.model, data.label_names, config.seed))
    tokens = np.where(np.isin(data.train.tokens, probe), num_words(data), data.train.tokens)
    data = replace(data, train=replace(data.train, tokens=tokens))
    model, runtime = train(config, data)
    assert runtime.at_wrapping < [words_of(model)]
    monkeypatch.setattr(sparse_embeddings, "word_embedding", lambda model: None)
    whole, _ = train(config, data)
    torch.testing.assert_close(dict(model.state_dict()), dict(whole.state_dict()), atol=1e-9, rtol=0)


def test_words_that_do_not_occur_decay_with_every_step_by_hand(tiny_model: TinyModel, data: PreparedData) -> None:
    config = trial(tiny_model("bert"), {"trainable": "head"}, {"epochs": 2})
    before = table(build_classifier(config.model, data.label_names, config.seed)).weight.double()
    after = table(train(config, data)[0]).weight
    words = occurring(data, [data.pad_token_id])
    others = sorted({*range(len(before))} - {*words})
    assert 60 <= len(others) < 80
    # Four steps.
    decay = math.prod(1 - learning_rate * WEIGHT_DECAY for learning_rate in (1e-3, 7.5e-4, 5e-4, 2.5e-4))
    torch.testing.assert_close(after[others], before[others] * decay, atol=1e-12, rtol=0)
    moved = ~torch.isclose(after, before * decay, atol=1e-5, rtol=0).all(1)
    assert moved.nonzero().flatten().tolist() == [word for word in words if word != data.pad_token_id]


def test_an_average_of_decaying_weights_is_that_of_the_whole_table(
    tiny_model: TinyModel, data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = {}
    for decay in (0.0, WEIGHT_DECAY):
        config = trial(tiny_model("bert"), SKIPPED, {"epochs": 2, "ema_decay": 0.8, "weight_decay": decay})
        model, runtime = train(config, data)
        assert (runtime.at_wrapping == [words_of(model)]) == (decay > 0)
        with monkeypatch.context() as patched:
            patched.setattr(sparse_embeddings, "word_embedding", lambda model: None)
            whole, _ = train(config, data)
        torch.testing.assert_close(dict(model.state_dict()), dict(whole.state_dict()), atol=1e-9, rtol=0)
        tables[decay] = table(model).weight
    assert not torch.allclose(*tables.values())


def test_padding_that_comes_after_all_words_has_its_place(tiny_model: TinyModel, data: PreparedData) -> None:
    """As ModernBERT's does. Where ``padding_idx`` is not moved with it, PyTorch refuses it as too large."""
    model, _, _ = set_up(tiny_model("bert"), data)
    last = words_of(model) - 1
    table(model).padding_idx = last
    data = replace(data, train=replace(data.train, pad_token_id=last))
    kept = occurring(data, [last])
    with SparseEmbeddingTraining(model, PaddedExecution(model, data, CPU, ""), data).active():
        assert words_of(model) == len(kept)
        assert table(model).padding_idx == len(kept) - 1
        assert torch.equal(table(model)(torch.tensor([last])), table(model).weight[-1:])
    assert table(model).padding_idx == last


# --- checkpoints


def test_a_trial_that_continues_from_a_checkpoint_is_the_same_trial(
    tiny_model: TinyModel, data: PreparedData, tmp_path: Path
) -> None:
    config = trial(tiny_model("bert", dropout=0.2), {"trainable": "head"}, {"epochs": 3})
    model, runtime = train(config, data, tmp_path, dtype=torch.float32)
    name = "bert.embeddings.word_embeddings.weight"
    for epoch in (1, 2):
        start = tmp_path / f"stage_two_epoch_00{epoch}"
        # The parameters are the whole model's; moments are of what the steps had.
        assert len(load_file(start / "parameters.safetensors")[name]) == words_of(model)
        moments = load_file(start / "optimizer.safetensors")
        assert len(moments[f"exp_avg/{name}"]) == len(occurring(data, [data.pad_token_id]))
        again, again_runtime = train(config, data, start=start, dtype=torch.float32)
        assert without_seconds(again_runtime.reports) == without_seconds(runtime.reports)
        for (parameter, value), other in zip(again.state_dict().items(), model.state_dict().values(), strict=True):
            assert torch.equal(value, other), parameter


# --- the model is decay as it was


class Interrupted(Exception):
    pass


class Interrupting(Looking):
    def report(self, report: Report, checkpoint: Path | None) -> None:
        raise Interrupted


@pytest.mark.parametrize(
    ("learning_rate", "runtime", "ends"),
    [
        (1e-3, Looking, nullcontext()),
        (1e38, Looking, pytest.raises(TrainingDiverged, match=r"training loss is .* in stage_two epoch 1, step 2,")),
        (1e-3, Interrupting, pytest.raises(Interrupted)),
    ],
    ids=["to its end", "diverged", "interrupted"],
)
def test_the_model_is_left_as_it_was(
    learning_rate: float,
    runtime: type[Looking],
    ends: AbstractContextManager[Any],
    tiny_model: TinyModel,
    data: PreparedData,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stages, "STEPS_BETWEEN_LOSS_CHECKS", 1)
    config = trial(tiny_model("bert"), SKIPPED, {"learning_rate": learning_rate})
    model = build_classifier(config.model, data.label_names, config.seed)
    before, looking = state(model), runtime()
    with ends:
        run_two_stages(TrialRun(config, data, looking), model)
    assert looking.at_wrapping[0] < words_of(model)
    assert state(model) == before


def state(model: nn.Module) -> list[Any]:
    """Which objects its parameters are, in what order, and what hangs on its table."""
    return [
        [(name, id(parameter), parameter.grad) for name, parameter in model.named_parameters()],
        [len(module._forward_pre_hooks) for module in model.modules()],
        table(model).padding_idx,
    ]


# --- where it is not done


def set_up(folder: Path, data: PreparedData) -> tuple[nn.Module, Execution, PreparedData]:
    """A model that trains whole, its execution path and its rows."""
    model = build_classifier(trial(folder, {}, {}).model, data.label_names, 0)
    set_trainable(model, "all")
    return model, live_execution(model, data, CPU, "fp32"), data


def words_within(model: nn.Module, execution: Execution, data: PreparedData) -> int:
    with SparseEmbeddingTraining(model, execution, data).active():
        return words_of(model)


def tied(model: nn.Module) -> None:
    model.second = nn.Linear(1, 1)
    model.second.weight = table(model).weight


def frozen(model: nn.Module) -> None:
    set_trainable(model, "head")


def read_elsewhere(model: nn.Module) -> None:
    """As a model would that shares its table in another way than by sharing the parameter."""
    model.base_model.register_forward_hook(  # type: ignore[union-attr, operator]
        lambda _, __, output: output.update(pooler_output=output["pooler_output"] + table(model).weight[10])
    )


def read_where_there_is_nothing(model: nn.Module) -> None:
    model.base_model.register_forward_hook(lambda *_: table(model).weight[100] and None)  # type: ignore[union-attr, operator]


def without_a_table(model: nn.Module) -> None:
    def get_input_embeddings() -> nn.Module:
        raise NotImplementedError

    model.base_model.get_input_embeddings = get_input_embeddings  # type: ignore[union-attr]


def test_what_cannot_be_done_is_not_done(tiny_model: TinyModel, data: PreparedData) -> None:
    assert words_within(*set_up(tiny_model("bert"), data)) == len(occurring(data, [data.pad_token_id]))
    for change in (tied, frozen, read_elsewhere, read_where_there_is_nothing):
        model, execution, _ = set_up(tiny_model("bert"), data)
        change(model)
        assert words_within(model, execution, data) == words_of(model), change.__name__
    model, _, _ = set_up(tiny_model("bert"), data)
    without_a_table(model)
    assert word_embedding(model) is None


def test_the_whole_table_stays_where_more_than_three_quarters_occur(tiny_model: TinyModel, data: PreparedData) -> None:
    def with_words(count: int) -> PreparedData:
        tokens = np.arange(count, dtype=np.int32)
        offsets = np.linspace(0, count, 5).astype(np.int64)
        return replace(data, train=TokenizedExamples(tokens, offsets, np.zeros(4, dtype=np.int64), 0))

    all_words = words_of(set_up(tiny_model("bert"), data)[0])
    most = math.floor(all_words * 0.75)
    for count, expected in ((50, 50), (most, most), (most + 1, all_words), (all_words, all_words)):
        assert words_within(*set_up(tiny_model("bert"), with_words(count))) == expected


def test_a_word_without_a_place_is_not_taken_for_another(tiny_model: TinyModel, data: PreparedData) -> None:
    model, execution, _ = set_up(tiny_model("bert"), data)
    words = SparseEmbeddingTraining(model, execution, data)
    inputs = execution.inputs("validation", np.arange(3))
    execution.module(*inputs)
    with words.active(), pytest.raises(IndexError):
        execution.module(*inputs)
