"""A sweep as a Ray job."""
