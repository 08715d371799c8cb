"""Where the files of a source are found: folders, patterns and URIs."""

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
from tailsweep.trainables.data.sources import read_source
from tailsweep.trainables.errors import DataError

ROWS = [(f"text {i}", "xyz"[i % 3]) for i in range(12)]


def write(path: Path, rows: list[tuple[str, str]] = ROWS, columns: tuple[str, ...] = ("text", "label")) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows, columns=list(columns)).to_csv(path, index=False)
    return path


def pairs(source: object, role: str = "train") -> list[tuple[str, str]]:
    rows = read_source(str(source), role).dataset  # type: ignore[arg-type]
    return list(zip(rows["text"], rows["label"], strict=True))


class Quiet(SimpleHTTPRequestHandler):
    """A web server that prints nothing."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_parts_of_a_pattern_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (0, 2, 10):
        write(tmp_path / f"part-{number}.csv", [(f"of {number}", "x")])
    assert [text for text, _ in pairs(tmp_path / "part-*.csv")] == ["of 0", "of 2", "of 10"]
    rows = read_source(str(tmp_path / "part-*.csv"), "train")
    assert rows.forms == ("3 files, from part-0.csv to part-10.csv",)


def test_a_folder_gives_each_role_its_files(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", [("of train", "x")])
    write(tmp_path / "dev.csv", [("of dev", "x")])
    write(tmp_path / "test_set.csv", [("of test", "x")])
    assert [pairs(tmp_path, role)[0][0] for role in ("train", "validation", "test")] == [
        "of train",
        "of dev",
        "of test",
    ]


def test_parts_with_different_columns_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.csv")
    write(tmp_path / "b.csv", columns=("text", "class"))
    with pytest.raises(DataError, match=r'different columns: "a.csv" has text, label, "b.csv" has text, class'):
        pairs(tmp_path)


def test_a_file_of_the_web_is_read(tmp_path: Path, web: str) -> None:
    write(tmp_path / "train.csv")
    assert pairs(f"{web}/train.csv") == ROWS
    assert pairs(f"{web}/train.csv?download=true") == ROWS
    with pytest.raises(DataError, match=r'data.train: cannot read "http://127.0.0.1:\d+/none.csv": '):
        pairs(f"{web}/none.csv")


def test_a_server_that_is_not_there_is_one_message() -> None:
    with pytest.raises(DataError, match=r'data.train: cannot read "http://127.0.0.1:9/a.csv": '):
        pairs("http://127.0.0.1:9/a.csv")
