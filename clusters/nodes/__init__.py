"""Nodes asked and checked."""
