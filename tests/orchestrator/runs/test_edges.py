"""Whether chosen settings lie at the edge of what was tried."""

from typing import Any

import pytest
from tailsweep.orchestrator.config.distributions import Distribution
from tailsweep.orchestrator.runs.edges import edge_notes


@pytest.mark.parametrize(
    ("kind", "values", "chosen", "side"),
    [
        ("choice", (1e-4, 3e-4, 1e-3), 1e-3, "larg"),
        ("choice", (1e-3, 3e-4, 1e-4), 1e-4, "small"),
        ("choice", (1e-4, 3e-4, 1e-3), 3e-4, None),
        ("grid", (8, 16, 32), 8, "small"),
        ("choice", (1, 3, 6), 1, None),  # there are no fewer epochs
        ("choice", (1, 3, 6), 6, "larg"),
        ("choice", (16,), 16, None),
        ("choice", ("original", "sqrt"), "sqrt", None),
        ("choice", (True, False), True, None),
        ("choice", ({"top_layers": 1}, {"top_layers": 2}), {"top_layers": 2}, None),
        ("loguniform", (1e-5, 1e-2), 9e-3, "larg"),
        ("loguniform", (1e-5, 1e-2), 1.1e-5, "small"),
        ("loguniform", (1e-5, 1e-2), 5e-3, None),
        ("uniform", (0.0, 1.0), 0.96, "larg"),
        ("uniform", (0.0, 1.0), 0.9, None),
        ("randint", (2, 10), 9, "larg"),
        ("randint", (2, 10), 8, None),
        ("randint", (2, 10), 2, "small"),
    ],
)
def test_the_edge_of_what_was_tried(kind: str, values: tuple[Any, ...], chosen: Any, side: str | None) -> None:
    field = "stage_two.learning_rate"
    notes = list(edge_notes({field: chosen}, {field: Distribution(kind, values)}))
    assert [note.split(" is the ")[1] for note in notes] == (
        [] if side is None else [f"{side}est that was tried: {side}er ones may do better"]
    )


def test_a_field_that_the_trial_does_not_have_says_nothing() -> None:
    assert not list(edge_notes({}, {"stage_two.epochs": Distribution("choice", (1, 2, 3))}))
