"""From a file to its rows: where files are, how they are compressed, encoded and written."""
