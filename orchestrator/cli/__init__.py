"""The command line: one command calls one public function."""
