"""Ray's job server: submit, follow, stop."""
