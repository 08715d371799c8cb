"""Class-balanced augmented examples."""
