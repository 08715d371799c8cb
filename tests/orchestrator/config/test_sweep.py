"""A sweep file becomes a checked sweep, or all its errors at once."""

import copy
import json
import math
import operator
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tailsweep.orchestrator.config.sweep import (
    AshaConfig,
    Sweep,
    SweepConfig,
    SweepConfigError,
    load_sweep,
    sweep_of,
    to_yaml,
)
from tailsweep.trainables.config.presets import METHODS

SWEEPS = Path(__file__).resolve().parents[3] / "orchestrator" / "sweeps"
FIXED = "method: two_stage/paper\n"  # sweeps nothing of its own
SMALL = "data: {train: rows.csv}\nnum_trials: 2\nstage_one: {learning_rate: {loguniform: [1e-5, 1e-2]}}\n"
in_one_folder = hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)


@pytest.fixture
def load(tmp_path: Path) -> Any:
    def load_text(text: str, *overrides: str, **keywords: Any) -> Sweep:
        path = tmp_path / "small.yaml"
        path.write_text(text, encoding="utf-8")
        return load_sweep(path, overrides, **keywords)

    return load_text


def issues(load: Any, text: str, *overrides: str) -> list[str]:
    with pytest.raises(SweepConfigError) as raised:
        load(text, *overrides)
    assert str(raised.value).splitlines()[1:] == [f"  {issue}" for issue in raised.value.issues]
    return raised.value.issues


def test_the_least_sweep_gets_every_default(load: Any) -> None:
    sweep = load("data: {train: rows.csv}")
    config = sweep.config
    assert re.fullmatch(r"small-\d{8}-\d{6}", config.name)
    assert (config.storage, config.seed, config.method, config.search) == ("runs", 0, "two_stage", "random")
    assert config.metric == "validation/macro_f1"
    assert config.asha == AshaConfig(grace_epochs=1, reduction_factor=3, brackets=1)
    assert config.max_concurrent == "auto"
    assert config.num_trials == 8
    assert sweep.notes == []
    assert config.resources.stage_two.model_dump() == {
        "workers": 1, "min_workers": None, "cpus_per_worker": 1, "gpus_per_worker": 0,
    }  # fmt: skip
    wandb = {"mode": "offline", "project": "tailsweep", "entity": None, "group": None, "tags": []}
    assert config.wandb.model_dump() == wandb


def test_a_sweep_without_a_distribution_is_one_trial(load: Any) -> None:
    sweep = load(FIXED + "data: {train: rows.csv}")
    assert sweep.config.num_trials == 1
    assert sweep.notes == ["no field is swept: there is one trial"]
    assert sweep.trials()[0].config.stage_one.model_dump() == sweep.config.stage_one


def holds(resolved: Any, preset: Any) -> bool:
    """Whether all of ``preset`` is in ``resolved``, defaults aside."""
    if not isinstance(preset, dict):
        return bool(resolved == preset)
    return all(name in resolved and holds(resolved[name], value) for name, value in preset.items())


@pytest.mark.parametrize("method", METHODS)
def test_a_method_makes_a_valid_sweep_that_holds_all_it_says(load: Any, method: str) -> None:
    # The paraphrases of two_stage_augmented/paper are a file of the user's.
    files = ["data.augmentation.file=aug.csv"] if method == "two_stage_augmented/paper" else []
    sweep = load(f"{{method: {method}, data: {{train: rows.csv}}}}", *files)
    for section, fields in METHODS[method].items():
        assert holds(sweep.config.trial_tree[section], fields)
    assert not holds(sweep.config.trial_tree["stage_two"], METHODS[method]["stage_two"] | {"epochs": 77})
    assert len(sweep.trials()) == (1 if method.endswith("/paper") else 8)
    for trial in sweep.trials():
        assert trial.config.stage_two.epochs >= 1


def test_a_presets_lists_are_what_a_grid_goes_through_and_a_value_takes_their_place(load: Any) -> None:
    text = "{method: vanilla, search: grid, asha: null, data: {train: x}, stage_two: {warmup_fraction: {grid: [0, 0.1]}"
    lists = METHODS["vanilla"]["stage_two"]
    many = math.prod(len(lists[field]["choice"]) for field in ("learning_rate", "epochs", "batch_size"))
    sweep = load(text + "}}")
    assert len(sweep.trials()) == 2 * many
    assert sweep.notes == [
        "method vanilla sweeps stage_two.learning_rate, stage_two.epochs, stage_two.batch_size: give those a value "
        "that the grid is not to go through"
    ]
    fixed = load(text + ", learning_rate: 3e-5, epochs: 2, batch_size: 8}}")
    assert len(fixed.trials()) == 2
    assert fixed.notes == []
    (message,) = issues(load, text + "}, num_trials: 2}")
    assert message.startswith(f"num_trials: is 2, but the grid has {2 * many} points: leave num_trials out; method")


def test_a_preset_of_model_and_data_lies_beneath_the_files(load: Any) -> None:
    config = load(FIXED + "data: {train: x}\nmodel: {name: bert-base-uncased, head: {dropout: 0}}").config
    assert config.data["max_length"] == 128
    assert config.model["name"] == "bert-base-uncased"
    assert config.model["head"] == {"pooling": "pooler", "kind": "mlp", "hidden": 50, "dropout": 0}
    config = load(FIXED + "data: {train: x, max_length: 64}\nmodel: {name: small, head: native}").config
    assert config.data["max_length"] == 64
    assert config.model == {"name": "small", "head": "native", "trust_remote_code": False}
    assert issues(load, FIXED) == ["data: missing, but must be a mapping"]


def test_fields_of_the_file_override_the_presets(load: Any) -> None:
    stage = load("data: {train: x}\nstage_one: {epochs: 7, loss: {scale: 30}, trainable: head}").config.stage_one
    assert (stage["epochs"], stage["trainable"]) == (7, "head")
    assert stage["loss"] == {"name": "ldam", "max_margin": 0.5, "scale": 30, "beta": 0.9999, "reweight_after": 0.0}
    assert stage["learning_rate"] == METHODS["two_stage"]["stage_one"]["learning_rate"]


def test_a_loss_of_another_name_replaces_the_presets_whole(load: Any) -> None:
    loss = load("data: {train: x}\nstage_one: {loss: {name: cross_entropy}}").config.stage_one["loss"]
    assert loss == {"name": "cross_entropy", "label_smoothing": 0.0}


def test_loading_leaves_the_presets_as_they_are(load: Any) -> None:
    before = str(METHODS)
    load("data: {train: x}", "stage_one.loss.scale=2").trials()
    assert str(METHODS) == before


FROZEN = """{
  data: {train: x}, initial_points: [{stage_one: {learning_rate: 1e-4}}], wandb: {tags: [a]},
  stage_one: {learning_rate: {choice: [1e-4, 1e-3]}},
}"""


@pytest.mark.parametrize(
    "write",
    [
        lambda config: operator.setitem(config.data, "train", "y"),
        lambda config: operator.setitem(config.model, "name", "y"),
        lambda config: operator.setitem(config.stage_one, "epochs", 99),
        lambda config: operator.delitem(config.stage_one, "epochs"),
        lambda config: operator.setitem(config.stage_two["loss"], "name", "changed"),
        lambda config: operator.setitem(config.stage_one["learning_rate"]["choice"], 0, 99.0),
        lambda config: operator.ior(config.stage_two, {"epochs": 99}),
        lambda config: operator.setitem(config.initial_points, 0, {}),
        lambda config: operator.setitem(config.initial_points[0]["stage_one"], "learning_rate", 99.0),
        lambda config: operator.setitem(config.wandb.tags, 0, "b"),
    ],
)
def test_a_loaded_configuration_cannot_be_written_to(load: Any, write: Callable[[SweepConfig], object]) -> None:
    config = load(FROZEN).config
    before = config.model_dump()
    with pytest.raises(TypeError):
        write(config)
    assert config.model_dump() == before


def test_a_frozen_configuration_dumps_to_plain_values_and_can_be_copied(load: Any) -> None:
    sweep = load(FROZEN)
    dumped = sweep.config.model_dump()
    assert dumped["stage_one"]["learning_rate"] == {"choice": [1e-4, 1e-3]}
    assert (dumped["initial_points"], dumped["wandb"]["tags"]) == ([{"stage_one": {"learning_rate": 1e-4}}], ["a"])
    assert json.loads(sweep.config.model_dump_json()) == json.loads(json.dumps(dumped))
    assert yaml.safe_load(yaml.safe_dump(dumped)) == dumped
    for copied in (pickle.loads(pickle.dumps(sweep)), copy.deepcopy(sweep)):
        assert copied == sweep
        assert type(copied.config.stage_one) is type(sweep.config.stage_one)


def test_a_tree_of_a_trial_may_be_written_to_and_leaves_the_configuration_as_it_is(load: Any) -> None:
    config = load(FROZEN).config
    config.trial_tree["stage_one"]["learning_rate"]["choice"][0] = 99.0
    assert config.trial_tree["stage_one"]["learning_rate"] == {"choice": [1e-4, 1e-3]}


def test_a_sweep_without_a_name_or_a_number_of_trials_has_both_when_it_is_resolved() -> None:
    sweep = sweep_of({"data": {"train": "x"}}, "a test")
    assert re.fullmatch(r"sweep-\d{8}-\d{6}", sweep.name)
    assert (sweep.config.name, sweep.config.num_trials) == (sweep.name, sweep.num_trials)
    assert sweep.num_trials == len(sweep.trials())
    named = sweep_of({"data": {"train": "x"}, "name": "mine", "num_trials": 1}, "a test")
    assert (named.name, named.num_trials) == ("mine", 1)


@pytest.mark.parametrize(
    "text",
    [
        SMALL,
        "data: {train: x}",
        "data: {train: x}\nmethod: lp_ft\nasha: null\nmax_concurrent: 3\nwandb: {tags: [a, 'no', '1e-5']}",
        "data: {train: x, imbalance: {kind: step, ratio: 0.1, order: [no, 'yes', '1']}}",
        "data: {train: x}\nstage_one: {evaluations_per_epoch: 4}\nasha: {grace_epochs: 0.25}",
        "data: {train: x}\nsearch: grid\n"
        "stage_one: {trainable: {grid: [all, {top_layers: 2}]}, epochs: {choice: [1, 2]}}",
        "data: {train: x}\nstage_one: {loss: {name: {choice: [ldam, cross_entropy]}}}",
        "data: {train: x}\nstage_two: {loss: {choice: [{name: ldam, scale: 1}, {name: cross_entropy}]}}",
        "data: {train: x}\n"
        "postprocess: {classifier: {kind: lws}, decision: {kind: logit_adjustment}, temperature: true}",
        "data: {train: x}\nmodel: {head: {pooling: cls, dropout: {uniform: [0, 0.5]}}}\nnum_trials: 3",
    ],
)
def test_a_resolved_sweep_written_and_loaded_is_the_same_sweep(load: Any, text: str) -> None:
    sweep = load(text)
    again = load(to_yaml(sweep))
    assert again == sweep
    assert again.trials() == sweep.trials()
    assert to_yaml(again) == to_yaml(sweep)


def test_a_sweep_is_loaded_and_its_trials_drawn_without_ray_torch_or_pandas() -> None:
    program = (
        "import sys; from pathlib import Path; from tailsweep.orchestrator.config.sweep import load_sweep; "
        "assert len(load_sweep(Path(sys.argv[1])).trials()) == 200; print(*sorted(sys.modules))"
    )
    command = [sys.executable, "-c", program, str(SWEEPS / "two_phase.yaml")]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    heavy = {"ray", "torch", "pandas", "transformers", "datasets", "pyarrow", "scipy", "sklearn", "optuna", "wandb"}
    assert not heavy & set(loaded)
    assert "numpy" in loaded  # so that names are read as they are


@pytest.mark.parametrize("name", ["demo", "trec"])
def test_the_example_sweeps_load_and_open_with_their_command(name: str) -> None:
    path = SWEEPS / f"{name}.yaml"
    sweep = load_sweep(path)
    assert sweep.notes == []
    assert load_sweep(path, [f"name={sweep.config.name}"]) == sweep
    assert f"tailsweep run orchestrator/sweeps/{name}.yaml" in path.read_text(encoding="utf-8").split("method:")[0]


@pytest.mark.parametrize(
    ("loss", "note"),
    [
        ("{name: ldam, scale: 30}", "stage_two.loss: ldam's scale is 30, which goes with a normalized head"),
        ("{choice: [{name: cross_entropy}, {name: ldam, scale: 30}]}", "stage_two.loss: ldam's scale is 30"),
        ("{name: weighted_cross_entropy, beta: 0.99}", "stage_two.loss: beta 0.99 tells classes apart up to about 100"),
        ("{name: focal, beta: 0.9}", "stage_two.loss: beta 0.9 tells classes apart up to about 10 rows"),
        ("{name: ldam, scale: 10, beta: 0.999}", None),
        ("{name: weighted_cross_entropy, beta: 0}", None),
    ],
)  # fmt: skip
def test_a_loss_that_does_little_or_harm_here_is_noted(load: Any, loss: str, note: str | None) -> None:
    notes = [text for text in load(f"data: {{train: x}}\nstage_two: {{loss: {loss}}}").notes if ".loss:" in text]
    assert len(notes) == (note is not None)
    assert note is None or notes[0].startswith(note)


def test_all_errors_come_at_once_in_file_order_with_field_value_rule_and_hint(load: Any) -> None:
    text = """
name: my run
metirc: x
metric: validation/macro_f
search: gird
method: twostage
max_concurrent: many
asha: {grace_epochs: 0}
seed: {choice: [1, 2]}
data: {train: 5, validation: 2, imbalance: {kind: stepp, ratio: 0.1}}
model: {head: {pooling: men}}
stage_one: {learning_rat: 1, trainable: tops, loss: {name: ldm}, epochs: {uniform: [1, 3]}}
stage_two: {trainable: {top_layer: 1}, batch_size: true, epochs: "3", loss: {beta: 0.9}}
wandb: {mode: offine, tags: [1]}
resources: {stage_two: {workers: 0, gpus_per_worker: 1.5}}
"""
    assert issues(load, text) == [
        'name: is "my run", but must be 1 to 128 letters, digits, dots, underscores and hyphens, the first a letter or '
        "digit: it names a folder",
        'metirc: unknown field; did you mean "metric"?',
        'metric: is "validation/macro_f", but must be a validation score; did you mean "validation/macro_f1"?',
        'search: is "gird", but must be one of random, grid, optuna; did you mean "grid"?',
        'method: is "twostage", but must be a method; did you mean "two_stage"?',
        'max_concurrent: is "many", but must be auto or a whole number > 0',
        "asha.grace_epochs: is 0, but must be a number >= 0.001",
        "seed: cannot be swept: trials differ in settings, not in luck; run the sweep again with another seed",
        'data.train: is 5, but must be text; if it is meant as text, write "5" in quotes',
        'data.validation: is 2, but must be a number > 0 and < 1 or text; if it is meant as text, write "2" in quotes',
        'data.imbalance.kind: is "stepp", but must be one of step, long_tailed, downsample; did you mean "step"?',
        'model.head.pooling: is "men", but must be one of cls, mean, pooler; did you mean "mean"?',
        'stage_one.learning_rat: unknown field; did you mean "learning_rate"?',
        'stage_one.trainable: is "tops", but must be one of head, pooler, all or {top_layers: k}',
        'stage_one.loss.name: is "ldm", but must be one of cross_entropy, weighted_cross_entropy, ldam, focal, '
        'balanced_softmax, logit_adjustment; did you mean "ldam"?',
        "stage_one.epochs: uniform draws fractions, but this must be a whole number: say {randint: [low, high]}, high "
        "left out",
        'stage_two.trainable.top_layer: unknown field; did you mean "top_layers"?',
        "stage_two.batch_size: is true, but must be a whole number > 0",
        'stage_two.epochs: is "3", but must be a whole number >= 0',
        "stage_two.loss.name: missing, but must be one of cross_entropy, weighted_cross_entropy, ldam, focal, "
        "balanced_softmax, logit_adjustment",
        'wandb.mode: is "offine", but must be one of offline, online, disabled; did you mean "offline"?',
        'wandb.tags.0: is 1, but must be text; if it is meant as text, write "1" in quotes',
        "resources.stage_two.workers: is 0, but must be a whole number > 0",
        "resources.stage_two.gpus_per_worker: is 1.5, but above 1 must be a whole number: Ray shares out single GPUs "
        "only",
    ]


@pytest.mark.parametrize(
    ("text", "issue"),
    [
        ("seed: 1", "data: missing, but must be a mapping"),
        ("data: {}", "data.train: missing, but must be text"),
        ("data: rows.csv", 'data: is "rows.csv", but must be a mapping'),
        ("data: {train: x}\nstage_one:", "stage_one: is null, but must be a mapping"),
        ("data: {train: x}\nqqq: 1", "qqq: unknown field; valid are name, storage, seed, method,"),
        (
            "data: {train: x}\nstage_one: {loss: ldam}",
            'stage_one.loss: is "ldam", but must be {name: cross_entropy} or {name: weighted_cross_entropy} or '
            "{name: ldam} or {name: focal} or {name: balanced_softmax} or {name: logit_adjustment}",
        ),
        ("data: {train: x}\nstage_one: {loss: {name: [1]}}", "stage_one.loss.name: is [1], but must be one of"),
        ("data: {train: x}\nstage_one: {loss: {name: ldam, max_margin: -1}}", "stage_one.loss.max_margin: is -1, but"),
        (
            "data: {train: x}\nstage_two: {trainable: {top_layers: 0}}",
            "stage_two.trainable.top_layers: is 0, but must be a whole",
        ),
        (
            "data: {train: x}\nmodel: {head: 3}",
            "model.head: is 3, but must be native or {pooling: ..., kind: ..., hidden: k",
        ),
        (
            "data: {train: x}\nstage_one: {batch_size: 4, gradient_accumulation: 8}",
            "stage_one: gradient_accumulation is 8",
        ),
        (
            "data: {train: x}\nmethod: vanilla\nstage_two: {epochs: 0}",
            "stage_one.epochs and stage_two.epochs are both 0",
        ),
        ("data: {train: x}\nseed: -1", "seed: is -1, but must be a whole number >= 0 and < 4294967296"),
        ("data: {train: x}\nname: ..", 'name: is "..", but must be'),
        ("data: {train: x}\nname: a/b", 'name: is "a/b", but must be'),
        ("data: {train: x}\nstorage: ''", 'storage: is "", but must be text, not empty'),
        (
            "data: {train: x}\nasha: {reduction_factor: 1}",
            "asha.reduction_factor: is 1, but must be a whole number >= 2",
        ),
        (
            "data: {train: x}\npostprocess: {classifier: crt}",
            'postprocess.classifier: is "crt", but must be {kind: crt} or',
        ),
        (
            "data: {train: x}\npostprocess: {classifier: {kind: tau_normalization, tau: 11}}",
            "postprocess.classifier.tau: is 11, but must be auto or a number >= 0 and <= 10",
        ),
        (
            "data: {train: x}\npostprocess: {decision: {tau: 1}}",
            "postprocess.decision.kind: missing, but must be one of auto, thresholds",
        ),
        ("data: {train: x}\npostprocess: {temperature: {choice: [true]}}", "postprocess.temperature: cannot be swept"),
    ],
)
def test_one_error_is_reported_once_and_plainly(load: Any, text: str, issue: str) -> None:
    (message,) = issues(load, text)
    assert message.startswith(issue)
    assert "pydantic" not in message


def test_a_combination_that_makes_no_trial_is_named_with_its_trial(load: Any) -> None:
    text = f"{FIXED}data: {{train: x}}\nsearch: grid\n"
    text += "stage_one: {epochs: {grid: [1, 0]}}\nstage_two: {epochs: {grid: [1, 0]}}"
    (message,) = issues(load, text)
    assert message.startswith("stage_one.epochs and stage_two.epochs are both 0")
    assert message.endswith("(trial t003: stage_one.epochs = 0, stage_two.epochs = 0)")


@pytest.mark.parametrize(
    ("stage_one", "fields", "issue"),
    [
        ("", "num_trials: 2", "num_trials: is 2, but no field is swept, so that all would be the same"),
        (
            "epochs: {choice: [1, 2, 2]}",
            "num_trials: 3",
            "num_trials: is 3, but only 2 different trials can",
        ),
        (
            "epochs: {grid: [1, 2]}",
            "{search: grid, num_trials: 3}",
            "num_trials: is 3, but the grid has 2 points",
        ),
        ("epochs: {grid: [1, 1]}", "search: grid", "stage_one.epochs: names a value twice"),
        ("", "num_trials: 10001", "num_trials: is 10001, but must be a whole number > 0 and <= 10000 or null"),
    ],
)
def test_trials_that_cannot_all_differ_are_refused(load: Any, stage_one: str, fields: str, issue: str) -> None:
    tree = {
        "method": "two_stage/paper",
        "data": {"train": "x"},
        "stage_one": yaml.safe_load(f"{{{stage_one}}}"),
        **yaml.safe_load(fields),
    }
    (message,) = issues(load, yaml.safe_dump(tree))
    assert message.startswith(issue)


def test_a_grid_beyond_all_measure_is_refused_before_it_is_made(load: Any) -> None:
    fields = ("epochs", "batch_size", "learning_rate", "weight_decay", "max_grad_norm")
    grid = {field: {"grid": list(range(1, 101))} for field in fields}
    (message,) = issues(
        load, yaml.safe_dump({"method": "two_stage/paper", "data": {"train": "x"}, "search": "grid", "stage_two": grid})
    )
    assert message == "num_trials: the grid has 10000000000 points, but must have at most 10000"


def test_the_number_of_trials_follows_from_the_space(load: Any) -> None:
    data = FIXED + "data: {train: x}\n"
    continuum = load(data + "stage_one: {learning_rate: {uniform: [1e-5, 1]}}")
    few = load(data + "stage_one: {epochs: {randint: [1, 4]}}")
    grid = load(data + "search: grid\nstage_one: {epochs: {grid: [1, 2, 3]}, batch_size: {grid: [8, 16]}}")
    assert [sweep.config.num_trials for sweep in (continuum, few, grid)] == [8, 3, 6]
    assert [len(sweep.trials()) for sweep in (continuum, few, grid)] == [8, 3, 6]


def test_asha_without_a_rung_is_noted_and_a_bracket_without_one_refused(load: Any) -> None:
    # 9 epochs, grace 1, factor 3: bracket 0 has rungs at 1, 3, 9, bracket 1 at 3, 9, bracket 2 at 9, bracket 3 none.
    text = "data: {{train: x}}\nstage_one: {{epochs: {{choice: [1, 9]}}}}\nasha: {{grace_epochs: {}, brackets: {}}}"
    assert load(text.format(1, 3)).notes == []
    (message,) = issues(load, text.format(1, 4))
    assert message.startswith(
        "asha.brackets: is 4, but must be at most 3: the first rung of bracket 3 (from 0) lies beyond"
    )
    (note,) = load(text.format(10, 1)).notes
    assert note == "asha prunes nothing: its first rung comes after epoch 10 of stage one, which has 9"
    assert load("data: {train: x}\nmethod: vanilla\nasha: null\nstage_two: {epochs: {choice: [1, 2]}}").notes == []


TWO_PHASE = (
    "{method: two_stage/paper, data: {train: x}, num_trials: 4, stage_one: {learning_rate: {uniform: [1e-5, 1]}}, "
)


@pytest.mark.parametrize(
    ("fields", "issue"),
    [
        (
            "stage_two_search: {settings: 2}",
            "stage_two_search.settings: is 2, but only 1 different settings of stage two can be drawn",
        ),
        (
            "stage_two: {epochs: {choice: [1, 2]}}, stage_two_search: {settings: 3}",
            "stage_two_search.settings: is 3, but only 2 different settings of stage two can be drawn: say 2, or "
            "sweep more",
        ),
        (
            "stage_two_search: {settings: 1001}",
            "stage_two_search.settings: is 1001, but must be auto or a whole number >= 1 and <= 1000",
        ),
        (
            "stage_two_search: {settings: 2}",
            "stage_two_search.settings: is 2, but needs a two-phase sweep, and here promote is all: say promote: K, or "
            "leave it out",
        ),
        (
            "stage_two: {epochs: 3}, stage_two_search: {asha: {brackets: 3}}",
            "stage_two_search.asha.brackets: is 3, but must be at most 2: the first rung of bracket 2 (from 0) lies "
            "beyond stage_two's 3 epochs",
        ),
    ],
)
def test_a_phase_two_that_cannot_be_is_refused(load: Any, fields: str, issue: str) -> None:
    promote = "all" if "needs a two-phase" in issue else "2"
    (message,) = issues(load, f"{TWO_PHASE}{fields}, promote: {promote}}}")
    assert message.startswith(issue)


@pytest.mark.parametrize(
    ("asha", "issue"),
    [
        ("{grace_fraction: 0.5, grace_epochs: 2}", "grace_fraction: is 0.5, but grace_epochs is set, too"),
        ("{grace_fraction: 0.5, brackets: 2}", "brackets: is 2, but must be fewer"),
        ("{grace_fraction: 1}", "grace_fraction: is 1, but must be a number > 0 and < 1 or null"),
    ],
)
def test_rungs_at_shares_that_cannot_be_are_refused(load: Any, asha: str, issue: str) -> None:
    (message,) = issues(load, f"{{method: vanilla, data: {{train: x}}, stage_two_search: {{asha: {asha}}}}}")
    assert message.startswith(f"stage_two_search.asha.{issue}")
    assert (
        load("{method: vanilla, asha: null, data: {train: x}, stage_two_search: {asha: {grace_fraction: 0.3}}}").notes
        == []
    )


def test_an_asha_of_stage_two_without_a_rung_is_noted(load: Any) -> None:
    (note,) = load(TWO_PHASE + "promote: 2, stage_two: {epochs: 2}, stage_two_search: {asha: {grace_epochs: 3}}}").notes
    assert note == "stage_two_search.asha prunes nothing: its first rung comes after epoch 3 of stage two, which has 2"


def test_a_grid_of_stage_two_belongs_to_phase_two_if_it_has_several_settings(load: Any) -> None:
    text = (
        "{method: two_stage/paper, data: {train: x}, search: grid, promote: 1, stage_one: {epochs: {grid: [1, 2]}}, "
        "stage_two: {epochs: {grid: [3, 4, 5]}}"
    )
    assert len(load(text + "}").trials()) == 6
    sweep = load(text + ", stage_two_search: {settings: 3}}")
    assert [dict(trial.values) for trial in sweep.trials()] == [{"stage_one.epochs": 1}, {"stage_one.epochs": 2}]
    expanded = sweep.expand_promoted("t001", {"stage_one.epochs": 2})
    assert [(trial.config.stage_one.epochs, trial.config.stage_two.epochs) for trial in expanded] == [
        (2, 3),
        (2, 4),
        (2, 5),
    ]
    (message,) = issues(load, text + ", stage_two_search: {settings: 2}}")
    assert message.startswith("stage_two_search.settings: is 2, but must be 3, the points of stage two's grid, or 1")
    (message,) = issues(load, text.replace("3, 4, 5", "3, 4, 4") + ", stage_two_search: {settings: 2}}")
    assert message.startswith("stage_two.epochs: names a value twice")


def test_asha_cannot_ask_before_stage_one_has_been_evaluated(load: Any) -> None:
    text = "data: {{train: x}}\nstage_one: {{epochs: 3, evaluations_per_epoch: {}}}\nasha: {{grace_epochs: {}}}"
    assert issues(load, text.format(1, 0.3)) == [
        "asha.grace_epochs: is 0.3, but must be at least 1: stage_one.evaluations_per_epoch is 1; set that to 4, or "
        "raise this"
    ]
    # One of the trials is enough; what is fine to three decimals is fine.
    (message,) = issues(load, text.format("{choice: [4, 3, 8]}", 0.3))
    assert message.startswith(
        "asha.grace_epochs: is 0.3, but must be at least 0.333: stage_one.evaluations_per_epoch is 3;"
    )
    for evaluations, grace in ((3, 0.333), (4, 0.25), ("{choice: [4, 8]}", 0.25), (1, 1.5), (1000, 0.001)):
        assert load(text.format(evaluations, grace)).config.asha == AshaConfig(grace_epochs=grace)
    assert load("{method: vanilla, data: {train: x}, asha: {grace_epochs: 0.25}}").config.asha is not None


def test_grace_epochs_that_are_whole_stay_whole(load: Any) -> None:
    for written in ("2", "1.5"):
        sweep = load(f"{{data: {{train: x}}, stage_one: {{epochs: 9}}, asha: {{grace_epochs: {written}}}}}")
        assert f"grace_epochs: {written}\n" in to_yaml(sweep)
        assert f'"grace_epochs":{written},' in sweep.config.model_dump_json()
    (note,) = load("{data: {train: x}, stage_one: {epochs: {choice: [1, 2]}}, asha: {grace_epochs: 2.5}}").notes
    assert note == "asha prunes nothing: its first rung comes after epoch 2.5 of stage one, which has 2"
    # 0.5, 1.5, 4.5: bracket 2 has no rung in 2 epochs.
    text = (
        "{data: {train: x}, stage_one: {epochs: 2, evaluations_per_epoch: 2}, asha: {grace_epochs: 0.5, brackets: 3}}"
    )
    (message,) = issues(load, text)
    assert message.startswith("asha.brackets: is 3, but must be at most 2:")


def test_what_has_no_effect_or_another_than_meant_is_noted(load: Any) -> None:
    text = "data: {train: x}\nmethod: vanilla\nasha: null\nstage_one: {learning_rate: {uniform: [1e-5, 1]}}"
    assert load(text).notes == ["sweeping stage_one.learning_rate changes nothing: stage_one.epochs is 0"]
    early = FIXED + "data: {train: x}\nstage_one: {epochs: {choice: [1, 2]}, evaluations_per_epoch: 2, patience: 4}"
    assert load(early).notes == ["stage_one.patience changes nothing: it is 4, and stage one is evaluated 4 times"]
    assert load(early, "stage_one.patience=3").notes == []
    assert load(early, "stage_one.patience=3", "stage_one.steps=90").notes == [
        "sweeping stage_one.epochs changes the number of evaluations alone: stage_one.steps is given"
    ]
    decayed = "data: {train: x}\nstage_one: {trainable: head, layer_decay: 0.9, epochs: {choice: [1, 2]}}"
    assert load(FIXED + decayed).notes == [
        "stage_one.layer_decay changes nothing: no encoder layer trains in stage one"
    ]
    assert load(FIXED + decayed, "stage_one.trainable.top_layers=1").notes == []
    gpus = load(SMALL, "resources.stage_two={workers: 2, gpus_per_worker: 0.5}").notes
    assert len(gpus) == 1
    assert "gloo" in gpus[0]


def test_overrides_reach_fields_subtrees_and_into_distributions(load: Any) -> None:
    config = load(
        SMALL,
        "stage_one.learning_rate.uniform=[1e-4, 1e-3]",  # another distribution takes the place of the file's
        "stage_two.loss={name: ldam, scale: 2}",
        "stage_two.trainable.top_layers=2",  # a mapping takes the place of the preset's word
        "asha.grace_epochs=2",
        "wandb.tags=[a, b]",
        "data.validation=1e-1",
        "data.test=0.3.csv",
        "max_concurrent=2",
    ).config
    assert config.stage_one["learning_rate"] == {"uniform": [1e-4, 1e-3]}
    assert config.stage_two["loss"] == {
        "name": "ldam",
        "max_margin": 0.5,
        "scale": 2,
        "beta": 0.9999,
        "reweight_after": 0.0,
    }
    assert config.stage_two["trainable"] == {"top_layers": 2}
    assert config.asha == AshaConfig(grace_epochs=2)
    assert config.wandb.tags == ("a", "b")
    assert (config.data["validation"], config.data["test"]) == (0.1, "0.3.csv")
    assert config.max_concurrent == 2


def test_an_override_of_a_field_that_may_be_a_text_is_yaml_where_nothing_else_makes_sense(load: Any) -> None:
    methods = load(SMALL, "method=[vanilla, two_stage]").config.method
    assert list(methods) == ["vanilla", "two_stage"]
    assert list(load(SMALL, "method={reweighting: {}, vanilla: {stage_two: {epochs: 2}}}").config.method) == [
        "reweighting",
        "vanilla",
    ]
    config = load(SMALL, "model.name={choice: [a, b]}", "data.text_column=[title, body]").config
    assert config.model["name"] == {"choice": ["a", "b"]}
    assert config.data["text_column"] == ("title", "body")
    texts = load(SMALL, "model.name={a}", "data.text_column=[x", "data.train=[a, b]", "wandb.group=2").config
    assert (texts.model["name"], texts.data["text_column"]) == ("{a}", "[x")
    assert (texts.data["train"], texts.wandb.group) == ("[a, b]", "2")


def test_a_branch_of_a_swept_subtree_takes_the_distributions_place(load: Any) -> None:
    text = "data: {train: x}\nstage_one: {loss: {choice: [{name: ldam}, {name: cross_entropy}]}}"
    loss = load(text, "stage_one.loss.name=weighted_cross_entropy").config.stage_one["loss"]
    assert loss == {"name": "weighted_cross_entropy", "beta": 0.9999, "reweight_after": 0.0, "label_smoothing": 0.0}


def test_overrides_and_file_are_reported_together(load: Any) -> None:
    overrides = ("nonsense", "stage_one.epochs=[1", "stage_one.learning_rat=1", "foo.bar=1", "stage_two.epochs=")
    messages = issues(load, SMALL + "wandb: {mode: offine}", *overrides)
    assert messages == [
        "--set 'nonsense' must be written as dotted.field=value, such as stage_one.epochs=2",
        "--set 'stage_one.epochs=[1': the value cannot be read as YAML: line 1, column 3: while parsing a flow "
        "sequence, expected ',' or ']', but got '<stream end>'",
        'stage_one.learning_rat: unknown field; did you mean "learning_rate"?',
        'wandb.mode: is "offine", but must be one of offline, online, disabled; did you mean "offline"?',
        messages[4],
        "stage_two.epochs: is null, but must be a whole number >= 0",
    ]
    assert messages[4].startswith("foo: unknown field; valid are name, ")


@pytest.mark.parametrize(
    "odd", ["a#b", "a # b", "a: b", "[1", "{x", "a=b", "'q", '"', "5", "null", "true", "é 日本", "*a", "", " x "]
)
def test_text_arrives_verbatim_wherever_a_field_takes_text(load: Any, odd: str) -> None:
    config = load(
        SMALL, f"data.train={odd}", f"data.label_column={odd}", f"model.name={odd}", f"wandb.entity={odd}"
    ).config
    assert (config.data["train"], config.data["label_column"], config.model["name"], config.wandb.entity) == (odd,) * 4
    if odd:
        assert load(SMALL, storage=odd).config.storage == odd
        assert load(SMALL, f"storage={odd}").config.storage == odd


@given(text=st.text(st.characters(exclude_characters="\0")))
@in_one_folder
def test_any_path_arrives_verbatim_and_survives_the_round_trip(load: Any, text: str) -> None:
    sweep = load("data: {train: rows.csv}", f"data.train={text}", f"data.text_column={text}")
    assert sweep.config.data["train"] == sweep.config.data["text_column"] == text
    assert load(to_yaml(sweep)) == sweep


def test_an_odd_file_name_gives_a_valid_name(tmp_path: Path) -> None:
    path = tmp_path / ".my sweep, ü.yaml"
    path.write_text(SMALL)
    assert re.fullmatch(r"my-sweep--\d{8}-\d{6}", str(load_sweep(path).config.name))


SECTIONS = ["data", "model", "stage_one", "stage_two", "asha", "resources", "wandb", "search", "seed", "name"]
FIELDS = [
    "train",
    "validation",
    "imbalance",
    "head",
    "trainable",
    "loss",
    "epochs",
    "learning_rate",
    "tags",
    "brackets",
]
INNER = ["kind", "ratio", "name", "scale", "top_layers", "loguniform", "uniform", "randint", "choice", "grid", "x"]
NAMES = st.sampled_from(SECTIONS + FIELDS + INNER)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 40)
    | st.floats()
    | st.sampled_from(["rows.csv", "ldam", "grid", "vanilla", "all", "native", "step", "auto", "1e-5", ""])
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


def mostly(*valid: Any) -> st.SearchStrategy[Any]:
    return st.integers(0, 9).flatmap(lambda die: VALUES if die == 9 else st.sampled_from(valid))


STAGE = st.fixed_dictionaries(
    {},
    optional={
        "learning_rate": mostly(1e-4, {"loguniform": [1e-5, 1e-2]}, {"choice": [1e-5, 1e-4]}),
        "epochs": mostly(0, 2, {"randint": [0, 3]}, {"choice": [1, 2]}, {"grid": [0, 1]}),
        "trainable": mostly("all", {"top_layers": 2}, {"choice": ["head", {"top_layers": 1}]}),
        "loss": mostly({"name": "ldam"}, {"scale": 2.0}, {"name": {"choice": ["ldam", "cross_entropy"]}}),
        "warmup_fraction": mostly(0, 0.1, {"uniform": [0, 0.5]}),
    },
)
NEARLY = st.fixed_dictionaries(
    {"data": mostly({"train": "rows.csv"}, {"train": "rows.csv", "max_length": {"choice": [64, 128]}})},
    optional={
        "method": mostly(*METHODS),
        "search": mostly("random", "random", "grid"),
        "num_trials": mostly(None, 1, 3),
        "asha": mostly(None, {"grace_epochs": 2}, {"brackets": 2}),
        "stage_one": STAGE,
        "stage_two": STAGE,
        "model": mostly({}, {"head": {"kind": "mlp"}}, {"head": {"choice": ["native", {"kind": "mlp"}]}}),
    },
)
TEXT = st.text(st.characters(codec="utf-8"))  # what a file can hold: no lone surrogates
OVERRIDE = st.none() | st.sampled_from(["asha=null", "seed=3"]) | st.builds("{}.{}={}".format, NAMES, NAMES, st.text())


@given(document=NEARLY.map(yaml.safe_dump) | VALUES.map(yaml.safe_dump) | TEXT, override=OVERRIDE)
@hypothesis_settings(in_one_folder, max_examples=100)
def test_whatever_is_written_is_a_sweep_or_a_clear_error(load: Any, document: str, override: Any) -> None:
    overrides = [] if override is None else [override]
    issues: list[str] = []
    try:
        sweep = load(document, *overrides)
    except SweepConfigError as error:
        issues = error.issues
    else:
        assert len(sweep.trials()) == sweep.config.num_trials
        assert load(to_yaml(sweep)) == sweep
    assert not any("pydantic" in issue or "\n" in issue for issue in issues)


@pytest.mark.parametrize(("field", "value"), [("refit", "true"), ("folds", "3")])
def test_nothing_is_fitted_to_examples_that_a_refit_trains_on(load: Any, field: str, value: str) -> None:
    text = f"{{data: {{train: x}}, postprocess: {{temperature: true}}, selection: {{{field}: {value}}}}}"
    (message,) = issues(load, text)
    assert message.startswith(f"selection.{field}: is {value}, but postprocess is fitted to the validation examples")
    assert load(text, "postprocess.temperature=false").config.selection.trains_again


@pytest.mark.parametrize("resplit", ["{}", "{index: 0, of: 3}"])
def test_validation_examples_that_are_trained_on_are_noted(load: Any, resplit: str) -> None:
    (note,) = [note for note in load(f"data: {{train: x, resplit: {resplit}}}").notes if "resplit" in note]
    assert "selection.refit trains on them after the choice" in note
