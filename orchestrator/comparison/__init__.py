"""Comparisons of methods over seeds, and their statistics."""
