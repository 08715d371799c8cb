"""The states of a trial, and their values in files."""

import dataclasses
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from support.event_files import outcomes
from tailsweep.orchestrator.runs.directory import TRIALS_TABLE, RunDirectory, RunDirectoryError
from tailsweep.orchestrator.runs.event_log import EventLog, LogEnd
from tailsweep.orchestrator.runs.records import RecordWriter, read_records, write_trials
from tailsweep.orchestrator.runs.tables import result_rows, write_tables
from tailsweep.orchestrator.runs.trials import END_STATES, Outcome, TrialRecord, TrialState

METRIC = "validation/macro_f1"


@pytest.mark.parametrize("state", END_STATES)
def test_an_outcome_is_written_as_a_plain_string_and_read_as_a_state(run: RunDirectory, state: TrialState) -> None:
    write_trials(run, [TrialRecord("t000", {}, {})])
    outcome = Outcome("t000", state, "", 1.0)
    RecordWriter(run).end_trials([outcome])
    written = outcomes(Path(run.path))["t000"]
    assert written["state"] == str(state.value)
    assert written == dataclasses.asdict(outcome)
    assert read_records(run).outcomes["t000"] == outcome
    assert type(read_records(run).outcomes["t000"].state) is TrialState


def test_tables_and_rows_have_plain_strings(run: RunDirectory) -> None:
    write_trials(run, [TrialRecord("t000", {}, {}), TrialRecord("t001", {}, {})])
    RecordWriter(run).end_trials([Outcome("t001", TrialState.FAILED, "no memory", 1.0)])
    rows = result_rows(read_records(run), METRIC)
    assert [type(row["state"]) for row in rows] == [str, str]
    assert yaml.safe_load(yaml.safe_dump([row["state"] for row in rows])) == ["pending", "failed"]
    write_tables(run, read_records(run), METRIC)
    column = pq.read_table(run.uri(TRIALS_TABLE))["state"]
    assert (column.type, column.to_pylist()) == (pa.string(), ["pending", "failed"])


def test_a_trial_has_ended_in_each_state_but_the_first_two() -> None:
    assert [state for state in TrialState if not state.has_ended] == [TrialState.PENDING, TrialState.RUNNING]
    assert set(END_STATES) | {TrialState.PENDING, TrialState.RUNNING} == set(TrialState)


@pytest.mark.parametrize("state", ["running", "complete", 3])
def test_an_outcome_of_no_end_state_is_refused(run: RunDirectory, state: object) -> None:
    write_trials(run, [TrialRecord("t000", {}, {})])
    outcome = dataclasses.asdict(Outcome("t000", TrialState.FAILED, "", 1.0)) | {"state": state}
    EventLog(run, LogEnd()).append("outcome", outcome)
    with pytest.raises(RunDirectoryError, match=r"the records end t000 as .+, but must end it as one of pruned, "):
        read_records(run)
