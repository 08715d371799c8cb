"""A comparison file becomes one sweep per method with one budget, or all its errors together."""

import operator
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tailsweep.orchestrator.comparison.config import Comparison, comparison_of, load_comparison
from tailsweep.orchestrator.comparison.results import searched_directory
from tailsweep.orchestrator.config.errors import SweepConfigError
from tailsweep.orchestrator.config.yaml_io import parse_yaml
from tailsweep.orchestrator.runs.directory import RunDirectory
from tailsweep.trainables.config.presets import METHODS
from tailsweep.trainables.data.imbalance import imbalance_rows

SWEEPS = Path(__file__).resolve().parents[3] / "orchestrator" / "sweeps"
SWEPT = "stage_two: {learning_rate: {loguniform: [1e-5, 1e-4]}}"
LEAST = f"data: {{train: rows.csv}}\n{SWEPT}\nmethods: [vanilla, two_stage]\n"


@pytest.fixture
def load(tmp_path: Path) -> Any:
    def load_text(text: str, *overrides: str, **keywords: Any) -> Comparison:
        path = tmp_path / "methods.yaml"
        path.write_text(text, encoding="utf-8")
        return load_comparison(path, overrides, **keywords)

    return load_text


def issues(load: Any, text: str, *overrides: str) -> list[str]:
    with pytest.raises(SweepConfigError) as raised:
        load(text, *overrides)
    return raised.value.issues


def test_every_method_is_a_sweep_of_the_shared_settings_with_the_budget(load: Any) -> None:
    comparison = load(LEAST + "name: mine\nstorage: here\nbudget: {trials: 5}\nmetric: validation/mcc")
    for method in ("vanilla", "two_stage"):
        config = comparison.search(method, None).config
        assert (config.method, config.num_trials, config.metric) == (method, 5, "validation/mcc")
        assert config.stage_two["learning_rate"] == {"loguniform": [1e-5, 1e-4]}
        assert f"{config.storage}/{config.name}" == f"here/mine/methods/{method}/search"
        assert config.wandb.group == f"mine-{method}"
    assert comparison.search("vanilla", None).config.stage_one["epochs"] == 0
    assert comparison.search("two_stage", None).trials()[0].config.stage_one.epochs > 0


def test_its_sweeps_lie_below_it_in_a_bucket_too(load: Any) -> None:
    query = "?endpoint_override=127.0.0.1:9000&scheme=http&region=us-east-1"
    comparison = load(LEAST + "name: mine", storage=f"s3://bucket/runs/{query}")
    assert comparison.location == f"s3://bucket/runs/mine{query}"
    assert comparison.search("vanilla", None).config.storage == f"s3://bucket/runs/mine/methods/vanilla{query}"
    search = searched_directory(RunDirectory(comparison.location), "vanilla", None, None)
    assert (search.path, search.location) == (
        "bucket/runs/mine/methods/vanilla/search",
        f"s3://bucket/runs/mine/methods/vanilla/search{query}",
    )


def test_the_defaults_are_the_papers_seeds_and_vanilla(load: Any) -> None:
    comparison = load(LEAST)
    assert comparison.config.seeds == (7, 42, 106, 190, 191)
    assert comparison.reference == "vanilla"
    assert comparison.folds == [None]
    assert comparison.config.baselines == (
        "tfidf",
        "tfidf_balanced",
        "embeddings",
        "embeddings_balanced",
        "svm_balanced",
    )
    assert load(LEAST.replace("vanilla", "lp_ft")).reference == "lp_ft"


def test_a_method_s_own_settings_lie_over_the_shared_ones(load: Any) -> None:
    comparison = load(
        "data: {train: rows.csv}\nmethods:\n  vanilla:\n  focused: {method: vanilla, "
        "stage_two: {learning_rate: 1e-5, loss: {name: weighted_cross_entropy}}}\nstage_two: {learning_rate: 2e-5}"
    )
    assert comparison.search("vanilla", None).config.stage_two["learning_rate"] == 2e-5
    stage_two = comparison.search("focused", None).config.stage_two
    assert (stage_two["learning_rate"], stage_two["loss"]["name"]) == (1e-5, "weighted_cross_entropy")


def test_a_budget_of_epochs_takes_as_many_trials_as_it_pays_for(load: Any) -> None:
    """Three epochs of a trial: 10 pay for three of them, 2 for the least there can be."""
    text = LEAST.replace("vanilla, two_stage", "vanilla") + "budget: {epochs: %d}\n"
    with_three = "\nstage_two.epochs=3"
    for epochs, trials in ((10, 3), (9, 3), (8, 2), (2, 1)):
        comparison = load(text % epochs, *with_three.split())
        assert comparison.search("vanilla", None).num_trials == trials


def test_a_budget_of_seconds_is_the_sweep_s(load: Any) -> None:
    config = load(LEAST + "budget: {seconds: 90}").search("vanilla", None).config
    assert config.max_wallclock_seconds == 90
    assert config.num_trials is not None
    assert config.num_trials > 50


def test_a_method_with_fewer_different_trials_than_the_budget_says_so(load: Any) -> None:
    comparison = load("data: {train: rows.csv}\nmethods: {plain: {method: vanilla, stage_two: {learning_rate: 1e-5, "
                      "epochs: 1, batch_size: 8}}}\nbudget: {trials: 4}")  # fmt: skip
    assert comparison.search("plain", None).num_trials == 1
    assert "plain: has 1 different trial(s), fewer than the budget of 4" in comparison.notes


def test_a_budget_that_one_trial_exceeds_is_said(load: Any) -> None:
    text = LEAST + "stage_one: {epochs: 3}\nbudget: {epochs: 5}"
    said = [note for note in load(text, "stage_two.epochs=4").notes if "budget" in note]
    assert said == ["two_stage: its one trial has 7 epochs, more than the budget of 5: others may have fewer"]
    enough = load(text.replace("epochs: 5}", "epochs: 7}"), "stage_two.epochs=4")
    assert not any("budget" in note for note in enough.notes)


def test_a_stage_one_that_is_shared_is_of_the_methods_that_have_one(load: Any) -> None:
    text = LEAST.replace(
        "[vanilla, two_stage]", "{vanilla: , two_stage: , own: {method: vanilla, stage_one: {epochs: 2}}}"
    )
    comparison = load(text + "stage_one: {epochs: 3, batch_size: 4}")
    stages = {
        method: comparison.search(method, None).trials()[0].config.stage_one for method in comparison.config.methods
    }
    assert {method: stage.epochs for method, stage in stages.items()} == {"vanilla": 0, "two_stage": 3, "own": 2}
    assert stages["own"].batch_size == stages["two_stage"].batch_size == 4


def test_folds_take_the_test_rows_in_turn(load: Any) -> None:
    comparison = load(LEAST + "folds: 3\nname: mine\n")
    assert comparison.folds == [0, 1, 2]
    config = comparison.search("vanilla", 2).config
    assert config.data["fold"] == {"index": 2, "of": 3}
    assert config.name == "search-fold2"


def test_each_seed_can_draw_a_search_of_its_own(load: Any) -> None:
    text = LEAST + "name: mine\nbudget: {trials: 5}\nseeds: [3, 4]\n"
    comparison = load(text + "search_per_seed: true")
    assert comparison.draws == [3, 4]
    searches = [comparison.search("vanilla", None, draw) for draw in comparison.draws]
    assert [search.name for search in searches] == ["search-seed3", "search-seed4"]
    drawn = [[(trial.config.seed, trial.config.stage_two.learning_rate) for trial in s.trials()] for s in searches]
    assert [{seed for seed, _ in trials} for trials in drawn] == [{3}, {4}]
    assert {rate for _, rate in drawn[0]} != {rate for _, rate in drawn[1]}
    assert comparison.first_search("vanilla").name == "search-seed3"
    assert comparison.tree()["search_per_seed"] is True
    shared = load(text)
    assert shared.draws == [None]
    assert "search_per_seed" not in shared.tree()  # so that a comparison that has begun is the one it was


def test_what_is_written_reads_back_the_same(load: Any) -> None:
    comparison = load(LEAST + "folds: 3\nreference: two_stage\nseeds: [1, 2]\nbudget: {epochs: 20}\nname: mine\n")
    again = comparison_of(comparison.tree(), "again")
    assert again == comparison


def test_overrides_are_those_of_a_sweep(load: Any) -> None:
    comparison = load(LEAST, "data.train=other rows.csv", "seeds=[3]", "methods.vanilla.stage_two.epochs=9")
    config = comparison.search("vanilla", None).config
    assert config.data["train"] == "other rows.csv"
    assert config.stage_two["epochs"] == 9
    assert list(comparison.config.methods) == ["vanilla", "two_stage"]  # the other is still there
    assert comparison.config.seeds == (3,)


def test_an_error_in_shared_settings_is_reported_once(load: Any) -> None:
    assert issues(load, LEAST + "metric: validation/macrof1\n") == [
        'metric: is "validation/macrof1", but must be a validation score; did you mean "validation/macro_f1"?'
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("methods: [vanila]", 'the name is not that of a method; did you mean "vanilla"?'),
        ("methods: [vanilla]\nseeds: [1, 1]", "each seed must appear once"),
        ("methods: [vanilla]\nseeds: []", "seeds"),
        ("methods: {}", "methods"),
        ("methods: [vanilla]\nreference: two_stage", 'reference is "two_stage", but must be one of the methods'),
        ("methods: [vanilla]\nmethod: vanilla", "method: is not for a comparison: say methods"),
        ("methods: [vanilla]\nnum_trials: 3", "num_trials: is not for a comparison: say budget"),
        ("methods: {vanilla: {metric: validation/mcc}}", "methods.vanilla.metric: all methods share it"),
        ("methods: {vanilla: {data: {max_length: 12}}}", "vanilla.data.max_length: all methods share their examples"),
        ("methods: [vanilla]\nbaselines: [tfdf]", "baselines"),
        ("methods: [vanilla]\nfolds: 1", "folds"),
        ("methods: [vanilla]\nsearch_per_seed: true\nseed: 3", "seed: is of one search, but search_per_seed draws one"),
        ("methods: [vanilla]\nwandb: [online]", 'wandb: is ["online"], but must be'),
        ("methods: [vanilla]\nwandb:", "wandb: is null, but must be"),
        ("methods: [vanilla]\nsearch: grid", "search: is grid, but a grid is as large as it is"),
        ("methods: [vanilla]\nbudget: {trials: 0}", "budget.trials: is 0, but must be"),
        ("methods: [vanilla]\nbudget: {trials: 2, epochs: 3}", "budget: must say one of trials, epochs"),
        ("methods: [vanilla]\nbudget: {}", "budget: must say one of trials, epochs and seconds"),
        ("methods: [vanilla, two_stage]\nmethods_: 3", 'methods_'),
        ("methods: {vanilla: {stage_two: {epochz: 1}}, two_stage: }", "methods.vanilla: stage_two.epochz"),
    ],
)  # fmt: skip
def test_an_error_is_named_with_its_fix(load: Any, text: str, expected: str) -> None:
    messages = issues(load, f"data: {{train: rows.csv}}\n{text}")
    assert len(messages) == 1
    assert expected in messages[0]


def test_folds_and_given_test_rows_exclude_each_other(load: Any) -> None:
    messages = issues(load, "data: {train: rows.csv, test: test.csv}\nmethods: [vanilla]\nfolds: 3\n")
    assert any("folds take their test rows from train: leave test out" in text for text in messages)


def test_the_file_is_a_mapping_as_a_sweep_s_is() -> None:
    assert comparison_of(parse_yaml(LEAST) | {"name": "mine"}, "mine").config.name == "mine"


# --- the comparisons that come with the project


@pytest.mark.parametrize("file", ["methods", "papers/sst2", "papers/newsgroups_step", "papers/newsgroups_long_tailed",
                                  "papers/imdb", "papers/adme"])  # fmt: skip
def test_the_example_comparisons_hold_all_seven_methods_and_open_with_their_command(file: str) -> None:
    path = SWEEPS / f"{file}.yaml"
    comparison = load_comparison(path)
    text = path.read_text(encoding="utf-8")
    assert f"tailsweep compare orchestrator/sweeps/{file}.yaml" in text.split("\n\n")[0]
    assert set(comparison.config.methods) == {name for name in METHODS if not name.endswith("/paper")}
    small = load_comparison(path, ["model.name=sentence-transformers/all-MiniLM-L6-v2"])  # as each file says
    for method in comparison.config.methods:
        assert small.search(method, None).config.model["name"] == "sentence-transformers/all-MiniLM-L6-v2"


# Shi et al. 2022, their table of settings: batch, length, epochs of vanilla, epochs of stage two after a stage one.
@pytest.mark.parametrize(
    ("file", "batch", "length", "alone", "after"),
    [("imdb", 8, 512, 3, 2), ("newsgroups_step", 8, 512, 5, 5), ("newsgroups_long_tailed", 8, 512, 5, 5),
     ("adme", 16, 128, 3, 3), ("sst2", 16, 128, 1, 1)],
)  # fmt: skip
def test_the_papers_comparisons_have_the_papers_settings(
    file: str, batch: int, length: int, alone: int, after: int
) -> None:
    comparison = load_comparison(SWEEPS / "papers" / f"{file}.yaml")
    assert comparison.config.seeds == (7, 42, 106, 190, 191)
    for method in comparison.config.methods:
        (trial,) = comparison.search(method, None).trials()
        trial_config = trial.config
        assert (trial_config.model.name, trial_config.data.max_length) == ("bert-base-uncased", length)
        assert (trial_config.stage_two.batch_size, trial_config.stage_two.learning_rate) == (batch, 1e-5)
        single = method in ("vanilla", "reweighting", "oversampling")
        assert (trial_config.stage_one.epochs, trial_config.stage_two.epochs) == (
            (0, alone) if single else (1, after)
        ), method
        if not single:
            assert (trial_config.stage_one.batch_size, trial_config.stage_one.learning_rate) == (batch, 1e-4)
            assert trial_config.stage_one.frozen_dropout


# The rows of each class before, as the sets are published, and after, as the papers print them.
NEWSGROUPS = [600, 599, 598, 597, 595, 594, 594, 593, 593, 591, 480, 584, 591, 590, 578, 585, 546, 564, 465, 377]
TAIL = [600, 531, 470, 417, 369, 327, 289, 256, 227, 201, 178, 158, 140, 124, 109, 97, 86, 76, 67, 60]


@pytest.mark.parametrize(
    ("file", "published", "printed"),
    [
        ("sst2", [37569, 29780], [37569, 3756]),
        ("imdb", [12500, 12500], [12500, 1250]),
        ("newsgroups_step", NEWSGROUPS, [*NEWSGROUPS[:10], *[60] * 10]),
        ("newsgroups_long_tailed", NEWSGROUPS, TAIL),
    ],
)
def test_the_papers_comparisons_generate_the_papers_counts(file: str, published: list[int], printed: list[int]) -> None:
    config = load_comparison(SWEEPS / "papers" / f"{file}.yaml").search("vanilla", None).trials()[0].config.data
    assert config.imbalance is not None
    names = config.imbalance.order
    assert names is not None
    labels = [name for name, count in zip(names, published, strict=True) for _ in range(count)]
    kept = Counter(labels[row] for row in imbalance_rows(labels, config.imbalance))
    assert [kept[name] for name in names] == printed


@pytest.mark.parametrize(
    "write",
    [
        lambda comparison: operator.setitem(comparison.config.methods, "vanilla", {}),
        lambda comparison: operator.setitem(comparison.config.methods["two_stage"], "promote", 1),
        lambda comparison: operator.setitem(comparison.config.seeds, 0, 1),
        lambda comparison: operator.setitem(comparison.config.baselines, 0, "tfidf"),
        lambda comparison: operator.setitem(comparison.shared, "seed", 1),
    ],
)
def test_a_loaded_comparison_cannot_be_written_to(load: Any, write: Callable[[Comparison], object]) -> None:
    comparison = load(LEAST)
    with pytest.raises(TypeError):
        write(comparison)
