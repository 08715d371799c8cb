"""The checks before a start."""
