"""Checksums of files: XXH3 against damage, SHA-256 for identity."""

import hashlib
from pathlib import Path

import xxhash


def checksum_of(path: Path) -> str:
    """Return the XXH3 of a file: not cryptographic, but as fast as reading."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
