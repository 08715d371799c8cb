"""A cluster's definition as files for its launcher."""
