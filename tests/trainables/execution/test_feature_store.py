"""Cached outputs of a frozen trunk: what decides the key, and that only a whole and right entry is ever used."""

import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.forked import fork_server, started
from support.loaded_classifier import build_classifier
from tailsweep.trainables.config.trial import ModelConfig, StageConfig
from tailsweep.trainables.data.tokenized import PreparedData, TokenizedExamples
from tailsweep.trainables.errors import DataError, ModelError
from tailsweep.trainables.execution import feature_plan, feature_store
from tailsweep.trainables.execution.feature_plan import FeaturePlan, plan_features
from tailsweep.trainables.execution.feature_store import (
    Features,
    PartSet,
    is_whole,
    make_features,
    make_part,
    open_features,
)
from tailsweep.trainables.execution.trunk import SplitPoint
from torch import Tensor, nn

TinyModel = Callable[..., Path]
CPU = torch.device("cpu")
LABELS = ("a", "b", "c")
ROWS = {"train": 23, "validation": 7, "test": 2}
TOP_LAYER = {"top_layers": 1}


def rows_of(count: int, seed: int) -> TokenizedExamples:
    """Rows of 1 to 40 random words."""
    rng = np.random.default_rng(seed)
    lengths = np.concatenate([[1, 40], rng.integers(1, 41, count - 2)])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return TokenizedExamples(rng.integers(5, 50, offsets[-1]).astype(np.int32), offsets, np.arange(count) % 3, 0)


def prepared(key: str = "rows") -> PreparedData:
    splits = {split: rows_of(count, seed) for seed, (split, count) in enumerate(ROWS.items())}
    return PreparedData(Path("nowhere"), key, "digest", LABELS, np.array([8, 8, 7]), (), 0, **splits)


def classifier(folder: Path, head: str = "native", seed: int = 0, labels: tuple[str, ...] = LABELS) -> nn.Module:
    model_options: Any = {"name": str(folder), "head": head if head == "native" else {"pooling": head}}
    return build_classifier(ModelConfig.model_validate(model_options), labels, seed)


def planned(model: nn.Module, trainable: Any, dtype: Any = "fp32", data: PreparedData | None = None) -> FeaturePlan:
    stage = StageConfig.model_validate({"trainable": trainable})
    plan = plan_features(model, stage, prepared() if data is None else data, dtype, CPU)
    assert isinstance(plan, FeaturePlan), plan
    return plan


@pytest.fixture(scope="module")
def model(tiny_model: TinyModel) -> nn.Module:
    return classifier(tiny_model("bert"))


def values(entry: Features) -> list[Tensor]:
    """Read off the disk: what lies there now, and is not mapped any more later."""
    return [entry.train.clone(), entry.validation.clone()]


def assert_same(actual: Features, expected: list[Tensor]) -> None:
    """Bit for bit."""
    assert all(torch.equal(left, right) for left, right in zip(values(actual), expected, strict=True))


# --- what is cached


@pytest.mark.parametrize("architecture", ["bert", "modernbert", "deberta-v2"])
@torch.no_grad()
def test_the_features_are_what_hugging_face_gives_row_by_row(
    architecture: str, tiny_model: TinyModel, tmp_path: Path
) -> None:
    data = prepared()
    model = classifier(tiny_model(architecture), "mean").eval()
    head, top = (
        make_features(planned(model, trainable), model, data, tmp_path, CPU) for trainable in ("head", TOP_LAYER)
    )
    assert (head.split_point, top.split_point) == (SplitPoint("pooled"), SplitPoint("tokens", 2))
    assert head.packed == top.packed == (architecture != "deberta-v2")
    for split in ("train", "validation"):
        rows = getattr(data, split)
        pooled, states = [], []
        for i in range(len(rows)):
            ids = torch.from_numpy(rows.tokens[rows.offsets[i] : rows.offsets[i + 1]].astype(np.int64))[None]
            output = model.encoder(ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)  # type: ignore[operator]
            pooled.append(output.last_hidden_state.mean(1))
            states.append(output.hidden_states[2][0])  # after two of three layers
        torch.testing.assert_close(getattr(head, split), torch.cat(pooled), atol=1e-5, rtol=0)
        torch.testing.assert_close(getattr(top, split), torch.cat(states), atol=1e-5, rtol=0)


def test_vectors_are_taken_in_any_order_and_as_often_as_asked(model: nn.Module, tmp_path: Path) -> None:
    for dtype in ("fp32", "bf16"):
        entry = make_features(planned(model, "head", dtype), model, prepared(), tmp_path, CPU)
        indices = np.array([5, 0, 22, 5])
        taken = entry.take("train", indices, CPU)
        assert taken.dtype == torch.float32
        assert taken.is_contiguous()
        assert torch.equal(taken, entry.train[torch.from_numpy(indices)].float())


@pytest.mark.parametrize("trainable", ["head", "pooler", TOP_LAYER], ids=str)
def test_bf16_is_fp32_to_its_rounding_in_half_the_bytes(trainable: Any, model: nn.Module, tmp_path: Path) -> None:
    full_plan, half_plan = planned(model, trainable), planned(model, trainable, "bf16")
    full, half = (make_features(plan, model, prepared(), tmp_path, CPU) for plan in (full_plan, half_plan))
    assert (full.dtype, half.dtype) == ("fp32", "bf16")
    assert half_plan.num_bytes * 2 == full_plan.num_bytes
    assert half.train.dtype == half.validation.dtype == torch.bfloat16
    for actual, expected in ((half.train, full.train), (half.validation, full.validation)):
        assert not torch.equal(actual.float(), expected)
        torch.testing.assert_close(actual.float(), expected, atol=0.1, rtol=0.02)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("trainable", ["head", TOP_LAYER], ids=str)
def test_the_forecast_is_the_size_on_disk(trainable: Any, dtype: str, model: nn.Module, tmp_path: Path) -> None:
    plan = planned(model, trainable, dtype)
    make_features(plan, model, prepared(), tmp_path, CPU)
    assert plan.num_bytes == sum(path.stat().st_size for path in (tmp_path / "features" / plan.key).glob("*.bin"))
    data = prepared()
    vectors = 30 if trainable == "head" else len(data.train.tokens) + len(data.validation.tokens)
    assert plan.num_bytes == vectors * 16 * (4 if dtype == "fp32" else 2)


def test_a_plan_travels_as_plain_values(model: nn.Module) -> None:
    for trainable in ("head", TOP_LAYER):
        plan = planned(model, trainable)
        assert FeaturePlan.load(json.loads(json.dumps(plan.dump()))) == plan


def test_what_is_not_a_function_of_the_row_is_not_cached(tiny_model: TinyModel) -> None:
    data = prepared()
    model = classifier(tiny_model("bert"))

    def reason(**stage: Any) -> FeaturePlan | str:
        return plan_features(model, StageConfig.model_validate(stage), data, "fp32", CPU)

    assert reason(trainable="head", frozen_dropout=True) == "frozen_dropout makes the trunk's output random"
    assert reason(trainable="all") == "everything trains"
    with pytest.raises(ModelError, match="AlbertModel has no list of layers"):
        planned(classifier(tiny_model("albert")), TOP_LAYER)


def test_a_split_point_that_gives_other_logits_is_not_taken(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = feature_store.trunk_outputs
    stage = StageConfig(trainable="head")

    def nothing(*_: object) -> Tensor:
        raise NotImplementedError

    for wrong, reason in (
        (lambda *given: honest(*given) + 1e-3, "BertModel, split at pooled vectors, gives other logits (off by "),
        (
            lambda *given: honest(*given) * torch.nan,
            "BertModel, split at pooled vectors, gives other logits (off by nan",
        ),
        (nothing, "BertModel cannot be split at pooled vectors (NotImplementedError)"),
    ):
        monkeypatch.setattr(feature_plan, "trunk_outputs", wrong)
        model.train()
        actual = plan_features(model, stage, prepared(), "fp32", CPU)
        assert isinstance(actual, str)
        assert actual.startswith(reason)
        assert all(module.training for module in model.modules())


# --- the key


def test_the_key_changes_with_whatever_changes_the_numbers(tiny_model: TinyModel) -> None:
    folder = tiny_model("bert")
    model = classifier(folder)
    plain = planned(model, "head").key
    assert planned(model, "head").key == plain
    others = {
        "rows": planned(model, "head", data=prepared("other rows")).key,
        "first token": planned(model, "pooler").key,
        "top layer": planned(model, TOP_LAYER).key,
        "two top layers": planned(model, {"top_layers": 2}).key,
        "bf16": planned(model, "head", "bf16").key,
        "architecture": planned(classifier(tiny_model("electra")), "head").key,
    }
    encoder: Any = model.base_model
    for name, parameter in (
        ("words", encoder.embeddings.word_embeddings.weight),
        ("norm", encoder.encoder.layer[2].output.LayerNorm.bias),
    ):
        with torch.no_grad():
            parameter[-1] += 1e-3
        others[name] = planned(model, "head").key
    encoder.config.layer_norm_eps *= 2
    others["settings"] = planned(model, "head").key
    keys = list(others.values())
    assert plain not in keys
    assert [name for name, key in others.items() if keys.count(key) > 1] == []


def test_heads_that_pool_otherwise_have_keys_of_their_own(tiny_model: TinyModel) -> None:
    keys = [planned(classifier(tiny_model("bert"), pooling), "head").key for pooling in ("cls", "mean", "pooler")]
    assert len(set(keys)) == 3


@pytest.mark.parametrize("trainable", ["head", "pooler", TOP_LAYER], ids=str)
def test_trials_share_an_entry(trainable: Any, tiny_model: TinyModel) -> None:
    """The seed draws the head, the labels shape it: neither is of the trunk, nor is what trained above the split."""
    folder = tiny_model("bert")
    model = classifier(folder)
    plain = planned(model, trainable).key
    assert planned(classifier(folder, seed=1), trainable).key == plain
    assert planned(classifier(folder, labels=("yes", "no")), trainable).key == plain
    assert planned(model.train(), trainable).key == plain
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 1
    assert planned(model, trainable).key == plain


# --- made once, and checked on opening


def test_an_entry_is_made_once(model: nn.Module, tmp_path: Path) -> None:
    plan = planned(model, "head")
    ran: list[int] = []
    hook = model.base_model.register_forward_pre_hook(lambda *_: ran.append(1))  # type: ignore[operator]
    first = values(make_features(plan, model, prepared(), tmp_path, CPU))
    assert ran
    ran.clear()
    again = make_features(plan, model, prepared(), tmp_path, CPU)
    hook.remove()
    assert not ran
    assert_same(again, first)
    names = {path.name for path in (tmp_path / "features").iterdir()}
    assert names == {plan.key, f"{plan.key}.lock"}
    assert {path.name for path in (tmp_path / "features" / plan.key).iterdir()} == {
        "meta.json",
        "train.bin",
        "validation.bin",
    }


def truncate(folder: Path, other: Path) -> None:
    os.truncate(folder / "train.bin", (folder / "train.bin").stat().st_size - 4)


def lengthen(folder: Path, other: Path) -> None:
    with (folder / "validation.bin").open("ab") as file:
        file.write(b"more")


def alter(folder: Path, other: Path) -> None:
    with (folder / "validation.bin").open("r+b") as file:
        file.seek(100)
        file.write(b"\x01")


def swap(folder: Path, other: Path) -> None:
    """Numbers that are right, under another entry's key: of the same size, and whole by their own checksums."""
    shutil.rmtree(folder)
    shutil.copytree(other, folder)


def foreign(folder: Path, other: Path) -> None:
    """Another program's file in place of ours, without its checksum."""
    shutil.copyfile(other / "train.bin", folder / "train.bin")


def lose(folder: Path, other: Path) -> None:
    (folder / "train.bin").unlink()


def forget(folder: Path, other: Path) -> None:
    (folder / "meta.json").unlink()


def scribble(folder: Path, other: Path) -> None:
    (folder / "meta.json").write_text('["not", "ours"]')


def empty(folder: Path, other: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGES = [truncate, lengthen, alter, swap, foreign, lose, forget, scribble, empty]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_entry_is_made_again(damage: Callable[[Path, Path], None], model: nn.Module, tmp_path: Path) -> None:
    plan, other = planned(model, "head"), planned(model, "head", data=prepared("other"))
    expected = values(make_features(plan, model, prepared(), tmp_path, CPU))
    shifted = replace(prepared("other"), train=rows_of(ROWS["train"], 77))
    make_features(other, model, shifted, tmp_path, CPU)
    folder = tmp_path / "features" / plan.key
    assert is_whole(folder, plan)
    damage(folder, tmp_path / "features" / other.key)
    assert not is_whole(folder, plan)
    assert_same(make_features(plan, model, prepared(), tmp_path, CPU), expected)
    assert is_whole(folder, plan)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc/self/maps tells what is mapped")
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_an_opened_entry_is_the_file_itself_in_memory(dtype: str, model: nn.Module, tmp_path: Path) -> None:
    plan = planned(model, TOP_LAYER, dtype)
    entry = make_features(plan, model, prepared(), tmp_path, CPU)
    folder = tmp_path / "features" / plan.key
    mapped = {}
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, path = line.split(maxsplit=5)
        mapped.setdefault(path, []).append([int(end, 16) for end in span.split("-")])
    for split in ("train", "validation"):
        address = getattr(entry, split).data_ptr()
        assert any(first <= address < end for first, end in mapped[str(folder / f"{split}.bin")])
    entry.take("train", np.arange(5), CPU).add_(1)  # a copy
    entry.train.add_(1)  # nothing does, but what did could harm itself only
    assert is_whole(folder, plan)


# --- in parts


@pytest.mark.parametrize("num_parts", [1, 2, 3, 40])
@pytest.mark.parametrize("trainable", ["head", TOP_LAYER], ids=str)
def test_parts_make_the_whole(trainable: Any, num_parts: int, model: nn.Module, tmp_path: Path) -> None:
    """One part bit for bit. Several to rounding: other rows share their batches, and matrix products sum otherwise."""
    plan = planned(model, trainable)
    whole = make_features(plan, model, prepared(), tmp_path / "alone", CPU)
    published = tmp_path / "published"
    published.mkdir()
    for part in reversed(range(num_parts)):
        make_part(plan, model, prepared(), PartSet(published.as_uri(), num_parts), part, CPU)
    # Of another number of parts, and so none of these.
    make_part(plan, model, replace(prepared(), train=rows_of(9, 5)), PartSet(str(published), num_parts + 1), 0, CPU)

    hook = model.base_model.register_forward_pre_hook(lambda *_: pytest.fail("the trunk is run again"))  # type: ignore[operator]
    entry = make_features(plan, model, prepared(), tmp_path / "other node", CPU, PartSet(str(published), num_parts))
    hook.remove()
    if num_parts == 1:
        assert_same(entry, values(whole))
    torch.testing.assert_close(values(entry), values(whole), atol=2e-6, rtol=0)
    assert is_whole(tmp_path / "other node" / "features" / plan.key, plan)
    assert len(list(published.iterdir())) == 2 * (2 * num_parts + 2)  # what is published stays


def test_parts_that_are_not_all_there_are_not_waited_for(model: nn.Module, tmp_path: Path) -> None:
    plan = planned(model, "head")
    expected = values(make_features(plan, model, prepared(), tmp_path / "alone", CPU))
    published = tmp_path / "published"
    published.mkdir()
    for part in (0, 2):
        make_part(plan, model, prepared(), PartSet(str(published), 3), part, CPU)
    for place in (published, tmp_path / "nowhere"):
        cache = tmp_path / f"cache of {place.name}"
        assert_same(make_features(plan, model, prepared(), cache, CPU, PartSet(str(place), 3)), expected)


@pytest.mark.parametrize("damage", ["truncated", "altered"])
def test_a_damaged_part_is_an_error_and_no_entry(damage: str, model: nn.Module, tmp_path: Path) -> None:
    plan = planned(model, "head")
    for part in (0, 1):
        make_part(plan, model, prepared(), PartSet(str(tmp_path), 2), part, CPU)
    damaged = tmp_path / "train-0001-of-0002.bin"
    if damage == "truncated":
        os.truncate(damaged, damaged.stat().st_size - 1)
    else:
        with damaged.open("r+b") as file:
            byte = file.read(1)
            file.seek(0)
            file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(DataError, match=r"are damaged: train-0001-of-0002\.bin is not as it was written; run again"):
        make_features(plan, model, prepared(), tmp_path / "cache", CPU, PartSet(str(tmp_path), 2))
    assert [path.name for path in (tmp_path / "cache" / "features").iterdir()] == [f"{plan.key}.lock"]


def test_parts_are_made_some_rows_at_a_time(model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so that an entry of any size fits into memory; the numbers are the same, to the rounding of other batches."""
    plan = planned(model, TOP_LAYER)
    expected = values(make_features(plan, model, prepared(), tmp_path / "at once", CPU))
    monkeypatch.setattr(feature_store, "ROWS_AT_ONCE", 5)
    in_fives = values(make_features(plan, model, prepared(), tmp_path / "in fives", CPU))
    torch.testing.assert_close(in_fives, expected, atol=1e-6, rtol=0)


# --- several processes, and processes that die


def make_when_all_are_ready(number: int, folder: Path, plan: FeaturePlan, cache: Path, barrier: Barrier) -> None:
    torch.set_num_threads(1)
    model = classifier(folder)
    ran = 0
    run = feature_store._write_part

    def slowly(*given: Any) -> None:
        nonlocal ran
        ran += 1
        time.sleep(0.3)
        run(*given)

    feature_store._write_part = slowly
    barrier.wait(200)
    entry = make_features(plan, model, prepared(), cache, CPU)
    (cache / f"{number}.json").write_text(json.dumps([ran, entry.train.tolist()]))


@pytest.mark.thorough
@pytest.mark.xdist_group("fork_server")
def test_of_several_processes_one_makes_the_entry(tiny_model: TinyModel, model: nn.Module, tmp_path: Path) -> None:
    plan = planned(model, "head")
    barrier = fork_server().Barrier(2)
    given = [(number, tiny_model("bert"), plan, tmp_path, barrier) for number in range(2)]
    for child in started(make_when_all_are_ready, given):
        child.join(200)
        assert child.exitcode == 0
    results = [json.loads((tmp_path / f"{number}.json").read_text()) for number in range(2)]
    assert sorted(ran for ran, _ in results) == [0, len(feature_store.SPLITS)]
    expected = values(make_features(plan, model, prepared(), tmp_path / "alone", CPU))[0]
    for _, train in results:
        torch.testing.assert_close(torch.tensor(train), expected, atol=1e-6, rtol=0)


def stop_at(step: str, folder: Path, plan: FeaturePlan, cache: Path) -> None:
    """Come to a step of making features, say so, and never continue."""

    def stop(*_: object) -> None:
        (cache / "reached").touch()
        time.sleep(600)

    torch.set_num_threads(1)
    setattr(feature_store, step, stop)
    make_features(plan, classifier(folder), prepared(), cache, CPU)


@pytest.mark.parametrize("step", ["trunk_outputs", "sync_to_disk"])
@pytest.mark.thorough
@pytest.mark.xdist_group("fork_server")
def test_what_a_killed_process_leaves_is_never_used(
    step: str, tiny_model: TinyModel, model: nn.Module, tmp_path: Path
) -> None:
    """Killed with the room made and nothing in it, and with every number written."""
    plan = planned(model, "head")
    (child,) = started(stop_at, [(step, tiny_model("bert"), plan, tmp_path)])
    deadline = time.monotonic() + 200
    while not (tmp_path / "reached").exists():
        assert time.monotonic() < deadline
        assert child.is_alive()
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.join(10)
    assert child.exitcode == -signal.SIGKILL
    folder = tmp_path / "features" / plan.key
    partial = folder.with_name(f".{plan.key}.partial")
    assert partial.exists()
    assert not folder.exists()
    entry = make_features(plan, model, prepared(), tmp_path, CPU)
    assert_same(entry, values(make_features(plan, model, prepared(), tmp_path / "alone", CPU)))
    assert not partial.exists()


def make_with_room_for(num_bytes: int, folder: Path, plan: FeaturePlan, cache: Path) -> None:
    torch.set_num_threads(1)
    model = classifier(folder)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        make_features(plan, model, prepared(), cache, CPU)
    except DataError as error:
        message = str(error)
    else:
        message = "no error"
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    (cache / "message").write_text(message)


@pytest.mark.thorough
@pytest.mark.xdist_group("fork_server")
def test_a_file_that_cannot_be_written_whole_is_an_error_and_no_entry(
    tiny_model: TinyModel, model: nn.Module, tmp_path: Path
) -> None:
    """The system refuses the write halfway, as it does on a full disk; with another number for the reason."""
    plan = planned(model, TOP_LAYER)
    (child,) = started(make_with_room_for, [(4096, tiny_model("bert"), plan, tmp_path)])
    child.join(200)
    assert child.exitcode == 0
    message = (tmp_path / "message").read_text()
    assert message.startswith(f'cannot write the cache "{tmp_path}": ')
    assert "File too large" in message
    assert [path.name for path in (tmp_path / "features").iterdir()] == [f"{plan.key}.lock"]
    make_features(plan, model, prepared(), tmp_path, CPU)
    assert is_whole(tmp_path / "features" / plan.key, plan)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_full_disk_is_an_error_and_no_entry(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(model, "head")
    monkeypatch.setattr(feature_store, "_part_name", lambda *_: "full")
    making = Path.mkdir

    def with_a_full_device(folder: Path, *given: Any, **named: Any) -> None:
        making(folder, *given, **named)
        if folder.name.endswith(".partial"):
            (folder / "full").symlink_to("/dev/full")

    monkeypatch.setattr(Path, "mkdir", with_a_full_device)
    with pytest.raises(DataError, match=r"cannot write the cache .*No space left on device"):
        make_features(plan, model, prepared(), tmp_path, CPU)
    assert [path.name for path in (tmp_path / "features").iterdir()] == [f"{plan.key}.lock"]


def test_a_cache_that_cannot_be_written_is_an_error(model: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="set TAILSWEEP_CACHE to a folder that can be written"):
        make_features(planned(model, "head"), model, prepared(), tmp_path / "file", CPU)


def test_an_entry_outlives_its_folder_for_who_has_it_open(model: nn.Module, tmp_path: Path) -> None:
    plan = planned(model, "head")
    entry = make_features(plan, model, prepared(), tmp_path, CPU)
    again = open_features(tmp_path / "features" / plan.key, plan)
    expected = values(entry)
    shutil.rmtree(tmp_path / "features" / plan.key)
    assert_same(again, expected)
