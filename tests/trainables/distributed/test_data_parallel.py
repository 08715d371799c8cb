"""n workers with a share of each batch against plain PyTorch with all of it: gradients, scores, resuming."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from support.data_parallel_workers import CPU, Worker, train_together
from support.loaded_classifier import build_classifier
from tailsweep.trainables import report_keys
from tailsweep.trainables.config.data import DataConfig
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.data.tokenized import PreparedData, open_prepared
from tailsweep.trainables.execution import sparse_embeddings
from tailsweep.trainables.preparation import prepare
from tailsweep.trainables.storage.cache import default_cache_dir
from tailsweep.trainables.training import step_plan
from tailsweep.trainables.training.losses import LOSSES
from tailsweep.trainables.training.runtime import SingleProcess
from tailsweep.trainables.training.stages import TrialRun, run_two_stages
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

CLASS_COUNTS = (33, 18, 6)
ROWS = sum(CLASS_COUNTS)
BATCH = 14  # four whole steps, and one of a single row, of which two of three workers get none
LOSS_CONFIGS: list[dict[str, Any]] = [
    {"name": "cross_entropy"},
    {"name": "cross_entropy", "label_smoothing": 0.2},
    {"name": "weighted_cross_entropy", "beta": 0.99},
    {"name": "weighted_cross_entropy", "beta": 0.99, "label_smoothing": 0.3},
    {"name": "ldam", "max_margin": 0.7, "scale": 1.5, "beta": 0.99},
    {"name": "focal", "gamma": 0.5},
    {"name": "focal", "gamma": 2.0, "beta": 0.99},
    {"name": "balanced_softmax"},
    {"name": "logit_adjustment", "tau": 1.5, "label_smoothing": 0.2},
]
ACCUMULATIONS = (1, 3)


def visited(*_: Any) -> np.ndarray:
    """The order of rows in these tests: the classes mixed, every row once. (The samplers have tests of their own.)"""
    return np.random.default_rng(0).permutation(ROWS)


def one_epoch(model: Path, loss: dict[str, Any], accumulation: int, batch_size: int = BATCH) -> TrialConfig:
    """A stage that moves nothing, so that every step's gradient is one of the same parameters, not clipped."""
    still = {"learning_rate": 1e-30, "max_grad_norm": 1e9, "epochs": 1, "batch_size": batch_size}
    return TrialConfig.model_validate(
        {
            "data": {"train": "not read here"},
            "model": {"name": str(model)},
            "stage_one": {"epochs": 0},
            "stage_two": still | {"loss": loss, "gradient_accumulation": accumulation},
        }
    )


def gradients_of(config: TrialConfig, data: PreparedData, runtime: Any) -> list[dict[str, Tensor]]:
    """Of each optimizer step, by parameter, as the optimizer gets them."""
    model = build_classifier(config.model, data.label_names, config.seed)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    actual: list[dict[str, Tensor]] = []

    def keep(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        actual.append({names[id(p)]: p.grad.clone() for p in parameters if p.grad is not None})

    hook = register_optimizer_step_pre_hook(keep)
    try:
        run_two_stages(TrialRun(config, data, runtime), model)
    finally:
        hook.remove()
    return actual


def work(rank: int, world_size: int, configs: list[TrialConfig], tokens: Path, folder: Path) -> None:
    """What each process runs; the gradients of the first and the last rank, and every rank's reports, to ``folder``."""
    step_plan.epoch_rows = visited
    sparse_embeddings.word_embedding = lambda model: None  # the whole table, as plain PyTorch has it
    data = open_prepared(tokens)
    for number, config in enumerate(configs):
        worker = Worker(rank, world_size)
        actual = gradients_of(config, data, worker)
        if rank in (0, world_size - 1):
            tensors = {
                f"{step}/{name}": value for step, gradients in enumerate(actual) for name, value in gradients.items()
            }
            save_file(tensors, folder / f"{number}-{rank}.safetensors")
        (folder / f"{number}-{rank}.json").write_text(json.dumps(worker.reports))


@dataclass
class Plain:
    """What plain PyTorch says of a step: the whole batch at once, its loss row by row; only the model is ours."""

    data: PreparedData

    def gradients(self, config: TrialConfig, rows: np.ndarray) -> tuple[dict[str, Tensor], float]:
        model = build_classifier(config.model, self.data.label_names, config.seed).train()
        input_ids, mask = map(torch.from_numpy, self.data.train.padded(rows))
        logits = model(input_ids=input_ids, attention_mask=mask).logits
        loss = self.loss(config.stage_two.loss.model_dump(), logits, self.data.train.labels[rows])
        loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, loss.item()

    @staticmethod
    def loss(config: dict[str, Any], logits: Tensor, labels: np.ndarray) -> Tensor:
        """sum_i w_i l_i / sum_i w_i, from the papers' formulas."""
        counts = torch.tensor(CLASS_COUNTS, dtype=torch.float32)
        beta = config.get("beta", 0.0)
        weights = (1 - beta) / (1 - beta**counts) if beta else torch.ones(3)
        if config["name"] == "balanced_softmax":
            logits = logits + counts.log()
        elif config["name"] == "logit_adjustment":
            logits = logits + config["tau"] * (counts / counts.sum()).log()
        smoothing = config.get("label_smoothing", 0.0)
        total = torch.zeros(())
        for row, label in zip(logits, labels.tolist(), strict=True):
            if config["name"] == "ldam":
                margin = config["max_margin"] * (min(CLASS_COUNTS) / CLASS_COUNTS[label]) ** 0.25
                row = config["scale"] * (row - margin * F.one_hot(torch.tensor(label), 3))
            log_p = row.log_softmax(0)
            row_loss = -(1 - smoothing) * log_p[label] - smoothing * log_p.mean()
            if config["name"] == "focal":
                row_loss = row_loss * (1 - log_p[label].exp()) ** config["gamma"]
            total = total + weights[label] * row_loss
        return total / weights[torch.from_numpy(labels)].sum()


@pytest.fixture(scope="module")
def data(tiny_model: Callable[..., Path], rows_csv: Path) -> PreparedData:
    config = DataConfig(train=str(rows_csv), validation=0.2, test=0.2)
    prepared = prepare(config, str(tiny_model("bert")), default_cache_dir())
    assert tuple(prepared.class_counts) == CLASS_COUNTS
    return prepared


@pytest.fixture
def as_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_plan, "epoch_rows", visited)
    monkeypatch.setattr(sparse_embeddings, "word_embedding", lambda model: None)


def test_every_loss_is_among_those_compared() -> None:
    assert {config["name"] for config in LOSS_CONFIGS} == set(LOSSES)


def assert_same_gradients(actual: dict[str, Tensor], expected: dict[str, Tensor], label: str) -> None:
    """To 1e-6 in every entry, in fp32; the largest are about 1."""
    assert actual.keys() == expected.keys()
    off = {name: float((actual[name] - value).abs().max()) for name, value in expected.items()}
    assert max(off.values()) <= 1e-6, (label, max(off, key=lambda name: off[name]))


@pytest.mark.thorough
@pytest.mark.parametrize("loss", LOSS_CONFIGS, ids=lambda loss: "-".join(map(str, loss.values())))
@pytest.mark.usefixtures("as_the_workers")
def test_one_worker_has_the_gradients_of_the_whole_batch(
    loss: dict[str, Any], tiny_model: Callable[..., Path], data: PreparedData
) -> None:
    config = one_epoch(tiny_model("bert", 0.0), loss, accumulation=3)
    runtime = SingleProcess(CPU)
    actual = gradients_of(config, data, runtime)
    expected = [Plain(data).gradients(config, visited()[first : first + BATCH]) for first in range(0, ROWS, BATCH)]
    assert len(actual) == len(expected) == 5
    for step, (step_gradients, (gradients, _)) in enumerate(zip(actual, expected, strict=True)):
        assert_same_gradients(step_gradients, gradients, f"step {step}")
    assert runtime.reports[0]["train/loss"] == pytest.approx(np.mean([loss for _, loss in expected]), rel=1e-6)


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.usefixtures("as_the_workers")
@pytest.mark.thorough
@pytest.mark.xdist_group("fork_server")
def test_workers_have_the_gradients_and_scores_of_one(
    world_size: int, tiny_model: Callable[..., Path], data: PreparedData, tmp_path: Path
) -> None:
    model = tiny_model("bert", 0.0)
    configs = [one_epoch(model, loss, accumulation) for loss in LOSS_CONFIGS for accumulation in ACCUMULATIONS]
    configs.append(one_epoch(model, LOSS_CONFIGS[2], 1, batch_size=2))  # never a row for each of three workers
    train_together(world_size, work, configs, data.folder, tmp_path, folder=tmp_path)
    expected: list[dict[str, Tensor]] = []
    for number, config in enumerate(configs):
        size = config.stage_two.batch_size
        if config.stage_two.gradient_accumulation == 1:  # with another, the same is expected
            steps = [visited()[first : first + size] for first in range(0, ROWS, size)]
            expected = [Plain(data).gradients(config, rows)[0] for rows in steps]
            alone = SingleProcess(CPU)
            run_two_stages(TrialRun(config, data, alone), build_classifier(config.model, data.label_names, config.seed))
        for rank in (0, world_size - 1):
            actual = load_file(tmp_path / f"{number}-{rank}.safetensors")
            assert len(actual) == sum(map(len, expected))
            for step, step_gradients in enumerate(expected):
                own = {name: actual[f"{step}/{name}"] for name in step_gradients}
                assert_same_gradients(own, step_gradients, f"{config.stage_two.loss}, rank {rank}, step {step}")
        # The 19 validation rows are one batch, so that every rank but the first scores none.
        for rank in range(world_size):
            (report,) = json.loads((tmp_path / f"{number}-{rank}.json").read_text())
            (expected_report,) = alone.reports
            for key in report.keys() - {report_keys.SECONDS, report_keys.EXECUTION}:
                value = expected_report[key]
                assert report[key] == (pytest.approx(value, abs=1e-6) if isinstance(value, float) else value), key


# --- continuing within an epoch


def in_thirds(model: Path) -> TrialConfig:
    """Of 57 rows by 8, that is eight steps, an evaluation after the third, the sixth and the eighth."""
    stage = {"loss": {"name": "ldam", "beta": 0.99}, "learning_rate": 1e-3, "batch_size": 8, "epochs": 1}
    stage |= {"evaluations_per_epoch": 3, "sampling": "class_balanced", "gradient_accumulation": 2}
    return TrialConfig.model_validate(
        {
            "data": {"train": "not read here"},
            "model": {"name": str(model)},
            "stage_one": stage | {"trainable": {"top_layers": 1}},
            "stage_two": stage,
        }
    )


def work_and_continue(rank: int, world_size: int, configs: list[TrialConfig], tokens: Path, folder: Path) -> None:
    """Each trial undisturbed, and again from two of its checkpoints within an epoch."""
    import torch.distributed

    data = open_prepared(tokens)
    for number, config in enumerate(configs):
        own = folder / str(number)
        for start in (None, "stage_one_epoch_000.333", "stage_two_epoch_000.667"):
            model = build_classifier(config.model, data.label_names, config.seed).double()
            worker = Worker(rank, world_size, None if start else own)
            run_two_stages(TrialRun(config, data, worker), model, None if start is None else own / start)
            save_file(model.state_dict(), folder / f"{number}-{start}-{rank}.safetensors")
            torch.distributed.barrier()


@pytest.mark.thorough
@pytest.mark.xdist_group("fork_server")
def test_workers_continue_within_an_epoch_at_the_very_batch(
    tiny_model: Callable[..., Path], data: PreparedData, tmp_path: Path
) -> None:
    """With dropout too, which every worker draws for itself; without it, one worker continues from where two were."""
    configs = [in_thirds(tiny_model("bert", dropout)) for dropout in (0.3, 0.0)]
    train_together(2, work_and_continue, configs, data.folder, tmp_path, folder=tmp_path)
    for number, config in enumerate(configs):
        whole = load_file(tmp_path / f"{number}-None-0.safetensors")
        assert not all(math.isclose(float(value.double().std()), 0) for value in whole.values())
        for start in ("stage_one_epoch_000.333", "stage_two_epoch_000.667"):
            for rank in (0, 1):
                resumed = load_file(tmp_path / f"{number}-{start}-{rank}.safetensors")
                assert all(torch.equal(resumed[name], value) for name, value in whole.items()), (start, rank)
            if number == 1:
                model = build_classifier(config.model, data.label_names, config.seed).double()
                run_two_stages(TrialRun(config, data, SingleProcess(CPU)), model, tmp_path / "1" / start)
                torch.testing.assert_close(dict(model.state_dict()), dict(whole), atol=1e-6, rtol=0)
