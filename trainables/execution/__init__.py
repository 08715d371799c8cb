"""How a batch is run: padded, packed, or from cached features."""
