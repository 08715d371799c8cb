"""Losses, optimizer, metrics, checkpoints and the two stages."""
