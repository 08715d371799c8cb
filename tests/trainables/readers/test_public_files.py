"""Files as public datasets and common programs write them are read as their owners mean them."""

from pathlib import Path

import pytest
from support.public_files import PUBLIC_FILES, PublicFile, rows_read


@pytest.mark.parametrize("file", PUBLIC_FILES, ids=lambda file: file.kind)
def test_a_public_file_is_read_as_its_owner_means_it(file: PublicFile, tmp_path: Path) -> None:
    rows, notes = rows_read(file, tmp_path)
    assert rows == list(file.rows), notes
