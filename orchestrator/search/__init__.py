"""Which trials are tried, and which continue."""
