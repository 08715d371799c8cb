"""A run directory's records as tables: one row per trial, one per report. Needs no live cluster."""

import io
import json
import math
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq
from tailsweep.orchestrator.config.schema import SweepConfig
from tailsweep.orchestrator.runs.directory import (
    BEST_FOLDER,
    HISTORY_FILE,
    METRICS_FILE,
    TRIALS_TABLE,
    RunDirectory,
    RunDirectoryError,
)
from tailsweep.orchestrator.runs.trials import Records, Row, TrialState
from tailsweep.trainables import report_keys
from tailsweep.trainables.errors import describe_error
from tailsweep.trainables.report_keys import Stage
from tailsweep.trainables.storage.json_text import parse_json

NUMBERS = (f"{report_keys.VALIDATION}/", "train/", "best_epoch", "seconds")  # how names of columns of numbers begin


def result_rows(records: Records, metric: str) -> list[Row]:
    """Return one row per trial, in their order: state, epochs, seconds, best validation scores, swept values.

    ``state`` is ``running`` for a trial with reports and no outcome, ``pending`` for one without either: in a run
    that died, ``running`` means cut short. A trial that continued as several gives their rows, whose ``parent`` it
    is, and none of its own; its epochs and seconds of stage one are in each.
    """
    rows = []
    for trial in sorted(records.trials, key=lambda trial: trial.number):
        history = records.history_of(trial.name)
        outcome = records.outcomes.get(trial.name)
        if outcome is not None and outcome.state == TrialState.PROMOTED:
            continue
        best = records.judged(trial.name, metric)
        state = outcome.state if outcome else TrialState.RUNNING if history else TrialState.PENDING
        row: Row = {
            "trial": trial.name,
            "parent": trial.parent,
            "state": state.value,
            "reason": outcome.reason if outcome else None,
            "stage_one_epochs": _epochs_done(history, report_keys.STAGE_ONE),
            "stage_two_epochs": _epochs_done(history, report_keys.STAGE_TWO),
            "seconds": outcome.seconds if outcome else sum(report[report_keys.SECONDS] for report in history),
            "best_stage": best[report_keys.STAGE] if best else None,
            "best_epoch": best[report_keys.EPOCH] if best else None,
        }
        if best:
            row |= {key: value for key, value in best.items() if key.startswith(f"{report_keys.VALIDATION}/")}
        rows.append(row | trial.values)
    return rows


def _epochs_done(history: Sequence[Row], stage: Stage) -> float:
    return max((report[report_keys.EPOCH] for report in history if report[report_keys.STAGE] == stage), default=0)


def ranking(rows: Sequence[Row], metric: str) -> list[Row]:
    """Sort the rows, best first. Completed trials come before all others; ties go to the lower trial number."""

    def order(row: Row) -> tuple[bool, float]:
        score = row.get(metric)
        return row["state"] != TrialState.COMPLETED, -score if score is not None else math.inf

    return sorted(rows, key=order)  # stable: equal scores stay in the trials' order


def select_best(rows: Sequence[Row], metric: str) -> Row | None:
    """Return the sweep's best trial, by validation examples alone; None if none was completed."""
    best = next(iter(ranking(rows, metric)), None)
    return best if best is not None and best["state"] == TrialState.COMPLETED else None


def write_tables(run: RunDirectory, records: Records, metric: str) -> list[Row]:
    """Write ``trials.parquet`` and ``history.parquet`` from the records, and return the result rows."""
    rows = result_rows(records, metric)
    _write_parquet(run, TRIALS_TABLE, rows)
    _write_parquet(run, HISTORY_FILE, records.history)
    return rows


def read_test_metrics(run: RunDirectory) -> Row | None:
    """Read ``best/metrics.json``; None if no model has been chosen yet.

    Raises:
        RunDirectoryError: It is not as it was written.
    """
    try:
        metrics = parse_json(run.read_text(METRICS_FILE))
        if not {"trial", "stage", "epoch", "labels", "train_rows", "test_rows"} <= metrics.keys():
            raise ValueError("it has not all its entries")
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError) as error:
        raise RunDirectoryError(
            f"{run.uri(METRICS_FILE)} is damaged ({describe_error(error)}): remove the folder {BEST_FOLDER}/, and "
            f"`{run.resume_command}` makes it again"
        ) from None
    read: Row = metrics
    return read


def choice_basis(rows: Sequence[Row], config: SweepConfig) -> list[object]:
    """Return what the choice of a model rests on: the best trial and its checkpoint, and how many are completed.

    And how it is chosen, where that is not as it is by default.
    """
    best = ranking(rows, config.metric)[0]
    completed = sum(row["state"] == TrialState.COMPLETED for row in rows)
    selection = config.model_dump(mode="json", include={"selection"})  # empty by default
    return [best["trial"], best["best_stage"], best["best_epoch"], completed, *selection.values()]


def is_exported(run: RunDirectory, rows: Sequence[Row], config: SweepConfig) -> bool:
    """Return whether ``best/`` is whole and was chosen among the trials that there are.

    Args:
        run: the run directory.
        rows: of its trials, as :func:`result_rows` returns them.
        config: of the sweep.
    """
    try:
        metrics = read_test_metrics(run)
    except RunDirectoryError:
        return False
    if metrics is None:
        return False
    basis = choice_basis(rows, config)
    # Versions without a choice made the best trial's model, and wrote nothing else down.
    earlier = [metrics["trial"], metrics["stage"], metrics["epoch"], *basis[3:]]
    sizes = run.sizes(BEST_FOLDER)
    return metrics.get("choice_basis", earlier) == basis and all(
        sizes.get(name) == size for name, size in metrics.get("files", {}).items()
    )


def chosen_trials(metrics: Row | None) -> list[str]:
    """Return the trials whose models are, or are part of, the model of ``best/metrics.json``."""
    if metrics is None:
        return []
    members = metrics.get("members", [{"kind": "trial", "name": metrics["trial"]}])
    return [member["name"] for member in members if member["kind"] == "trial"]


def _write_parquet(run: RunDirectory, name: str, rows: Sequence[Row]) -> None:
    """Write the union of the rows' columns; a column that mixes types (a swept choice may) is written as text."""
    columns: dict[str, list[object]] = {key: [] for row in rows for key in row}
    for row in rows:
        for key, values in columns.items():
            values.append(row.get(key))
    arrays = {key: _array(key, values) for key, values in columns.items()}
    sink = io.BytesIO()
    pq.write_table(pa.table(arrays), sink)
    run.write_bytes(name, sink.getvalue())


def _array(key: str, values: list[object]) -> pa.Array:
    if all(value is None for value in values):  # a column of no type would not go together with another run's
        is_number = key.startswith(NUMBERS)
        return pa.array(values, pa.float64() if is_number else pa.string())
    try:
        if not any(isinstance(value, dict | list) for value in values):
            return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        pass
    return pa.array([None if value is None else json.dumps(value) for value in values])
