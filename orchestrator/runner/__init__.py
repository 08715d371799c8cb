"""A sweep from its plan to its exported model."""
