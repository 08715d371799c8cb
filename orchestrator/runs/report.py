"""The report of a run directory, written from its records: the Parquet tables, report.html and the text."""

import logging

from tailsweep.orchestrator.runs.directory import REPORT_FILE, RunDirectory, open_run
from tailsweep.orchestrator.runs.html_report import render_page
from tailsweep.orchestrator.runs.records import check_settings, read_records, read_sweep
from tailsweep.orchestrator.runs.tables import read_test_metrics, result_rows, write_tables
from tailsweep.orchestrator.runs.text import describe_run
from tailsweep.orchestrator.runs.trials import Records
from tailsweep.trainables.errors import StorageError

logger = logging.getLogger(__name__)


def report(location: str) -> str:
    """Report on a run directory, finished, running or dead; needs no cluster."""
    run = open_run(location)
    sweep = read_sweep(run)
    check_settings(run, sweep)
    metric = sweep.config.metric
    records = read_records(run, metric)
    try:
        return write_report(run, records, metric)
    except StorageError as error:  # of somebody else, or on a disk that is read-only: it can be read all the same
        logger.warning(f"no tables were written: {error}")
        return describe_run(run, records, result_rows(records, metric), metric)


def write_report(run: RunDirectory, records: Records, metric: str) -> str:
    """Write ``trials.parquet``, ``history.parquet`` and ``report.html``, and return the same as text."""
    rows = write_tables(run, records, metric)
    page = render_page(run.name, records, rows, metric, read_test_metrics(run))
    run.write_text(REPORT_FILE, page)
    return describe_run(run, records, rows, metric)
