"""Rows that lie on an object store: a file, a folder, a pattern."""

from pathlib import Path

import pandas as pd
import pytest
from support.object_store import BUCKET, ObjectStore
from tailsweep.trainables.data.sources import read_source
from tailsweep.trainables.errors import DataError

ROWS = [(f"text {i}", "xyz"[i % 3]) for i in range(12)]


def test_the_files_of_an_object_store_are_read(tmp_path: Path, store: ObjectStore) -> None:
    pd.DataFrame(ROWS, columns=["text", "label"]).to_csv(tmp_path / "rows.csv", index=False)
    for name in ("train-0.csv", "train-1.csv", "test.csv"):
        store.client.upload_file(str(tmp_path / "rows.csv"), BUCKET, f"rows/{name}")

    def count(path: str, role: str = "train") -> int:
        return len(read_source(store.uri(f"{BUCKET}/{path}"), role).dataset)  # type: ignore[arg-type]

    assert [count("rows/test.csv"), count("rows"), count("rows", "test"), count("rows/t*.csv")] == [12, 24, 12, 36]
    with pytest.raises(DataError, match=r"there is no file .*none.csv"):
        count("rows/none.csv")
