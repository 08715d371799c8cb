"""What a comparison says in words: read from results made by hand."""

from dataclasses import replace
from typing import Any

import pytest
from tailsweep.orchestrator.comparison.config import Comparison, comparison_of
from tailsweep.orchestrator.comparison.report import describe, findings
from tailsweep.orchestrator.comparison.results import ComparisonResults, MethodResult
from tailsweep.orchestrator.comparison.significance import Choice, Difference, Estimate
from tailsweep.trainables import report_keys


def difference(value: float, p_value: float, has_seeds: bool = True) -> Difference:
    seeds = (value - 0.03, value + 0.03) if has_seeds else (None, None)
    ends = (value - 0.04, value + 0.04, value - 0.02, value + 0.02)
    p_better = 1 - p_value / 2 if value > 0 else p_value / 2
    return Difference(value, *ends, *seeds, p_better, p_value, adjusted_p_value=p_value)


BETTER, WORSE, NOISE = difference(0.05, 0.002), difference(-0.05, 0.002), difference(0.02, 0.3)
OF_ONE_SEED = difference(-0.05, 0.001, has_seeds=False)


def comparison(**fields: Any) -> Comparison:
    tree = {"data": {"train": "rows.csv"}, "methods": ["vanilla", "two_stage"], "name": "mine", **fields}
    return comparison_of(tree, "mine")


def result(mean: float, fine_tuned: bool = True, difference: Difference | None = None, num_seeds: int = 3) -> Any:
    scores = {
        report_keys.on_split(report_keys.TEST, score): Estimate(mean, 0.01 if fine_tuned else None)
        for score in report_keys.SCORES
    }
    class_scores = {report_keys.class_f1(report_keys.TEST, label): Estimate(mean, None) for label in ("many", "rare")}
    gaps = {} if difference is None else dict.fromkeys(scores, difference)
    ended = {"completed": 1, "pruned": 3} if fine_tuned else {}
    settings = [{"stage_two.learning_rate": 3e-5}]
    p_best = dict.fromkeys(scores, 0.25)
    test = {**scores, **class_scores}
    budget = {"stage_two_settings": 3, "stage_two_steps": 1640} if fine_tuned else {}
    return MethodResult(fine_tuned, mean, num_seeds, 12.0, ended, settings, test, gaps, p_best, **budget)


def results(
    over_baseline: Difference | None, two_stage_difference: Difference, num_seeds: int = 3
) -> ComparisonResults:
    return ComparisonResults(
        metric="macro_f1",
        reference="vanilla",
        train_rows={"many": 900, "rare": 12},
        test_rows={"many": 90, "rare": 3},
        notes=["longer than 40 tokens and truncated: 7 of 93 test examples"],
        methods={
            "vanilla": result(0.6),
            "two_stage": result(0.65, difference=two_stage_difference, num_seeds=num_seeds),
        },
        baselines={"tfidf": result(0.5, fine_tuned=False, difference=WORSE)},
        chosen="two_stage",
        best_baseline="tfidf",
        over_baseline=over_baseline,
        model="methods/two_stage/seeds",
    )


@pytest.mark.parametrize(
    ("gap", "words"),
    [
        (BETTER, "better than vanilla in macro_f1: two_stage (+0.0500)"),
        (NOISE, "not to be told apart from vanilla in macro_f1: two_stage (+0.0200)"),
        (WORSE, "worse than vanilla in macro_f1: two_stage (-0.0500), tfidf (-0.0500)"),
        (OF_ONE_SEED, "worse than vanilla in macro_f1 with one seed each, whose spread is not known"),
    ],
)
def test_a_difference_is_called_what_its_intervals_say(gap: Difference, words: str) -> None:
    (sentence,) = [
        text
        for text in findings(comparison(), results(BETTER, gap))
        if text.startswith("On the test examples") and "two_stage" in text
    ]
    assert words in sentence


@pytest.mark.parametrize(
    ("over", "words"),
    [
        (WORSE, "beats two_stage"),
        (NOISE, "cannot be told apart from two_stage"),
        (difference(-0.01, 0.5), "is at least as good as two_stage"),
    ],
)
def test_a_baseline_that_is_not_beaten_stands_at_the_top(over: Difference, words: str) -> None:
    title, first, *_ = describe(comparison(), results(over, BETTER)).split("\n\n")
    assert title == "# mine"
    assert f"tfidf, a linear classifier that takes 12 s, {words}" in first
    assert "0.5000 against 0.6500 ± 0.0100" in first


def test_a_baseline_at_the_top_that_reads_more_of_a_text_than_the_models_says_so() -> None:
    outcome, short_texts = results(WORSE, BETTER), comparison(data={"train": "rows.csv", "max_length": 40})
    words = "It reads texts whole, where two_stage reads at most their first 40 tokens."
    assert words in describe(short_texts, outcome)
    # The frozen encoder reads what the fine-tuned one does.
    with_encoder = replace(outcome, baselines={"embeddings": outcome.baselines["tfidf"]}, best_baseline="embeddings")
    assert "embeddings, a linear classifier" in describe(short_texts, with_encoder)
    assert "reads texts whole" not in describe(short_texts, with_encoder)


def test_a_baseline_that_is_beaten_is_not_mentioned_there() -> None:
    assert "linear classifier" not in describe(comparison(), results(BETTER, BETTER))


def test_the_report_states_budget_seeds_examples_and_settings() -> None:
    text = describe(comparison(budget={"epochs": 40}, seeds=[1, 2, 3]), results(BETTER, BETTER))
    assert "searched with 40 epochs" in text
    assert "3 seeds (1, 2, 3)" in text
    assert "93 test examples" in text
    assert "On the examples: longer than 40 tokens and truncated: 7 of 93 test examples." in text
    assert "| rare | 12 | 3 |" in text
    assert '- two_stage: {"stage_two.learning_rate": 3e-05}' in text
    line = "| **two_stage** | 0.6500 | 0.6500 ± 0.0100 | +0.0500 [+0.0100, +0.0900] | 0.999 | better | 0.25 | "
    assert line in text
    assert "| 1 completed, 3 pruned | 3 | 1,640 | 12 |" in text


@pytest.mark.parametrize(
    ("gap", "p_better", "verdict", "bold"),
    [
        (BETTER, "0.999", "better", True),
        (OF_ONE_SEED, "0.001", "worse with these seeds", False),
        (NOISE, "0.850", "not told apart", False),
    ],
)
def test_only_what_exceeds_both_kinds_of_noise_is_bold(
    gap: Difference, p_better: str, verdict: str, bold: bool
) -> None:
    text = describe(comparison(), results(BETTER, gap))
    assert f"| {p_better} | {verdict} |" in text
    every_score = text.split("## Every score over vanilla")[1].split("## F1")[0]
    (line,) = [line for line in every_score.splitlines() if line.startswith("| two_stage")]
    assert line.split(" | ")[1].rstrip(" |") == (f"**{gap.value:+.4f}**" if bold else f"{gap.value:+.4f}")


def test_one_seed_is_said_to_have_no_standard_error() -> None:
    assert any("fewer than two seeds" in text for text in findings(comparison(), results(BETTER, BETTER, num_seeds=1)))


def test_seeds_and_methods_without_a_result_are_named() -> None:
    texts = findings(comparison(methods=["vanilla", "two_stage", "lp_ft"], seeds=[1, 2, 3]), results(BETTER, BETTER, 2))
    assert any("two_stage (2 of 3)" in text and "vanilla" not in text for text in texts)
    assert any("Without a result" in text and text.endswith(": lp_ft.") for text in texts)
    whole = findings(comparison(seeds=[1, 2, 3]), results(BETTER, BETTER))
    assert not any("Not every seed" in text or "Without a result" in text for text in whole)


def test_what_the_choice_gains_is_said_with_what_else_might_be_chosen() -> None:
    choice = Choice(0.05, 0.0, 0.09, {"vanilla": 0.25, "two_stage": 0.746, "never": 0.004})
    said = "\n".join(findings(comparison(), replace(results(None, BETTER), choice=choice)))
    assert (
        "To choose by validation examples gains +0.0500 [+0.0000, +0.0900] over vanilla on the test examples. With "
        "other seeds the choice is vanilla (25%), two_stage (75%)."
    ) in said
    assert "To choose" not in "\n".join(findings(comparison(), results(None, BETTER)))


def test_a_search_for_each_seed_is_in_the_procedure_and_in_what_the_intervals_are_of() -> None:
    text = describe(comparison(search_per_seed=True, seeds=[3, 4]), results(None, BETTER))
    assert "with a search of its own for each of 2 seeds (3, 4)" in text
    assert "other seeds, with the search of each." in text
    assert "another search is not in them" not in text
    assert "another search is not in them" in describe(comparison(seeds=[3, 4]), results(None, BETTER))


def test_a_cross_validation_has_no_model() -> None:
    assert any("methods/two_stage/seeds/best" in text for text in findings(comparison(), results(BETTER, BETTER)))
    outcome = replace(results(BETTER, BETTER), model=None)
    assert not any("best" in text for text in findings(comparison(folds=3), outcome))
