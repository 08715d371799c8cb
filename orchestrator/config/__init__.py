"""The sweep file: read, checked, resolved."""
