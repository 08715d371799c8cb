"""The report of a run directory, written from its records: the Parquet tables, report.html and the text."""

import logging
from collections.abc import Sequence

from tailsweep.orchestrator.config.distributions import key_of
from tailsweep.orchestrator.config.sweep import Sweep
from tailsweep.orchestrator.runs.directory import REPORT_FILE, RunDirectory, open_run
from tailsweep.orchestrator.runs.edges import edge_notes
from tailsweep.orchestrator.runs.html_report import render_page
from tailsweep.orchestrator.runs.records import check_settings, read_records, read_sweep
from tailsweep.orchestrator.runs.tables import read_test_metrics, result_rows, select_best, write_tables
from tailsweep.orchestrator.runs.text import describe_run
from tailsweep.orchestrator.runs.trials import Records, Row
from tailsweep.trainables.errors import StorageError
from tailsweep.trainables.report_keys import STAGE, STAGES

RISING = 0.002  # of a score, from one evaluation to the next

logger = logging.getLogger(__name__)


def report(location: str) -> str:
    """Report on a run directory, finished, running or dead; needs no cluster."""
    run = open_run(location)
    sweep = read_sweep(run)
    check_settings(run, sweep)
    metric = sweep.config.metric
    records = read_records(run, metric)
    try:
        return write_report(run, records, sweep)
    except StorageError as error:  # of somebody else, or on a disk that is read-only: it can be read all the same
        logger.warning(f"no tables were written: {error}")
        rows = result_rows(records, metric)
        return describe_run(run, records, rows, metric, hints(sweep, records, rows))


def write_report(run: RunDirectory, records: Records, sweep: Sweep) -> str:
    """Write ``trials.parquet``, ``history.parquet`` and ``report.html``, and return the same as text."""
    metric = sweep.config.metric
    rows = write_tables(run, records, metric)
    page = render_page(run.name, records, rows, metric, read_test_metrics(run))
    run.write_text(REPORT_FILE, page)
    return describe_run(run, records, rows, metric, hints(sweep, records, rows))


def hints(sweep: Sweep, records: Records, rows: Sequence[Row]) -> list[str]:
    """Return what the chosen trial suggests to try next: settings beyond an edge, or more epochs."""
    metric = sweep.config.metric
    best = select_best(rows, metric)
    if best is None:
        return []
    values = records.trial(best["trial"]).values
    distributions = sweep.method_sweep(values).config.trial_distributions
    several = {
        field: distribution
        for field, distribution in distributions.items()
        if len({key_of(trial.values.get(field)) for trial in records.trials}) > 1
    }
    config = records.trial(best["trial"]).config
    for stage in STAGES:
        if config[stage].get("steps") is not None:  # more epochs were only more evaluations
            several.pop(f"{stage}.epochs", None)
    lines = list(edge_notes(values, several))
    reports = records.history_of(best["trial"])
    last = [row[metric] for row in reports if row[STAGE] == reports[-1][STAGE]]
    if len(last) > 1 and last[-1] == max(last) and last[-1] - last[-2] >= RISING:
        stage = reports[-1][STAGE]
        more = "epochs" if config[stage].get("steps") is None else "steps"
        where = f"in the last epoch of {str(stage).replace('_', ' ')}"
        lines.append(f"{metric} was still rising {where}: more {more} may do better")
    return lines
