"""A trial under Ray Train and Ray Tune."""
