"""Candidates that Tune gives up before they begin are played again, as often as there are retries."""

from types import SimpleNamespace
from typing import Any

import pytest
from tailsweep.orchestrator.runner import phases, tune_run

DIED = "its process died"


class Playing(SimpleNamespace):
    """As far as a round of inline candidates looks into it; each is done in one play unless it is ``unlucky`` there."""

    def __init__(self, unlucky: list[set[str]], stops_in_play: int | None = None) -> None:
        outcomes: dict[str, tuple[str, str]] = {}
        super().__init__(
            candidates=[SimpleNamespace(name=f"c00{number}") for number in range(3)],
            records=SimpleNamespace(outcomes=outcomes),
            sweep=SimpleNamespace(config=SimpleNamespace(retries=2, metric="validation/macro_f1")),
            bookkeeping=SimpleNamespace(given_up={}, stopped=None, end=lambda name, *how: outcomes.update({name: how})),
            plays=[],
        )

        def play_once(playing: Playing, a_round: str, candidates: list[Any], *_: Any) -> None:
            names = {candidate.name for candidate in candidates}
            if (play := len(playing.plays)) == stops_in_play:
                playing.bookkeeping.stopped = "Ctrl-C"
            playing.plays.append(names)
            playing.bookkeeping.given_up.update(dict.fromkeys(unlucky[play], DIED))
            outcomes.update(dict.fromkeys(names - unlucky[play], ("completed", "")))

        self.play_once = play_once

    @property
    def unfinished(self) -> list[Any]:
        return [candidate for candidate in self.candidates if candidate.name not in self.records.outcomes]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Any:
    def play(playing: Playing) -> Playing:
        monkeypatch.setattr(phases, "_play_once", playing.play_once)
        tune_run._play(playing, "both_stages", playing.candidates, {}, {}, draw=False)
        return playing

    return play


def test_only_those_given_up_are_played_again(play: Any) -> None:
    played = play(Playing([{"c000", "c002"}, {"c002"}, set()]))
    assert played.plays == [{"c000", "c001", "c002"}, {"c000", "c002"}, {"c002"}]
    assert {state for state, _ in played.records.outcomes.values()} == {"completed"}


def test_who_is_given_up_to_the_last_play_has_failed(play: Any) -> None:
    played = play(Playing([{"c001"}] * 3))
    assert len(played.plays) == 3
    assert played.records.outcomes["c001"] == ("failed", DIED)
    assert [played.records.outcomes[name][0] for name in ("c000", "c002")] == ["completed"] * 2


def test_a_sweep_that_is_to_stop_plays_nobody_again(play: Any) -> None:
    played = play(Playing([{"c001"}], stops_in_play=0))
    assert len(played.plays) == 1
    assert "c001" not in played.records.outcomes, "it can be gone on with"
