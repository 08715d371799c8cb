"""That the benchmarks run, compare like with like, and that what they print is what they measured."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import reference_habits
import tables
import torch
import transformers
from benchmark_rows import make_rows
from kernel_tables import (
    ALL_QUERIES,
    MEAN,
    ONE_BY_ONE,
    STACKS,
    TOP_LAYER,
    Bench,
    _dynamic_side,
    _features,
    _our_side,
    _reference_side,
)
from run import main, pretrained
from tables import DYNAMIC, REFERENCE, Line, Table, as_markdown, write_section
from tailsweep.trainables.config.trial import Trainable
from turns import Side, Timing, alternate

TinyModel = Callable[..., Path]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bench(tiny_model: TinyModel) -> Bench:
    """Without dropout, so that all sides compute one function; 40 rows: two steps of 16, and a rest."""
    folder = str(tiny_model("bert", dropout=0.0))
    rows = make_rows(40, transformers.AutoTokenizer.from_pretrained(folder))
    return Bench(rows, lambda head: _without_dropout(pretrained(folder, head)), CPU)


def _without_dropout(model: torch.nn.Module) -> torch.nn.Module:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def test_the_quick_mode_measures_every_table_and_writes_it(
    tiny_model: TinyModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--quick", "--model", str(tiny_model("bert")), "--json", str(tmp_path / "bench.json"), "--device", "cpu"])
    result = json.loads((tmp_path / "bench.json").read_text())
    assert result["machine"]["threads"] == "1"
    assert len(result["tables"]) == 9
    printed = capsys.readouterr().out
    ours = 0
    for table in result["tables"]:
        assert as_markdown(Table(**table | {"lines": [Line(**line) for line in table["lines"]]})) in printed
        for line in table["lines"]:
            numbers = [line["value"], line["low"], line["high"], *line["times"].values()]
            assert all(math.isfinite(number) and number > 0 for number in numbers), line
            assert line["low"] <= line["value"] <= line["high"]
            if line["ours"]:
                ours += 1
                assert line["times"].keys() in ({REFERENCE, DYNAMIC}, {ALL_QUERIES}, {ONE_BY_ONE}), line
    # 2 cuts in 2 number formats, 3 epochs live and cached, a step of stage one, stacks, a step of stage two in 2 number
    # formats, 2 sizes of 2 growths
    assert ours == 4 + 6 + 1 + len(STACKS) + 2 + 4


def test_reference_habits_give_the_plain_models_logits(bench: Bench) -> None:
    rows = bench.rows
    for head in ("native", MEAN):
        plain = bench.build(head).eval()
        eager = reference_habits.as_eager(bench.build(head)).eval()
        input_ids, mask = reference_habits.encode(rows.texts, rows.tokenizer, rows.max_length)
        assert input_ids.shape == (40, rows.max_length)
        with torch.no_grad():
            output = reference_habits.forward(eager, input_ids, mask)
            for i in range(len(rows.texts)):
                row = torch.from_numpy(rows.data.train.tokens[slice(*rows.data.train.offsets[i : i + 2])].astype(int))
                torch.testing.assert_close(output.logits[i], plain(input_ids=row[None]).logits[0], atol=1e-5, rtol=0)


def test_reference_habits_return_attentions_and_hidden_states(bench: Bench) -> None:
    model = reference_habits.as_eager(bench.build("native"))
    input_ids, mask = reference_habits.encode(bench.rows.texts[:3], bench.rows.tokenizer, 40)
    output = reference_habits.forward(model, input_ids, mask)
    assert [a.shape for a in output.attentions] == [(3, 2, 40, 40)] * 3  # heads, and layers, of the tiny models
    assert [h.shape for h in output.hidden_states] == [(3, 40, 16)] * 4


@pytest.mark.parametrize(("head", "trainable"), [("native", "all"), ("native", TOP_LAYER), (MEAN, "head")], ids=str)
def test_all_sides_train_the_same(bench: Bench, head, trainable: Trainable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of each, over the same rows: equal losses in both, so that it is the same work that is timed."""
    losses: dict[str, list[float]] = {}

    def keep(_: Bench, name: str, training) -> Side:
        batches = bench.batches[:2]
        losses[name] = [training.steps([batch]) for batch in batches]
        return Side(name, lambda first, stop: None, 1, 1)

    monkeypatch.setattr("kernel_tables._training_side", keep)
    monkeypatch.setattr("kernel_tables.LEARNING_RATE", 1e-2)
    model = bench.build(head)
    _reference_side(bench, model, trainable)
    _dynamic_side(bench, model, trainable, "fp32")
    _our_side(bench, model, trainable, "fp32")
    if trainable != "all":
        with _features(bench, model, trainable) as features:
            _our_side(bench, model, trainable, "fp32", features)
    expected = losses.pop(REFERENCE)
    assert expected[0] != pytest.approx(expected[1], abs=1e-3)
    assert len(losses) == (2 if trainable == "all" else 3)
    for name, values in losses.items():
        assert values == pytest.approx(expected, abs=1e-4), name


def test_generated_examples_are_like_those_of_sst2(bench: Bench) -> None:
    tokenizer = bench.rows.tokenizer
    tokenizer.model_max_length = 512
    try:
        rows, again, other = (make_rows(3000, tokenizer, seed) for seed in (0, 0, 1))
    finally:
        tokenizer.model_max_length = 40
    lengths = rows.data.train.lengths
    assert lengths.mean() == pytest.approx(14.6, abs=0.5)
    assert (lengths.min(), lengths.max()) == (3, 60)
    assert rows.data.class_counts.tolist() == [2700, 300]
    assert rows.texts == again.texts != other.texts


def test_ratios_are_taken_within_a_round_and_the_median_is_of_them() -> None:
    # The machine is ten times slower in the phase two; ratios 2, 3, 4.
    ours, theirs = Timing((1.0, 10.0, 1.0)), Timing((2.0, 30.0, 4.0))
    assert ours.times_faster_than(theirs) == 3.0
    assert tables.seconds_for(2, ours) == (2.0, 2.0, 20.0)
    assert tables.rows_per_second(ours) == (1.0, 0.1, 1.0)


def test_sides_take_turns_over_the_same_units() -> None:
    asked: list[tuple[str, int]] = []
    sides = [Side(name, lambda first, stop, name=name: asked.append((name, first)), 9, 4) for name in "ab"]
    timings = alternate(sides, rounds=3, turn_seconds=1e-9, device=CPU)
    assert asked[-6:] == [("a", 0), ("b", 0), ("a", 3), ("b", 3), ("a", 6), ("b", 6)]
    assert [len(timing.seconds) for timing in timings.values()] == [3, 3]


def test_a_line_by_hand() -> None:
    line = Line("cached", 12.345, 0.5, 1234.5, {REFERENCE: 150.0, DYNAMIC: 2.0}, {DYNAMIC: 4.0}, ours=True)
    last = as_markdown(Table("a title", "s", "a text", [line])).splitlines()[-1]
    assert last == "| **cached** | 12.3 | 0.5 to 1,234 | 150x | 2.00x (4) |"


def test_a_section_is_written_anew_and_the_rest_of_the_page_stays(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A page\n")
    for name, text in (("one", "old"), ("two", "other"), ("one", "new\n")):
        write_section(page, name, text)
    assert page.read_text() == (
        "# A page\n\n<!-- begin one: written by make bench -->\nnew\n<!-- end one -->\n\n"
        "<!-- begin two: written by make bench -->\nother\n<!-- end two -->\n"
    )
