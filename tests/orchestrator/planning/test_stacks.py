"""Which trials train together, and what an interrupted process has kept of them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tailsweep.orchestrator.config.schema import FeaturesConfig
from tailsweep.orchestrator.planning import stacks
from tailsweep.orchestrator.planning.preparation import prepare_trials
from tailsweep.orchestrator.planning.stacks import arrange_stacks, kept_stacks, write_trial_checkpoints
from tailsweep.orchestrator.runs.directory import CHECKPOINTS_FOLDER, STACKS_FOLDER, RunDirectory
from tailsweep.orchestrator.runs.trials import TrialRecord, inputs_key
from tailsweep.trainables import report_keys
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.stacks.stack_checkpoint import StackState, save_stack
from tailsweep.trainables.training.checkpoint import is_whole, load_progress


def record(number: int, **stage_one: Any) -> TrialRecord:
    stage = {"trainable": "head", "epochs": 2, "learning_rate": 10.0**-number} | stage_one
    tree = {"data": {"train": "rows.csv"}, "model": {"name": "m"}, "stage_one": stage, "stage_two": {}}
    return TrialRecord(f"t{number:03d}", {}, TrialConfig.model_validate(tree).model_dump(mode="json"))


def environment(linear_head: bool = True, width: int = 4) -> Any:
    """What is asked of one."""
    return SimpleNamespace(
        inputs_of=lambda config: SimpleNamespace(data="d", features="f", linear_head=linear_head),
        features={"f": SimpleNamespace(width=width)},
        data={"d": SimpleNamespace(labels=("a", "b"))},
    )


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(str(tmp_path / "demo"))
    run.create()
    return run


def keep(run: RunDirectory, name: str, epoch: int, training: Sequence[str], ended: Sequence[str] = ()) -> None:
    reports = ({report_keys.STAGE: "stage_one", report_keys.EPOCH: epoch},)
    folder = Path(run.path, STACKS_FOLDER, name, f"stage_one_epoch_{epoch:03d}")
    folder.mkdir(parents=True)
    state = StackState(
        epoch=epoch,
        layer="head",
        training=dict.fromkeys(training, reports),
        parameters=torch.zeros(len(training), 2, 5),
        optimizer={},
        ended=dict.fromkeys(ended, reports),
        ended_parameters={trial: torch.full((2, 5), float(trial[1:])) for trial in ended},
    )
    save_stack(folder, state)


def names(arranged: Sequence[stacks.TrialStack]) -> list[list[str]]:
    return [[trial.name for trial in stack.trials] for stack in arranged]


def test_trials_that_share_their_steps_train_together(run: RunDirectory) -> None:
    trials = [record(0), record(1, batch_size=8), record(2), record(3, trainable="pooler"), record(4, epochs=5)]
    arranged, alone = arrange_stacks(run, trials, environment(), slots=2)
    assert names(arranged) == [["t000", "t002", "t004"], ["t001"]]
    assert [stack.name for stack in arranged] == ["s000", "s001"]
    assert [trial.name for trial in alone] == ["t003"]


def test_without_a_linear_head_on_features_each_trains_alone(run: RunDirectory) -> None:
    arranged, alone = arrange_stacks(run, [record(0), record(1)], environment(linear_head=False), slots=2)
    assert (arranged, len(alone)) == ([], 2)


@pytest.mark.parametrize(
    ("num_trials", "slots", "width", "sizes"),
    [
        (12, 2, 4, [12]),  # a small one takes no longer than half of it
        (40, 2, 4, [20, 20]),
        (40, 64, 4, [13, 13, 14]),
        (300, 2, 4, [100, 100, 100]),
        (6, 2, 2**20, [1] * 6),  # by their memory
    ],
)
def test_stacks_keep_all_slots_busy_and_fit_into_memory(
    run: RunDirectory, num_trials: int, slots: int, width: int, sizes: list[int]
) -> None:
    arranged, _ = arrange_stacks(run, [record(n) for n in range(num_trials)], environment(width=width * 4), slots)
    assert [len(stack.trials) for stack in arranged] == sizes
    assert [name for stack in names(arranged) for name in stack] == [f"t{number:03d}" for number in range(num_trials)]


def test_those_that_an_earlier_process_trained_together_continue_from_there(run: RunDirectory) -> None:
    keep(run, "s000", 1, ["t000", "t001", "t002"])
    keep(run, "s001", 2, ["t003"], ended=["t004"])
    keep(run, "s001.0", 3, ["t003"])  # a half of it, when memory was short
    Path(run.path, STACKS_FOLDER, "s007").mkdir()  # killed before its first report
    arranged, _ = arrange_stacks(run, [record(number) for number in (0, 2, 3, 5)], environment(), slots=2)
    assert names(arranged) == [["t000", "t002"], ["t003"], ["t005"]]
    assert [stack.resume_from for stack in arranged] == ["s000", "s001.0", None]
    assert [stack.name for stack in arranged] == ["s002", "s003", "s004"]
    assert {kept.name: kept.training for kept in kept_stacks(run)}["s001"] == ("t003",)


def test_a_promoted_trial_has_the_checkpoint_that_it_would_have_alone(run: RunDirectory) -> None:
    keep(run, "s000", 2, ["t000"], ended=["t001", "t002"])
    write_trial_checkpoints(run, {"t001", "t000", "t009"})
    (checkpoint,) = Path(run.path, CHECKPOINTS_FOLDER, "t001").iterdir()
    assert is_whole(checkpoint)
    assert load_progress(checkpoint).name == checkpoint.name == "stage_one_epoch_002"
    assert [path.name for path in Path(run.path, CHECKPOINTS_FOLDER).iterdir()] == ["t001"]
    before = checkpoint.stat().st_mtime_ns
    write_trial_checkpoints(run, {"t001"})
    assert checkpoint.stat().st_mtime_ns == before


def test_a_damaged_stack_is_as_if_it_were_not_there(run: RunDirectory) -> None:
    keep(run, "s000", 1, ["t000"], ended=["t001"])
    next(Path(run.path, STACKS_FOLDER, "s000").iterdir()).joinpath("progress.json").write_text("{}")
    assert kept_stacks(run) == []
    write_trial_checkpoints(run, {"t001"})
    assert not Path(run.path, CHECKPOINTS_FOLDER).exists()


def test_models_that_share_features_have_heads_of_their_own(tiny_model: Callable[..., Path], rows_csv: Path) -> None:
    """The features of a mean-pooled vector are the same whatever reads it."""
    heads = [{"pooling": "mean", "kind": kind} for kind in ("linear", "mlp", "linear")]
    stage = {"trainable": "head", "epochs": 1}
    configs = [
        TrialConfig.model_validate(
            {
                "data": {"train": str(rows_csv), "validation": 0.2, "test": 0.2},
                "model": {"name": str(tiny_model("bert")), "head": head},
                "stage_one": stage if place < 2 else stage | {"trainable": {"top_layers": 1}},
                "stage_two": {},
            }
        ).model_dump(mode="json")
        for place, head in enumerate(heads)
    ]
    prepared = prepare_trials(configs, report_keys.DEFAULT_METRIC, FeaturesConfig())
    linear, mlp, top = (prepared.inputs[inputs_key(config)] for config in configs)
    assert linear.features == mlp.features
    assert (linear.linear_head, mlp.linear_head, top.linear_head) == (True, False, False)
