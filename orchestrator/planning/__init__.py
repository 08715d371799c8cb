"""What a sweep will need, computed before it starts."""
