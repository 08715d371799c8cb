"""A file's checksum, XXH3: not cryptographic, it guards against damage, at the speed of reading."""

import hashlib
from pathlib import Path

import xxhash


def checksum_of(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
