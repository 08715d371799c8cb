"""Sizes of files, uploads and disks in words."""


def describe_bytes(num_bytes: float) -> str:
    """Return a size with its unit, a decimal one, as disks are sold.

    Example:
        >>> describe_bytes(1_500_000_000), describe_bytes(1_900_000), describe_bytes(512)
        ('1.5 GB', '1.9 MB', '0.5 kB')
    """
    if num_bytes >= 1e8:
        return f"{num_bytes / 1e9:,.1f} GB"
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:.1f} kB"
