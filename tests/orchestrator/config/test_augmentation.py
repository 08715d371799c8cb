"""Augmented rows in a sweep file: what may be written, what a preset may say, and which rows are made for whom."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tailsweep.orchestrator.config import sweep as sweep_config
from tailsweep.orchestrator.config.schema import FeaturesConfig
from tailsweep.orchestrator.config.sweep import Sweep, SweepConfigError, load_sweep, to_yaml
from tailsweep.orchestrator.planning.preparation import prepare_trials
from tailsweep.orchestrator.runs.trials import inputs_key
from tailsweep.trainables.config.presets import METHODS

ON_AUGMENTED = "stage_one: {sampling: augmented}"


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Sweep]:
    def load_text(text: str, *overrides: str) -> Sweep:
        path = tmp_path / "a.yaml"
        path.write_text(text, encoding="utf-8")
        return load_sweep(path, overrides)

    return load_text


def issues(load: Callable[..., Sweep], text: str, *overrides: str) -> list[str]:
    with pytest.raises(SweepConfigError) as raised:
        load(text, *overrides)
    return raised.value.issues


@pytest.mark.parametrize("stage", ["stage_one", "stage_two"])
def test_augmented_sampling_without_an_augmentation_is_an_error_with_a_hint(load: Any, stage: str) -> None:
    assert issues(load, f"data: {{train: rows.csv}}\n{stage}: {{sampling: augmented}}") == [
        f"{stage}.sampling is augmented, but data.augmentation is null: set it, such as data: "
        "{augmentation: {kind: eda}}, or choose another sampling"
    ]
    assert (
        len(issues(load, f"data: {{train: rows.csv}}\n{stage}: {{sampling: {{choice: [original, augmented]}}}}")) == 1
    )


def test_an_augmentation_that_no_stage_trains_on_is_noted(load: Any) -> None:
    text = "data: {train: rows.csv, augmentation: {kind: eda}}\n"
    note = "data.augmentation has no effect: no stage has sampling: augmented"
    assert note in load(text).notes
    for used in (ON_AUGMENTED, "stage_two: {sampling: {choice: [original, augmented]}}"):
        assert note not in load(text + used).notes


@pytest.mark.parametrize(
    ("augmentation", "issue"),
    [
        ("{kind: edda}", 'is "edda", but must be one of eda, back_translation, paraphrases; did you mean "eda"?'),
        ("{kind: eda, alpha_xx: 0.1}", "alpha_xx: unknown field"),
        ("{kind: eda, alpha_sr: 1.5}", "alpha_sr: is 1.5, but must be a number >= 0 and <= 1"),
        ("{kind: eda, alpha_sr: 0, alpha_ri: 0, alpha_rs: 0, alpha_rd: 0}", "are all 0, but one of them must be"),
        ("{kind: eda, target_ratio: 0}", "target_ratio: is 0, but must be a number > 0 and <= 1"),
        ("{kind: eda, lexicon: wordnett}", 'must be one of built_in, wordnet; did you mean "wordnet"?'),
        ("{kind: paraphrases}", "file: missing, but must be text"),
        ("{kind: back_translation, pivots: []}", "pivots: is [], but must be a list of {to: ..., back: ...}"),
        ("{kind: back_translation, pivots: [{to: a}]}", "pivots.0.back: missing, but must be text"),
        ("{kind: back_translation, decoding: {kind: beams}}", "must be one of sampling, beam_search"),
        ("{kind: back_translation, decoding: {kind: sampling, temperature: 0}}", "temperature: is 0, but must be"),
        ("{kind: eda, seed: {choice: [1, 2]}}", "cannot be swept"),
    ],
)
def test_an_error_in_an_augmentation_is_named(load: Any, augmentation: str, issue: str) -> None:
    (message,) = issues(load, f"data: {{train: rows.csv, augmentation: {augmentation}}}\n{ON_AUGMENTED}")
    assert message.startswith("data.augmentation")
    assert issue in message


@pytest.mark.parametrize(
    "augmentation",
    ["{kind: eda, alpha_rd: 0.2}", "{kind: back_translation}", "{kind: paraphrases, file: aug.csv, source: of}"],
)
def test_a_resolved_sweep_says_how_rows_are_made_and_reads_back(load: Any, augmentation: str) -> None:
    sweep = load(f"data: {{train: rows.csv, augmentation: {augmentation}}}\n{ON_AUGMENTED}")
    written = sweep.config.data["augmentation"]
    assert written["target_ratio"] == 1.0
    assert written["seed"] == 42
    again = load(to_yaml(sweep))
    assert again.config == sweep.config
    assert again.trials()[0].config.data.augmentation == sweep.trials()[0].config.data.augmentation


def test_a_preset_may_say_how_rows_are_made_and_the_file_overrides_it(
    load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    preset = {
        "data": {"augmentation": {"kind": "eda", "alpha_sr": 0.3}},
        "stage_one": {"sampling": "augmented"},
        "stage_two": {},
    }
    monkeypatch.setattr(sweep_config, "METHODS", {**METHODS, "two_stage": preset})

    def augmentation(written: str, *overrides: str) -> Any:
        sweep = load(f"data: {{train: rows.csv{written}}}", *overrides)
        config = sweep.trials()[0].config.data.augmentation
        return None if config is None else config.model_dump(include={"kind", "alpha_sr", "seed", "file"})

    assert augmentation("") == {"kind": "eda", "alpha_sr": 0.3, "seed": 42}
    assert augmentation(", augmentation: {seed: 1}") == {"kind": "eda", "alpha_sr": 0.3, "seed": 1}
    other = {"kind": "paraphrases", "seed": 42, "file": "aug.csv"}
    assert augmentation(", augmentation: {kind: paraphrases, file: aug.csv}") == other
    assert augmentation("", "data.augmentation={kind: paraphrases, file: aug.csv}") == other
    assert "data.augmentation is null" in issues(load, "data: {train: rows.csv, augmentation: null}")[0]
    assert issues(load, "stage_two: {epochs: 1}") == ["data: missing, but must be a mapping"]


def test_rows_are_made_for_the_trials_that_train_on_them_only(
    load: Any, tiny_model: Callable[..., Path], rows_csv: Path
) -> None:
    sweep = load(
        f"data: {{train: '{rows_csv}', augmentation: {{kind: eda}}}}\n"
        f"model: {{name: '{tiny_model('bert')}'}}\nsearch: grid\n"
        "stage_one: {trainable: head, sampling: {grid: [original, oversampled, augmented]}}\n"
    )
    trial_configs = list(
        {c.config.stage_one.sampling: c.config.model_dump(mode="json") for c in sweep.trials()}.values()
    )
    prepared = prepare_trials(trial_configs, "validation/macro_f1", FeaturesConfig())
    assert inputs_key(trial_configs[0]) == inputs_key(trial_configs[1]) != inputs_key(trial_configs[2])
    original, augmented = (prepared.inputs[inputs_key(trial_configs[number])] for number in (0, 2))
    assert prepared.data[original.data].augmented is None
    assert prepared.data[augmented.data].key_without_synthetic == original.data
    assert prepared.plans[str(augmented.features)].training_split == "augmented"
    assert len({original.features, augmented.features}) == 2
    assert any("synthetic examples; training + synthetic of each class" in note for note in prepared.notes)


def test_an_adaptive_search_knows_of_every_value_of_rows(load: Any) -> None:
    pytest.importorskip("optuna")
    sweep = load(
        "data: {train: rows.csv, augmentation: {kind: eda}}\nsearch: optuna\nnum_trials: 2\n"
        "stage_one: {sampling: {choice: [original, augmented]}}\n"
        "stage_two: {sampling: {choice: [original, augmented]}}\n"
    )
    samplings = {
        (trial_config.stage_one.sampling, trial_config.stage_two.sampling)
        for trial_config in sweep.representative_trials()
    }
    assert len(samplings) == 4
    assert (
        len({inputs_key(trial_config.model_dump(mode="json")) for trial_config in sweep.representative_trials()}) == 4
    )
