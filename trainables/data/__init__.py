"""Sources, splits, tokenization and sampling."""
