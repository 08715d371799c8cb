"""`tailsweep cache`: what lies there, and its removal."""

import json
import re
from pathlib import Path

import pytest
from filelock import FileLock
from tailsweep.orchestrator.cli.main import main


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two features, the first of 3 MB, tokenized rows, a converted file, and what a killed process left."""
    folder = tmp_path / "cache"
    metas = {
        "features/aa11": {"split_point": "pooled vectors", "dtype": "fp32"},
        "features/aa22": {"split_point": "tokens entering layer 6", "dtype": "bf16"},
        "tokens/bb33": {"label_names": ["x", "y"], "splits": {"train": {"rows": 900}, "test": {"rows": 100}}},
    }
    for name, meta in metas.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "meta.json").write_text(json.dumps(meta))
    (folder / "features/aa11/train.bin").write_bytes(bytes(3_000_000))
    (folder / "features/.aa99.partial").mkdir()
    converted = folder / "datasets/dd44/csv/default-12ab/0.0.0"
    converted.mkdir(parents=True)
    (converted / "csv-train.arrow").write_bytes(bytes(5_000_000))
    monkeypatch.setenv("TAILSWEEP_CACHE", str(folder))
    return folder


def remaining(cache: Path) -> set[str]:
    return {path.parent.name for path in cache.glob("*/*/meta.json")}


def test_list_says_what_each_entry_is_the_largest_first(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [re.split(r" {2,}", line)[0:3:2] for line in lines[2:4]] == [["datasets", "5.0"], ["features", "3.0"]]
    assert lines[2].endswith("a CSV, TSV or Parquet file, converted to Arrow")
    assert lines[3].endswith("pooled vectors, fp32")
    assert {line.split()[1] for line in lines[2:7]} == {"aa11", "aa22", "bb33", "dd44", ".aa99.partia"}
    assert any(line.endswith("1,000 examples, 2 classes") for line in lines)
    assert any(line.endswith("left by a process that was killed") for line in lines)
    assert lines[-1] == f"5 entries, 8.0 MB in {cache}"


def test_list_of_an_empty_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "list", "--dir", str(tmp_path / "none")]) == 0
    assert capsys.readouterr().out == f"the cache {tmp_path / 'none'} is empty\n"


def test_remove_takes_the_first_characters_of_a_key(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "remove", "aa1", "bb"]) == 0
    assert capsys.readouterr().out == "removed 2 entries, 3.0 MB\n"
    assert remaining(cache) == {"aa22"}


def test_remove_all(cache: Path) -> None:
    assert main(["cache", "remove", "--all"]) == 0
    assert not [path for path in cache.glob("*/*") if path.is_dir()]


@pytest.mark.parametrize(
    ("key", "rule"), [("aa", "2 entries begin with it"), ("cc", "no entry begins with it")], ids=["several", "none"]
)
def test_a_key_that_names_no_single_entry_removes_nothing(
    key: str, rule: str, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache", "remove", "bb33", key]) == 2
    assert f'key "{key}": {rule}' in capsys.readouterr().err
    assert remaining(cache) == {"aa11", "aa22", "bb33"}


def test_an_entry_that_is_being_created_is_kept_and_so_are_the_others(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FileLock(cache / "features/aa22.lock"):
        assert main(["cache", "remove", "--all"]) == 2
    assert "features aa22 is being created" in capsys.readouterr().err
    assert remaining(cache) == {"aa11", "aa22", "bb33"}


def test_a_damaged_entry_is_named_so(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (cache / "features/aa22/meta.json").write_text("{")
    assert main(["cache", "list"]) == 0
    assert "damaged" in capsys.readouterr().out
