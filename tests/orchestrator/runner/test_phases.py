"""Trials that Tune gives up before they begin are run again, as often as there are retries."""

from types import SimpleNamespace
from typing import Any, cast

from tailsweep.orchestrator.config.sweep import Sweep, SweepConfig
from tailsweep.orchestrator.planning.plan import SweepPlan
from tailsweep.orchestrator.runner.phases import SweepRunner
from tailsweep.orchestrator.runner.tune_run import Phase, TuneRequest
from tailsweep.orchestrator.runs.trials import Outcome, Records, TrialRecord

DIED = "its process died"
PLACEMENT = cast(Any, {})


class FakeTune:
    """In place of Ray Tune: every trial completes in a run that does not give it up.

    Args:
        given_up: the trials that each run gives up.
        stops_in: the number of the run in which the sweep is stopped.
    """

    def __init__(self, records: Records, given_up: list[set[str]], stops_in: int | None = None) -> None:
        self.run_directory = self.environment = None
        self.records = records
        self.gives_up = given_up
        self.stops_in = stops_in
        self.callback = SimpleNamespace(given_up={}, stopped=None, end=self.end)
        self.runs: list[set[str]] = []

    def end(self, name: str, state: Any, reason: str) -> None:
        self.records.outcomes[name] = Outcome(name, state, reason, 0.0)

    def run(self, request: TuneRequest) -> None:
        names = {trial.name for trial in request.trials}
        number = len(self.runs)
        if number == self.stops_in:
            self.callback.stopped = "Ctrl-C"
        self.runs.append(names)
        self.callback.given_up.update(dict.fromkeys(self.gives_up[number], DIED))
        for name in names - self.gives_up[number]:
            self.end(name, "completed", "")


def run_phase(given_up: list[set[str]], stops_in: int | None = None) -> FakeTune:
    records = Records([TrialRecord(f"t00{number}", {}, {}) for number in range(3)])
    sweep = Sweep.resolved(SweepConfig.model_construct(retries=2, metric="validation/macro_f1"), "demo", 3)
    tune = FakeTune(records, given_up, stops_in)
    plan = SweepPlan(sweep, tuple(records.trials), (), None, None)
    runner = SweepRunner(plan, cast(Any, tune), cast(Any, None))
    runner.run_phase(TuneRequest(Phase.BOTH_STAGES, records.trials, PLACEMENT))
    return tune


def test_only_those_given_up_are_run_again() -> None:
    tune = run_phase([{"t000", "t002"}, {"t002"}, set()])
    assert tune.runs == [{"t000", "t001", "t002"}, {"t000", "t002"}, {"t002"}]
    assert {outcome.state for outcome in tune.records.outcomes.values()} == {"completed"}


def test_who_is_given_up_to_the_last_run_has_failed() -> None:
    tune = run_phase([{"t001"}] * 3)
    assert len(tune.runs) == 3
    assert (tune.records.outcomes["t001"].state, tune.records.outcomes["t001"].reason) == ("failed", DIED)
    assert [tune.records.outcomes[name].state for name in ("t000", "t002")] == ["completed"] * 2


def test_a_sweep_that_is_to_stop_runs_no_trial_again() -> None:
    tune = run_phase([{"t001"}], stops_in=0)
    assert len(tune.runs) == 1
    assert "t001" not in tune.records.outcomes, "it can be resumed"
