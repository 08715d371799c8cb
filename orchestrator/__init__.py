"""Many trials: a sweep over a Ray cluster. Imports ``trainables``; is imported by nothing but its own command line."""
