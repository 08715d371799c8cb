"""The report of a run directory, written from its records: the Parquet tables, report.html and the text."""

from tailsweep.orchestrator.runs.directory import REPORT_FILE, RunDirectory, open_run
from tailsweep.orchestrator.runs.html_report import render_page
from tailsweep.orchestrator.runs.records import read_records, read_sweep
from tailsweep.orchestrator.runs.tables import read_test_metrics, write_tables
from tailsweep.orchestrator.runs.text import describe_run
from tailsweep.orchestrator.runs.trials import Records


def report(location: str) -> str:
    """Report on a run directory, finished, running or dead; needs no cluster."""
    run = open_run(location)
    return write_report(run, read_records(run), read_sweep(run).config.metric)


def write_report(run: RunDirectory, records: Records, metric: str) -> str:
    """Write ``trials.parquet``, ``history.parquet`` and ``report.html``, and return the same as text."""
    rows = write_tables(run, records, metric)
    page = render_page(run.name, records, rows, metric, read_test_metrics(run))
    run.write_text(REPORT_FILE, page)
    return describe_run(run, records, rows, metric)
