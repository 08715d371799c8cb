"""What a running sweep shows: console, log, W&B."""
