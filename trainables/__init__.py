"""One trial: two-stage fine-tuning of a text classifier. Knows nothing of sweeps or clusters; runs without Ray."""
