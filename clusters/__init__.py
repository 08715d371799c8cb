"""Where a sweep runs. Imports neither of the other packages; hands over a command line."""
