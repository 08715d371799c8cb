"""Everything a run directory shows, made anew from its records: the Parquet tables, report.html and the text."""

from orchestrator.page import render_page
from orchestrator.records import Records, read_records, read_sweep
from orchestrator.results import describe_run, read_test_metrics, write_tables
from orchestrator.run_directory import REPORT_FILE, RunDirectory, open_run


def report(location: str) -> str:
    """Report on a run directory, finished, running or dead; needs no cluster."""
    run = open_run(location)
    return write_report(run, read_records(run), read_sweep(run).config.metric)


def write_report(run: RunDirectory, records: Records, metric: str) -> str:
    """Write ``results.parquet``, ``history.parquet`` and ``report.html``; returns the same as text."""
    rows = write_tables(run, records, metric)
    page = render_page(run.name, records, rows, metric, read_test_metrics(run))
    run.write_text(REPORT_FILE, page)
    return describe_run(run, records, rows, metric)
