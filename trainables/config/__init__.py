"""The settings of one trial."""
