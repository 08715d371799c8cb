"""An object store in memory. As on a real one, a file is there whole or not at all, whoever reads meanwhile."""

import io
from typing import Any

from fsspec.implementations.memory import MemoryFile, MemoryFileSystem


class WholeFiles(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """fsspec's shows a file from the moment it is opened for writing, and all its readers share one position."""

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode == "wb":
            return _Written(self, self._strip_protocol(path))
        if mode == "rb":
            return io.BytesIO(super()._open(path, mode, **options).getvalue())
        raise ValueError(f"an object store's files are read or written whole, not opened by {mode!r}")


class _Written(io.BytesIO):
    def __init__(self, filesystem: MemoryFileSystem, path: str) -> None:
        super().__init__()
        self.filesystem, self.path = filesystem, path

    def close(self) -> None:
        if not self.closed:
            self.filesystem.store[self.path] = MemoryFile(self.filesystem, self.path, self.getvalue())
        super().close()
