"""The two stages on tiny models: against plain loops, against themselves resumed, and against two workers."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import sklearn.metrics as reference
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from support.data_parallel_workers import Worker, train_together
from support.loaded_classifier import build_classifier
from tailsweep.trainables import report_keys
from tailsweep.trainables.config.data import DataConfig
from tailsweep.trainables.config.trial import HeadConfig, TrialConfig
from tailsweep.trainables.data.tokenized import PreparedData, open_prepared
from tailsweep.trainables.execution import backends, sparse_embeddings
from tailsweep.trainables.execution.backends import live_execution
from tailsweep.trainables.preparation import prepare
from tailsweep.trainables.storage.cache import default_cache_dir
from tailsweep.trainables.training import stages, step_plan
from tailsweep.trainables.training.head_init import nearest_mean
from tailsweep.trainables.training.losses import build_loss
from tailsweep.trainables.training.optimizer import LinearSchedule
from tailsweep.trainables.training.runtime import Report, SingleProcess
from tailsweep.trainables.training.stages import TrainingDiverged, TrialRun, evaluate, run_two_stages
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

TinyModel = Callable[..., Path]
CPU = torch.device("cpu")
TRAIN_ROWS = 57  # 33, 18 and 6 of the three classes: seven steps of 8 rows, and one of a single row
OVERSAMPLED_ROWS = 99  # 3 times 33

CROSS_ENTROPY = {"name": "cross_entropy"}
WEIGHTED = {"name": "weighted_cross_entropy", "beta": 0.99}
LDAM = {"name": "ldam", "max_margin": 0.5, "scale": 2.0, "beta": 0.99}
DEFERRED = LDAM | {"reweight_after": 0.6}
every_loss = pytest.mark.parametrize("loss", [CROSS_ENTROPY, WEIGHTED, DEFERRED], ids=lambda loss: loss["name"])
SKIPPED = {"epochs": 0}
TOP_LAYER = {"top_layers": 1}
REGULARIZERS = {"ema_decay": 0.9, "r_drop": 0.5, "mixup": 0.4, "contrastive": {"weight": 0.2}}


@dataclass
class Trained:
    initial: dict[str, Tensor]
    final: dict[str, Tensor]
    runtime: SingleProcess

    @property
    def reports(self) -> list[Report]:
        return self.runtime.reports


@pytest.fixture(scope="module")
def data(tiny_model: TinyModel, rows_csv: Path) -> PreparedData:
    """All tiny models but RoBERTa read the same tokens."""
    config = DataConfig(train=str(rows_csv), validation=0.2, test=0.2)
    prepared = prepare(config, str(tiny_model("bert")), default_cache_dir())
    assert prepared.class_counts.tolist() == [33, 18, 6]
    return prepared


def trial(
    model: Path, stage_one: dict[str, Any], stage_two: dict[str, Any], seed: int = 0, **model_options: Any
) -> TrialConfig:
    """Stages with a batch of 16 and a high learning rate, unless they say otherwise."""
    usual = {"batch_size": 16, "learning_rate": 1e-3}
    return TrialConfig.model_validate(
        {
            "data": {"train": "not read here"},
            "model": {"name": str(model), **model_options},
            "stage_one": usual | stage_one,
            "stage_two": usual | stage_two,
            "seed": seed,
        }
    )


def train(
    config: TrialConfig,
    data: PreparedData,
    folder: Path | None = None,
    start: Path | None = None,
    dtype: torch.dtype = torch.float32,
) -> Trained:
    """Run a trial in this process.

    Comparisons that sum in another order are made in float64: in float32 Adam answers even to the rounding errors of
    gradients that are 0 in truth (an attention key's bias), with steps as large as any other.
    """
    model = build_classifier(config.model, data.label_names, config.seed).to(dtype)
    initial = {name: value.clone() for name, value in model.state_dict().items()}
    runtime = SingleProcess(CPU, folder)
    run_two_stages(TrialRun(config, data, runtime), model, start)
    return Trained(initial, model.state_dict(), runtime)


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(dict(actual), dict(expected), atol=tolerance, rtol=0)


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> set[str]:
    """Names of the parameters that are equal bit for bit."""
    assert left.keys() == right.keys()
    return {name for name in left if torch.equal(left[name], right[name])}


def without_seconds(reports: Sequence[Report]) -> list[dict[str, Any]]:
    return [{key: value for key, value in report.items() if key != report_keys.SECONDS} for report in reports]


# --- reports


def test_every_epoch_is_reported_once_with_every_key(tiny_model: TinyModel, data: PreparedData) -> None:
    config = trial(tiny_model("bert"), {"trainable": TOP_LAYER, "sampling": "oversampled", "epochs": 2}, {"epochs": 1})
    reports = train(config, data).reports
    assert [(r["stage"], r["epoch"]) for r in reports] == [("stage_one", 1), ("stage_one", 2), ("stage_two", 1)]
    everywhere = {
        "stage",
        "epoch",
        "train/loss",
        "train/learning_rate",
        "train/rows",
        "seconds",
        "execution",
        "validation/loss",
    }
    everywhere |= {f"validation/{score}" for score in report_keys.SCORES}
    everywhere |= {f"validation/f1/{label}" for label in ("absorption", "excretion", "metabolism")}
    assert [set(report) - everywhere for report in reports] == [{"stage_one_epoch"}, {"stage_one_epoch"}, set()]
    assert [report.get("stage_one_epoch") for report in reports] == [1, 2, None]
    assert [report["train/rows"] for report in reports] == [OVERSAMPLED_ROWS, OVERSAMPLED_ROWS, TRAIN_ROWS]
    for report in reports:
        assert everywhere <= set(report)
        # No class has more than 100 training rows.
        assert [key for key, value in report.items() if value is None] == ["validation/recall_many"]
        assert all(math.isfinite(value) for value in report.values() if isinstance(value, int | float))


def test_an_epoch_in_spans_is_the_same_epoch_reported_more_often(
    tiny_model: TinyModel, data: PreparedData, tmp_path: Path
) -> None:
    """57 rows by 8 are 8 steps an epoch: a third is over after 3 of them, two thirds after 6, a quarter after 2."""

    def trained(in_stage_one: int, in_stage_two: int) -> Trained:
        stage_one = {"trainable": TOP_LAYER, "loss": LDAM, "epochs": 2, "batch_size": 8, "warmup_fraction": 0.2}
        config = trial(
            tiny_model("bert", dropout=0.0),
            stage_one | {"evaluations_per_epoch": in_stage_one},
            {"batch_size": 8, "evaluations_per_epoch": in_stage_two},
        )
        return train(config, data, tmp_path / f"{in_stage_one}-{in_stage_two}")

    whole, split = trained(1, 1), trained(3, 4)
    assert same(whole.final, split.final) == set(whole.final)
    epochs = [1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2, 0.25, 0.5, 0.75, 1]
    assert [report["epoch"] for report in split.reports] == pytest.approx(epochs, abs=1e-12)
    assert [type(report["epoch"]) for report in split.reports] == [float, float, int] * 2 + [float] * 3 + [int]
    assert [report.get("stage_one_epoch") for report in split.reports] == [
        report["epoch"] if report["stage"] == "stage_one" else None for report in split.reports
    ]
    rows = [24, 24, 9, 24, 24, 9, 16, 16, 16, 9]
    assert [report["train/rows"] for report in split.reports] == rows
    spans_by_epoch = [split.reports[:3], split.reports[3:6], split.reports[6:]]
    for spans, expected in zip(spans_by_epoch, whole.reports, strict=True):
        losses = [cast(float, report["train/loss"]) for report in spans]
        steps = [math.ceil(cast(int, report["train/rows"]) / 8) for report in spans]
        assert np.average(losses, weights=steps) == pytest.approx(expected["train/loss"], abs=1e-6)
        assert len(set(losses)) == len(losses)
        since = {report_keys.TRAIN_LOSS, report_keys.ROWS, report_keys.SECONDS}
        assert {k: v for k, v in spans[-1].items() if k not in since} == {
            k: v for k, v in expected.items() if k not in since
        }
    names = [f"stage_one_epoch_{name}" for name in ("000.333", "000.667", "001", "001.333", "001.667", "002")]
    names += [f"stage_two_epoch_{name}" for name in ("000.250", "000.500", "000.750", "001")]
    assert sorted(path.name for path in (tmp_path / "3-4").iterdir()) == names


def test_a_step_is_evaluated_once_however_often_an_epoch_asks_for_it(tiny_model: TinyModel, data: PreparedData) -> None:
    # 57 rows by 29 are 2 steps: evaluations 1 and 2 of 4 come after the first of them, 3 and 4 after the second.
    stage = {"epochs": 1, "batch_size": 29, "evaluations_per_epoch": 4}
    reports = train(trial(tiny_model("bert"), SKIPPED, stage), data).reports
    assert [(report["epoch"], report["train/rows"]) for report in reports] == [(0.5, 29), (1, 28)]


@pytest.fixture(scope="module")
def learned(tiny_model: TinyModel, data: PreparedData) -> tuple[nn.Module, list[Report]]:
    """A model that has trained long enough to tell the classes apart, and its reports."""
    stage_two = {"sampling": "class_balanced", "learning_rate": 3e-3, "epochs": 8, "batch_size": 8}
    config = trial(tiny_model("bert", dropout=0.0), {"trainable": "head"}, stage_two, head={"pooling": "mean"})
    trained = train(config, data)
    model = build_classifier(config.model, data.label_names, config.seed)
    model.load_state_dict(trained.final)
    return model, trained.reports


def test_training_learns_the_rows(learned: tuple[nn.Module, list[Report]]) -> None:
    first, *_, last = learned[1]
    assert cast(float, first["validation/macro_f1"]) < 0.3  # one class for nearly every row
    assert cast(float, last["validation/macro_f1"]) > 0.5
    assert cast(float, last["train/loss"]) < 0.5 * cast(float, first["train/loss"])


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "modernbert", "deberta-v2", "albert"])
def test_training_continues_after_an_evaluation(architecture: str, tiny_model: TinyModel, data: PreparedData) -> None:
    """Evaluation runs in inference mode, whose tensors must not be left behind for a backward pass to meet."""
    config = trial(tiny_model(architecture), {"trainable": "head", "epochs": 1}, {"epochs": 2})
    trained = train(config, data)
    assert len(trained.reports) == 3
    assert same(trained.initial, trained.final) == set()


def test_steps_of_whole_passes_train_the_same_model_and_others_a_shorter_one(
    tiny_model: TinyModel, data: PreparedData
) -> None:
    def trained(**options: Any) -> Trained:
        return train(trial(tiny_model("bert", dropout=0.0), SKIPPED, {"batch_size": 8, **options}), data)

    passes = trained(epochs=3)  # 8 steps of an epoch
    parts = trained(epochs=2, steps=24)
    assert same(parts.final, passes.final) == set(passes.final)
    assert [report["train/rows"] for report in parts.reports] == [57 + 4 * 8, 57 + 25]
    assert parts.reports[-1]["validation/loss"] == passes.reports[-1]["validation/loss"]
    shorter = trained(epochs=2, steps=10)
    assert [(report["epoch"], report["train/rows"]) for report in shorter.reports] == [(1, 40), (2, 8 + 8 + 1 + 16)]


def test_the_seed_decides_everything(tiny_model: TinyModel, data: PreparedData) -> None:
    stage_one, stage_two = {"trainable": TOP_LAYER, "sampling": "class_balanced"}, {"epochs": 1}
    first = train(trial(tiny_model("bert"), stage_one, stage_two, seed=1), data)
    torch.rand(7)
    again = train(trial(tiny_model("bert"), stage_one, stage_two, seed=1), data)
    other = train(trial(tiny_model("bert"), stage_one, stage_two, seed=2), data)
    assert without_seconds(first.reports) == without_seconds(again.reports)
    assert same(first.final, again.final) == set(first.final)
    assert first.reports[0]["train/loss"] != other.reports[0]["train/loss"]


@pytest.mark.parametrize("skipped", ["stage_one", "stage_two"])
def test_a_stage_of_no_epochs_is_left_out(skipped: str, tiny_model: TinyModel, data: PreparedData) -> None:
    described: dict[str, dict[str, Any]] = {
        "stage_one": {"trainable": "head", "epochs": 2},
        "stage_two": {"trainable": "head", "epochs": 2},
    }
    described[skipped] = SKIPPED
    config = trial(tiny_model("bert"), described["stage_one"], described["stage_two"])
    trained = train(config, data)
    (other,) = {"stage_one", "stage_two"} - {skipped}
    assert [(report["stage"], report["epoch"]) for report in trained.reports] == [(other, 1), (other, 2)]
    assert same(trained.initial, trained.final) == set(trained.initial) - {"classifier.weight", "classifier.bias"}


# --- what moves


def test_stage_one_moves_the_top_only_and_stage_two_moves_all(
    tiny_model: TinyModel, data: PreparedData, tmp_path: Path
) -> None:
    config = trial(tiny_model("bert"), {"trainable": TOP_LAYER, "weight_decay": 0.1}, {"trainable": "all"})
    trained = train(config, data, tmp_path)
    top = {name for name in trained.initial if name.startswith(("classifier", "bert.pooler", "bert.encoder.layer.2"))}
    assert len(top) == 2 + 2 + 16
    after_stage_one = load_file(tmp_path / "stage_one_epoch_001" / "parameters.safetensors")
    assert after_stage_one.keys() == top
    assert same({name: trained.initial[name] for name in top}, after_stage_one) == set()
    assert same(trained.initial, trained.final) == set()

    config = trial(tiny_model("bert"), {"trainable": TOP_LAYER, "weight_decay": 0.1}, SKIPPED)
    trained = train(config, data)
    assert same(trained.initial, trained.final) == set(trained.initial) - top


def test_dropout_of_the_frozen_trunk_is_on_only_where_asked_for(tiny_model: TinyModel, data: PreparedData) -> None:
    def trained(dropout: float, frozen_dropout: bool) -> dict[str, Tensor]:
        head = HeadConfig(dropout=0)  # the trunk's dropout is the only one
        stage_one = {"trainable": "head", "frozen_dropout": frozen_dropout}
        folder = tiny_model("bert", dropout=dropout)
        return train(trial(folder, stage_one, SKIPPED, head=head.model_dump()), data).final

    everything = set(trained(0.5, False))
    assert same(trained(0.5, False), trained(0.0, False)) == everything
    assert same(trained(0.5, True), trained(0.0, False)) == everything - {"head.weight", "head.bias"}


def test_every_epoch_and_span_of_one_has_dropout_of_its_own(
    tiny_model: TinyModel, data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Eight steps of the same eight rows with the same parameters, four in each half of an epoch.
    monkeypatch.setattr(step_plan, "epoch_rows", lambda kind, labels, seed, epoch, num_epochs: np.tile(np.arange(8), 8))
    still = {"epochs": 2, "learning_rate": 1e-30, "evaluations_per_epoch": 2}
    for dropout, different in ((0.3, 8), (0.0, 1)):
        reports = train(trial(tiny_model("bert", dropout=dropout), still, still), data).reports
        assert len({report["train/loss"] for report in reports}) == different


# --- a stage against the plain loop it stands for


@every_loss
def test_a_stage_is_the_plain_training_loop(
    loss: dict[str, Any], tiny_model: TinyModel, data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        step_plan, "epoch_rows", lambda kind, labels, seed, epoch, num_epochs: np.roll(np.arange(TRAIN_ROWS), epoch)
    )
    """With a learning rate of its own for each layer, where the loss is the plain one."""
    layer_decay = 0.5 if loss == CROSS_ENTROPY else 1.0
    stage = {
        "epochs": 2,
        "batch_size": 8,
        "loss": loss,
        "weight_decay": 0.1,
        "warmup_fraction": 0.2,
        "max_grad_norm": 0.7,
    }
    config = trial(tiny_model("bert", dropout=0.0), SKIPPED, stage | {"layer_decay": layer_decay})
    trained = train(config, data, dtype=torch.float64)

    model = build_classifier(config.model, data.label_names, config.seed).double().train()
    # The pooler lies inside BERT, yet learns at the head's rate; of three layers, 2 is the top one.
    places = ("embeddings", "layer.0.", "layer.1.", "layer.2.", "pooler", "classifier")
    depths = dict(zip(places, (4, 3, 2, 1, 0, 0), strict=True))
    groups = [
        {
            "params": [p for name, p in model.named_parameters() if place in name and (p.ndim == 2) == are_matrices],
            "weight_decay": 0.1 if are_matrices else 0.0,
            "lr": 1e-3 * layer_decay ** depths[place],
        }
        for place in places
        for are_matrices in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, eps=1e-8)
    # Two epochs of 57 rows by 8; 0.2 of 16 steps is 3.
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, num_warmup_steps=3, num_training_steps=16)
    losses_of = [build_loss(config.stage_two.loss, data.class_counts, deferred) for deferred in (False, True)]
    train_losses = []
    for epoch in range(2):
        order = np.roll(np.arange(TRAIN_ROWS), epoch)
        losses = []
        for first in range(0, TRAIN_ROWS, 8):
            rows = order[first : first + 8]
            input_ids, attention_mask = map(torch.from_numpy, data.train.padded(rows))
            logits = model(input_ids=input_ids, attention_mask=attention_mask).logits
            # Of the 16 steps 0.6 are 9, in whole steps: one of them in the second epoch.
            deferred = loss == DEFERRED and epoch * 8 + first // 8 < 9
            value = losses_of[deferred].function(logits, torch.from_numpy(data.train.labels[rows]))
            optimizer.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 0.7)
            optimizer.step()
            schedule.step()
            losses.append(value.item())
        train_losses.append(np.mean(losses))
    assert_close(trained.final, model.state_dict())
    assert [report["train/loss"] for report in trained.reports] == pytest.approx(train_losses, abs=1e-6)


@every_loss
def test_gradient_accumulation_changes_nothing(loss: dict[str, Any], tiny_model: TinyModel, data: PreparedData) -> None:
    def trained(micro_batches: int) -> Trained:
        stage = {"loss": loss, "gradient_accumulation": micro_batches}
        config = trial(tiny_model("bert", dropout=0.0), {"trainable": TOP_LAYER, **stage}, stage)
        return train(config, data, dtype=torch.float64)

    # The last step of each epoch has one row, so that three of its four micro-batches have none.
    whole, split = trained(1), trained(4)
    assert same(whole.final, split.final) != set(whole.final)  # they did sum in another order
    assert_close(split.final, whole.final)
    for actual, expected in zip(without_seconds(split.reports), without_seconds(whole.reports), strict=True):
        assert actual == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("stage_one", [SKIPPED, {"trainable": "head"}], ids=["stage_two", "stage_one"])
def test_class_means_are_where_the_last_layer_starts(
    stage_one: dict[str, Any], tiny_model: TinyModel, data: PreparedData
) -> None:
    head = {"pooling": "mean", "kind": "linear"}
    still = {"learning_rate": 1e-30}
    config = trial(tiny_model("bert"), still | stage_one, still, head=head, head_init="class_means")
    trained = train(config, data, dtype=torch.float64)
    model: Any = build_classifier(config.model, data.label_names, config.seed).double().eval()
    vectors = np.empty((TRAIN_ROWS, model.head.in_features), np.float32)
    for row in range(TRAIN_ROWS):
        ids, mask = map(torch.from_numpy, data.train.padded(np.array([row])))
        vectors[row] = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state[0].mean(0).detach()
    weights, biases = nearest_mean(vectors, data.train.labels, 3)
    expected = {"head.weight": torch.from_numpy(weights).double(), "head.bias": torch.from_numpy(biases).double()}
    assert_close({name: trained.final[name] for name in expected}, expected, 1e-4)


def test_linear_schedule_by_hand_and_as_transformers_has_it() -> None:
    assert [LinearSchedule(8.0, 4)(step) for step in range(4)] == [8, 6, 4, 2]
    # A quarter of 8 steps is 2: up 0, 4; then down from 8 over the other 6.
    warm = LinearSchedule(8.0, 8, warmup_fraction=0.25)
    assert [warm(step) for step in range(8)] == pytest.approx([0, 4, 8, 8 * 5 / 6, 8 * 4 / 6, 4, 8 * 2 / 6, 8 / 6])
    for total_steps, warmup_fraction in ((1, 0.0), (1, 0.9), (7, 0.5), (40, 0.1), (40, 0.99)):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=3e-4)
        theirs = transformers.get_linear_schedule_with_warmup(
            optimizer, int(warmup_fraction * total_steps), total_steps
        )
        ours = LinearSchedule(3e-4, total_steps, warmup_fraction)
        for step in range(total_steps):
            assert ours(step) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9), (total_steps, warmup_fraction, step)
            optimizer.step()
            theirs.step()


def test_each_stage_has_a_schedule_of_its_own_over_the_rows_it_visits(
    tiny_model: TinyModel, data: PreparedData
) -> None:
    stage_one = {"trainable": "head", "sampling": "oversampled", "epochs": 2, "learning_rate": 0.26, "batch_size": 8}
    stage_two = {"sampling": "class_balanced", "learning_rate": 0.016, "batch_size": 8, "gradient_accumulation": 3}
    used: list[float] = []
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, args, kwargs: used.append(*{group["lr"] for group in optimizer.param_groups})
    )
    try:
        reports = train(trial(tiny_model("bert"), stage_one, stage_two), data).reports
    finally:
        hook.remove()
    # 99 rows by 8 are 13 steps, twice; 57 rows by 8 are 8 steps.
    expected = [0.26 * (26 - step) / 26 for step in range(26)] + [0.016 * (8 - step) / 8 for step in range(8)]
    assert used == pytest.approx(expected)
    assert [report["train/learning_rate"] for report in reports] == pytest.approx([0.14, 0.01, 0.002])


# --- continuing from a checkpoint


@pytest.mark.parametrize(
    ("stage_two_trains", "evaluations", "epochs", "early"),
    [
        ("all", (1, 1), (["001", "002"], ["001", "002"]), {}),
        ("all", (1, 2), (["001", "002"], ["000.500", "001", "001.500", "002"]), REGULARIZERS),
        ("all", (1, 2), (["001", "002"], ["000.500", "001", "001.500", "002"]), {"steps": 12}),
        ("head", (2, 1), (["000.500", "001", "001.500", "002"], ["001", "002"]), {}),
        # Nothing moves in stage one, so that its first score is its best: it ends two evaluations later.
        ("head", (2, 1), (["000.500", "001", "001.500"], ["001", "002"]), {"learning_rate": 1e-30, "patience": 2}),
    ],
)
def test_a_trial_that_continues_from_any_checkpoint_is_the_same_trial(
    stage_two_trains: str,
    evaluations: tuple[int, int],
    epochs: tuple[list[str], list[str]],
    early: dict[str, Any],
    tiny_model: TinyModel,
    data: PreparedData,
    tmp_path: Path,
) -> None:
    config = trial(
        tiny_model("bert", dropout=0.3),
        {"trainable": TOP_LAYER, "sampling": "class_balanced", "loss": DEFERRED, "epochs": 2, "warmup_fraction": 0.1}
        | {"evaluations_per_epoch": evaluations[0], **early},
        {
            "trainable": stage_two_trains,
            "epochs": 2,
            "gradient_accumulation": 2,
            "evaluations_per_epoch": evaluations[1],
        }
        | {"layer_decay": 0.7, "sampling": "progressive", "weight_decay": 0.1}
        | (early if early == REGULARIZERS or "steps" in early else {}),
    )
    whole = train(config, data, tmp_path / "whole")
    names = [
        f"{stage}_epoch_{epoch}"
        for stage, stage_epochs in zip(report_keys.STAGES, epochs, strict=True)
        for epoch in stage_epochs
    ]
    assert sorted(path.name for path in (tmp_path / "whole").iterdir()) == names
    for finished, name in enumerate(names, start=1):
        torch.rand(finished)  # another process has drawn other numbers
        resumed = train(config, data, tmp_path / name, start=tmp_path / "whole" / name)
        assert same(resumed.final, whole.final) == set(whole.final), name
        # What was reported before the checkpoint comes again first, the very same; seconds included.
        assert resumed.reports[:finished] == whole.reports[:finished]
        assert without_seconds(resumed.reports) == without_seconds(whole.reports)
        written = sorted(path.name for path in (tmp_path / name).iterdir()) if (tmp_path / name).exists() else []
        assert written == names[finished:]
        for later in written:  # they hold all that has ever trained, so that a trial can resume from them in turn
            expected = load_file(tmp_path / "whole" / later / "parameters.safetensors")
            parameters = load_file(tmp_path / name / later / "parameters.safetensors")
            assert same(parameters, expected) == set(expected), (name, later)


def test_a_stage_waits_for_the_metric_it_is_given_and_leaves_no_optimiser_at_its_end(
    tiny_model: TinyModel, data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated: list[float] = []

    def scored(*_: Any) -> dict[str, float | None]:
        """Accuracy rises with every evaluation, macro-F1 falls."""
        evaluated.append(len(evaluated) / 100)
        return {"validation/accuracy": evaluated[-1], "validation/macro_f1": -evaluated[-1]}

    monkeypatch.setattr(stages, "evaluate", scored)
    settings = {"trainable": "head", "epochs": 4, "patience": 2}
    config = trial(tiny_model("bert"), settings, settings)
    for metric, last in ((report_keys.DEFAULT_METRIC, 3), ("validation/accuracy", 4)):
        folder = tmp_path / str(last)
        runtime = SingleProcess(CPU, folder)
        run_two_stages(
            TrialRun(config, data, runtime, metric=metric), build_classifier(config.model, data.label_names, 0)
        )
        epochs = [(report["stage"], report["epoch"]) for report in runtime.reports]
        assert epochs == [(stage, epoch) for stage in report_keys.STAGES for epoch in range(1, last + 1)]
        # The rates are those of four epochs, of 4 steps each: 1e-3 falls by a sixteenth at every step.
        rates = [1e-3 * (17 - 4 * epoch) / 16 for epoch in range(1, last + 1)]
        assert [report["train/learning_rate"] for report in runtime.reports] == pytest.approx(rates * 2)
        for stage in report_keys.STAGES:
            folders = [folder / f"{stage}_epoch_{epoch:03d}" for epoch in range(1, last + 1)]
            have_optimizer = [(path / "optimizer.safetensors").exists() for path in folders]
            assert have_optimizer == [True] * (last - 1) + [False]


# --- what can go wrong


@pytest.mark.parametrize(
    ("stage_two", "where"),
    [
        ({}, "train/loss is (nan|inf) in stage_two epoch 1,"),
        ({"batch_size": 1}, "training loss is (nan|inf) in .* epoch 1, step 50,"),
        ({"evaluations_per_epoch": 2}, "train/loss is (nan|inf) in stage_two epoch 0.5,"),
    ],
)
def test_a_loss_that_is_not_finite_ends_the_trial_and_says_where(
    stage_two: dict[str, Any], where: str, tiny_model: TinyModel, data: PreparedData
) -> None:
    config = trial(tiny_model("bert"), {"trainable": "head"}, {"epochs": 3, "learning_rate": 1e38} | stage_two)
    model = build_classifier(config.model, data.label_names, 0)
    runtime = SingleProcess(CPU)
    with pytest.raises(TrainingDiverged, match=where) as raised:
        run_two_stages(TrialRun(config, data, runtime), model)
    assert "learning_rate 1e+38 is likely too high" in str(raised.value)
    assert [report["stage"] for report in runtime.reports] == ["stage_one"]  # what is not finite is not reported


def test_bf16_runs_with_parameters_in_fp32(tiny_model: TinyModel, data: PreparedData) -> None:
    folder = tiny_model("bert", dropout=0.0)
    low = train(trial(folder, {"trainable": TOP_LAYER, "precision": "bf16"}, {"precision": "bf16"}), data)
    full = train(trial(folder, {"trainable": TOP_LAYER}, {}), data)
    assert {value.dtype for value in low.final.values()} == {torch.float32}
    for actual, expected in zip(low.reports, full.reports, strict=True):
        assert actual["train/loss"] != expected["train/loss"]
        assert actual["train/loss"] == pytest.approx(expected["train/loss"], rel=0.1)


def test_test_rows_are_never_used(tiny_model: TinyModel, data: PreparedData) -> None:
    class Untouchable:
        def __getattribute__(self, name: str) -> Any:
            raise AssertionError(f"test.{name} was looked at")

    config = trial(tiny_model("bert"), {"trainable": "head"}, {})
    plain = train(config, data)
    without = train(config, replace(data, test=cast(Any, Untouchable())))
    assert without_seconds(without.reports) == without_seconds(plain.reports)


# --- evaluation


@torch.inference_mode()
def test_evaluation_gives_what_single_rows_and_scikit_learn_give(
    learned: tuple[nn.Module, list[Report]], data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "TOKENS_AT_ONCE", {"cpu": 100})
    model = learned[0]
    for rows, split in ((data.train, "train"), (data.validation, "validation"), (data.test, "test")):
        actual = evaluate(live_execution(model.train(), data, CPU, "fp32"), data, SingleProcess(CPU), split)
        model.eval()
        probabilities = []
        for i in range(len(rows)):
            row = torch.from_numpy(np.array(rows.tokens[rows.offsets[i] : rows.offsets[i + 1]], dtype=np.int64))
            logits = model(input_ids=row[None], attention_mask=torch.ones_like(row)[None]).logits
            probabilities.append(F.softmax(logits[0].double(), dim=-1).numpy())
        predicted = np.argmax(probabilities, axis=1)
        assert len(set(predicted)) == 3
        true = rows.labels
        expected = {
            "macro_f1": reference.f1_score(true, predicted, average="macro"),
            "micro_f1_minority": reference.f1_score(true, predicted, labels=[1, 2], average="micro"),
            "accuracy": reference.accuracy_score(true, predicted),
            "balanced_accuracy": reference.balanced_accuracy_score(true, predicted),
            "mcc": reference.matthews_corrcoef(true, predicted),
            "loss": reference.log_loss(true, probabilities, labels=[0, 1, 2]),
            **dict(
                zip(
                    ("f1/absorption", "f1/excretion", "f1/metabolism"),
                    reference.f1_score(true, predicted, average=None),
                    strict=True,
                )
            ),
        }
        for score, value in expected.items():
            assert actual[f"{split}/{score}"] == pytest.approx(value, abs=1e-6), (split, score)


# --- two workers


def work(rank: int, world_size: int, configs: list[TrialConfig], tokens: Path, folder: Path) -> None:
    """What each of two processes runs: the trials one after the other, results to ``folder``."""
    backends.TOKENS_AT_ONCE = {"cpu": 60}  # else the few rows were all rank 0's
    data = open_prepared(tokens)
    for number, config in enumerate(configs):
        model = build_classifier(config.model, data.label_names, config.seed).double()
        worker = Worker(rank, world_size)
        run_two_stages(TrialRun(config, data, worker), model)
        save_file(model.state_dict(), folder / f"{number}-{rank}.safetensors")
        (folder / f"{number}-{rank}.json").write_text(json.dumps(without_seconds(worker.reports)))


@pytest.mark.thorough
@pytest.mark.xdist_group("fork_server")
def test_two_workers_train_the_same_model_as_one(
    tiny_model: TinyModel, data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In the last step of an epoch one row is left: rank 1 has none, and takes part all the same.
    configs = [
        trial(
            tiny_model("bert", dropout=0.0),
            {"trainable": TOP_LAYER, "loss": loss, "epochs": 2, "gradient_accumulation": 2},
            {"loss": loss, "weight_decay": 0.1, "evaluations_per_epoch": evaluations, "ema_decay": decay}
            | {"layer_decay": 0.7, "patience": 1, "sampling": "sqrt", "r_drop": 0.0 if decay is None else 1.0},
        )
        for loss, evaluations, decay in ((CROSS_ENTROPY, 1, 0.9), (DEFERRED, 3, None))
    ]
    train_together(2, work, configs, data.folder, tmp_path, folder=tmp_path)
    monkeypatch.setattr(
        sparse_embeddings, "word_embedding", lambda model: None
    )  # the two have trained what occurs alone
    for number, config in enumerate(configs):
        alone = train(config, data, dtype=torch.float64)
        for rank in (0, 1):
            assert_close(load_file(tmp_path / f"{number}-{rank}.safetensors"), alone.final)
            reports = json.loads((tmp_path / f"{number}-{rank}.json").read_text())
            for actual, expected in zip(reports, without_seconds(alone.reports), strict=True):
                assert actual.pop(report_keys.EXECUTION).startswith(
                    str(expected.pop(report_keys.EXECUTION))
                )  # which says more of the two
                assert actual == pytest.approx(expected, abs=1e-6)
