"""The run directory: records, tables, report."""
