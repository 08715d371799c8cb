"""Stages on augmented rows: the rows that are kept, and trials against plain loops, the live trunk and themselves."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from support.loaded_classifier import build_classifier
from tailsweep.trainables import report_keys
from tailsweep.trainables.config.data import DataConfig, DataSource
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.data.splits import load_splits
from tailsweep.trainables.data.tokenized import SYNTHETIC_FILE, PreparedData, fetch_prepared, open_prepared
from tailsweep.trainables.execution.backends import live_execution
from tailsweep.trainables.execution.feature_plan import FeaturePlan, plan_features
from tailsweep.trainables.execution.feature_store import make_features
from tailsweep.trainables.execution.sparse_embeddings import SparseEmbeddingTraining, word_embedding
from tailsweep.trainables.preparation import prepare
from tailsweep.trainables.storage.cache import default_cache_dir
from tailsweep.trainables.training import step_plan
from tailsweep.trainables.training.losses import build_loss
from tailsweep.trainables.training.runtime import Report, SingleProcess
from tailsweep.trainables.training.stages import TrialRun, run_two_stages
from torch import Tensor, nn

TinyModel = Callable[..., Path]
CPU = torch.device("cpu")
TRAIN_ROWS, AUGMENTED_ROWS = 57, 99  # of the classes 33, 18 and 6; and 33 of each
EDA = {"kind": "eda", "alpha_sr": 0.0, "alpha_ri": 0.0}  # of swapped and deleted words, all in the tiny vocabulary
TOP_LAYER = {"top_layers": 1}
LDAM = {"name": "ldam", "max_margin": 0.5, "scale": 2.0, "beta": 0.99}
SKIPPED = {"epochs": 0}


@pytest.fixture(scope="module")
def config(rows_csv: Path) -> DataConfig:
    return DataConfig.model_validate({"train": str(rows_csv), "validation": 0.2, "test": 0.2, "augmentation": EDA})


@pytest.fixture(scope="module")
def data(config: DataConfig, tiny_model: TinyModel) -> PreparedData:
    return prepare(config, str(tiny_model("bert")), default_cache_dir(), augmented=True)


@pytest.fixture(scope="module")
def plain(config: DataConfig, tiny_model: TinyModel) -> PreparedData:
    """The same rows, without synthetic ones."""
    without = config.model_copy(update={"augmentation": None})
    return prepare(without, str(tiny_model("bert")), default_cache_dir())


def trial(folder: Path, stage_one: dict[str, Any], stage_two: dict[str, Any], head: Any = "native") -> TrialConfig:
    usual = {"batch_size": 16, "learning_rate": 1e-3}
    return TrialConfig.model_validate(
        {
            "data": {"train": "not read here", "augmentation": EDA},
            "model": {"name": str(folder), "head": head},
            "stage_one": usual | stage_one,
            "stage_two": usual | stage_two,
        }
    )


def train(
    config: TrialConfig, data: PreparedData, folder: Path | None = None, start: Path | None = None, **run_options: Any
) -> tuple[list[Report], dict[str, Tensor]]:
    model = build_classifier(config.model, data.label_names, config.seed).to(run_options.pop("dtype", torch.float32))
    runtime = SingleProcess(CPU, folder)
    run_two_stages(TrialRun(config, data, runtime, **run_options), model, start)
    return runtime.reports, model.state_dict()


def measured(reports: list[Report], *apart: str) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in report.items() if key not in (report_keys.SECONDS, *apart)} for report in reports
    ]


# --- the rows that are kept


def test_augmented_rows_are_the_training_rows_and_the_synthetic_ones(
    data: PreparedData, config: DataConfig, tiny_model: TinyModel
) -> None:
    splits = load_splits(config)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model("bert"))
    synthetic = pq.read_table(data.folder / SYNTHETIC_FILE).to_pylist()
    texts = [*splits.train["text"], *(row["text"] for row in synthetic)]
    rows = data.rows_of("augmented")
    assert [rows.tokens[slice(*rows.offsets[i : i + 2])].tolist() for i in range(len(rows))] == [
        tokenizer(text, truncation=True, max_length=40)["input_ids"] for text in texts
    ]
    labels = [*splits.train["label"], *(splits.label_names.index(row["label"]) for row in synthetic)]
    assert rows.labels.tolist() == labels
    assert data.class_counts_of("augmented").tolist() == [33, 33, 33]
    assert data.class_counts_of("train").tolist() == data.class_counts.tolist() == [33, 18, 6]
    assert {row["kind"] for row in synthetic} == {"eda"}
    assert data.sources().tolist() == [*range(TRAIN_ROWS), *(row["source"] for row in synthetic)]
    assert rows.labels[data.sources()].tolist() == labels
    held_out = {*splits.validation["text"], *splits.test["text"]}
    assert not {row["text"] for row in synthetic} & held_out
    assert any("excretion 18 + 15, metabolism 6 + 27" in note for note in data.notes)


def test_without_the_originals_every_class_has_as_many_synthetic_examples(
    config: DataConfig, data: PreparedData, tiny_model: TinyModel, tmp_path: Path
) -> None:
    """As the official stage one of ``two_stage_augmented/paper``, which sees paraphrases alone."""
    assert config.augmentation is not None
    alone = config.model_copy(update={"augmentation": config.augmentation.model_copy(update={"originals": False})})
    synthetic_alone = prepare(alone, str(tiny_model("bert")), tmp_path / "cache", augmented=True)
    assert synthetic_alone.class_counts_of("augmented").tolist() == [33, 33, 33]
    assert len(synthetic_alone.sources()) == len(synthetic_alone.rows_of("augmented")) == 99
    assert set(synthetic_alone.sources().tolist()) <= set(range(TRAIN_ROWS))
    originals = {row.tobytes() for row in np.split(synthetic_alone.train.tokens, synthetic_alone.train.offsets[1:-1])}
    rows = synthetic_alone.rows_of("augmented")
    assert not originals & {row.tobytes() for row in np.split(rows.tokens, rows.offsets[1:-1])}
    assert synthetic_alone.key != data.key
    assert synthetic_alone.key_of("train") == data.key_of("train")


def test_rows_without_augmentation_keep_the_key_they_had(
    data: PreparedData, plain: PreparedData, config: DataConfig, tiny_model: TinyModel
) -> None:
    """The key as it was before rows could be made: what lies in caches stays good."""
    meta = json.loads((plain.folder / "meta.json").read_text(encoding="utf-8"))
    notes = list(load_splits(config).notes)
    identity = [1, meta["rows_fingerprint"], meta["tokenizer_fingerprint"], 40, notes]
    assert config.max_length > 40  # the tiny models' own limit
    identity[-1] = [*notes, "data.max_length is 128, but the model takes at most 40 tokens: rows end there"]
    assert plain.key == hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    assert prepare(config, str(tiny_model("bert")), default_cache_dir()).key == plain.key  # none are asked for
    assert sorted(path.name for path in plain.folder.iterdir()) == [
        "meta.json", "test.arrow", "train.arrow", "validation.arrow",
    ]  # fmt: skip
    assert plain.augmented is None
    assert data.key != plain.key == data.key_without_synthetic


def test_other_synthetic_rows_have_a_key_of_their_own(
    data: PreparedData, config: DataConfig, tiny_model: TinyModel
) -> None:
    other = DataConfig.model_validate({**config.model_dump(), "augmentation": {**EDA, "seed": 1}})
    again, seeded = (
        prepare(data_config, str(tiny_model("bert")), default_cache_dir(), augmented=True)
        for data_config in (config, other)
    )
    assert again.key == data.key
    assert len({data.key, seeded.key}) == 2


@pytest.mark.parametrize("name", ["augmented.arrow", SYNTHETIC_FILE])
def test_augmented_rows_are_downloaded_with_the_others_and_repaired(
    name: str, data: PreparedData, tmp_path: Path
) -> None:
    source = DataSource(key=data.key, published=str(data.folder), digest=data.digest)
    downloaded = fetch_prepared(source, tmp_path)
    (downloaded.folder / name).write_bytes((downloaded.folder / name).read_bytes()[:-8])
    repaired = fetch_prepared(source, tmp_path)
    assert repaired.rows_of("augmented").tokens.tolist() == data.rows_of("augmented").tokens.tolist()
    assert repaired.sources().tolist() == data.sources().tolist()
    assert repaired.key_without_synthetic == data.key_without_synthetic
    assert open_prepared(repaired.folder).notes == data.notes


# --- a stage on them


def test_a_stage_on_augmented_rows_is_the_plain_loop_on_the_texts_one_after_the_other(
    data: PreparedData, config: DataConfig, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        step_plan, "epoch_rows", lambda kind, labels, seed, epoch, epochs: np.roll(np.arange(len(labels)), 50)
    )
    trial_config = trial(
        tiny_model("bert", dropout=0.0),
        SKIPPED,
        {"sampling": "augmented", "loss": LDAM, "warmup_fraction": 0.3, "weight_decay": 0.1},
    )
    reports, actual = train(trial_config, data, dtype=torch.float64)

    splits = load_splits(config)
    synthetic = pq.read_table(data.folder / SYNTHETIC_FILE).to_pylist()
    texts = [*splits.train["text"], *(row["text"] for row in synthetic)]
    labels = [*splits.train["label"], *(splits.label_names.index(row["label"]) for row in synthetic)]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model("bert"))
    model = build_classifier(trial_config.model, data.label_names, trial_config.seed).double().train()
    decayed = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=1e-3
    )
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, 2, 7)  # 99 rows by 16; 0.3 of 7 is 2
    loss = build_loss(trial_config.stage_two.loss, np.array([33, 33, 33])).function  # equal margins
    order = np.roll(np.arange(AUGMENTED_ROWS), 50)
    losses = []
    for first in range(0, AUGMENTED_ROWS, 16):
        batch = order[first : first + 16]
        given = tokenizer([texts[i] for i in batch], padding=True, truncation=True, return_tensors="pt")
        value = loss(model(**given).logits, torch.tensor([labels[i] for i in batch]))
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(value.item())
    torch.testing.assert_close(dict(actual), dict(model.state_dict()), atol=1e-6, rtol=0)
    assert reports[0][report_keys.TRAIN_LOSS] == pytest.approx(np.mean(losses), abs=1e-6)
    assert reports[0][report_keys.ROWS] == AUGMENTED_ROWS


def test_a_stage_on_augmented_rows_is_an_ordinary_one_on_a_data_set_of_them(
    data: PreparedData, tiny_model: TinyModel
) -> None:
    """Bit for bit, weights and order included; but the groups of the scores are those of the real rows."""
    stage = {"trainable": TOP_LAYER, "loss": LDAM}
    as_train = replace(data, train=data.rows_of("augmented"), class_counts=np.array([33, 33, 33]), augmented=None)
    reports, actual = train(trial(tiny_model("bert"), SKIPPED, {**stage, "sampling": "augmented"}), data)
    expected_reports, expected = train(trial(tiny_model("bert"), SKIPPED, stage), as_train)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    groups = [report_keys.on_split(report_keys.VALIDATION, f"recall_{group}") for group in ("many", "medium", "few")]
    groups.append(report_keys.on_split(report_keys.VALIDATION, "micro_f1_minority"))
    assert measured(reports, *groups) == measured(expected_reports, *groups)
    assert reports[0]["validation/recall_few"] is not None
    assert expected_reports[0]["validation/recall_few"] is None


def test_both_kinds_of_stage_follow_one_another(data: PreparedData, plain: PreparedData, tiny_model: TinyModel) -> None:
    stage_two = {"epochs": 1}
    reports, _ = train(trial(tiny_model("bert"), {"trainable": TOP_LAYER, "sampling": "augmented"}, stage_two), data)
    assert [report[report_keys.ROWS] for report in reports] == [AUGMENTED_ROWS, TRAIN_ROWS]
    ordinary = trial(tiny_model("bert"), {"trainable": TOP_LAYER}, stage_two)
    (actual, actual_end), (expected, expected_end) = (train(ordinary, examples) for examples in (data, plain))
    assert measured(actual) == measured(expected)  # where no stage asks for them, they change nothing
    assert all(torch.equal(actual_end[name], expected_end[name]) for name in expected_end)


def test_a_trial_resumes_in_an_augmented_stage_as_if_it_had_never_stopped(
    data: PreparedData, tiny_model: TinyModel, tmp_path: Path
) -> None:
    stage = {"sampling": "augmented", "loss": LDAM, "evaluations_per_epoch": 2}
    trial_config = trial(tiny_model("bert", dropout=0.3), {"trainable": TOP_LAYER, **stage}, stage)
    whole, expected = train(trial_config, data, tmp_path)
    for name in ("stage_one_epoch_000.500", "stage_two_epoch_000.500"):
        reports, actual = train(trial_config, data, start=tmp_path / name)
        assert measured(reports) == measured(whole)
        assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("architecture", "head", "trainable"),
    [
        ("bert", "native", "head"),
        ("bert", "native", TOP_LAYER),
        ("deberta-v2", "native", TOP_LAYER),
    ],
    ids=str,
)
def test_an_augmented_stage_on_cached_features_is_the_one_behind_the_live_trunk(
    architecture: str, head: Any, trainable: Any, data: PreparedData, tiny_model: TinyModel, tmp_path: Path
) -> None:
    stage_one = {"trainable": trainable, "sampling": "augmented", "learning_rate": 3e-4, "epochs": 2}
    trial_config = trial(tiny_model(architecture), stage_one, SKIPPED, head)
    model = build_classifier(trial_config.model, data.label_names, trial_config.seed)
    plan = plan_features(model, trial_config.stage_one, data, "fp32", CPU)
    assert isinstance(plan, FeaturePlan), plan
    assert plan.num_rows == AUGMENTED_ROWS + len(data.validation)
    assert FeaturePlan.load(json.loads(json.dumps(plan.dump()))) == plan
    features = make_features(plan, model, data, tmp_path, CPU)
    live_reports, expected = train(trial_config, data)
    reports, actual = train(trial_config, data, features=features)
    assert all(str(report[report_keys.EXECUTION]).startswith("cached") for report in reports)
    for report, live in zip(
        measured(reports, report_keys.EXECUTION), measured(live_reports, report_keys.EXECUTION), strict=True
    ):
        assert report == pytest.approx(live, abs=1e-6)
    for name, value in expected.items():
        close = 1e-4 if "key" in name else 1e-6  # the gradient of a key's bias is 0 in truth
        torch.testing.assert_close(actual[name], value, atol=close, rtol=0)


def test_features_of_original_rows_are_shared_with_trials_that_make_none(
    data: PreparedData, plain: PreparedData, tiny_model: TinyModel
) -> None:
    def key(prepared: PreparedData, sampling: str) -> str:
        config = trial(tiny_model("bert"), {"trainable": "head", "sampling": sampling}, {})
        model = build_classifier(config.model, prepared.label_names, 0)
        plan = plan_features(model, config.stage_one, prepared, "fp32", CPU)
        assert isinstance(plan, FeaturePlan)
        return plan.key

    assert key(data, "original") == key(plain, "original") == key(data, "oversampled") != key(data, "augmented")


def test_words_that_occur_in_synthetic_rows_only_are_trained_with_the_others(
    data: PreparedData, tiny_model: TinyModel
) -> None:
    rows = data.rows_of("augmented")
    tokens = np.array(rows.tokens)
    odd = int(tokens.max()) + 3
    tokens[-2] = odd
    with_odd = replace(data, augmented=replace(rows, tokens=tokens))
    config = trial(tiny_model("bert"), SKIPPED, {"sampling": "augmented"})
    model = build_classifier(config.model, data.label_names, 0)
    words = SparseEmbeddingTraining(model, live_execution(model, with_odd, CPU, "fp32"), with_odd, "augmented")
    embedding = word_embedding(model)
    assert embedding is not None
    whole = len(embedding.weight)
    with words.active():
        assert len(embedding.weight) == len({0, *tokens.tolist()}) < whole
    before = embedding.weight[odd].clone()
    _, actual = train(config, with_odd)
    assert not torch.equal(actual["bert.embeddings.word_embeddings.weight"][odd], before)


def test_augmented_rows_that_were_not_made_are_a_fault_of_ours(plain: PreparedData, tiny_model: TinyModel) -> None:
    with pytest.raises(AssertionError, match="no augmented rows were made"):
        train(trial(tiny_model("bert"), SKIPPED, {"sampling": "augmented"}), plain)
