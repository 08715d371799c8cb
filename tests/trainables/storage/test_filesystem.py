"""Folders and URIs: how they are joined, what is refused, and for how long a server that does not answer is asked."""

import time
from pathlib import Path

import pyarrow.fs as pafs
import pytest
from tailsweep.trainables.errors import StorageError
from tailsweep.trainables.storage import retry
from tailsweep.trainables.storage.filesystem import (
    GCS_RETRIES_S,
    join_location,
    open_location,
    parent_location,
    without_trailing_slash,
)
from tailsweep.trainables.storage.retry import with_retries

QUERY = "?endpoint_override=127.0.0.1:9000&scheme=http&region=us-east-1"


@pytest.mark.parametrize(
    ("location", "relative", "joined", "path"),
    [
        (f"s3://bucket{QUERY}", "demo", f"s3://bucket/demo{QUERY}", "bucket/demo"),
        (f"s3://bucket/runs{QUERY}", "demo", f"s3://bucket/runs/demo{QUERY}", "bucket/runs/demo"),
        (f"s3://bucket/runs//{QUERY}", "demo/state", f"s3://bucket/runs/demo/state{QUERY}", "bucket/runs/demo/state"),
        (f"s3://bucket/a%20b%23c{QUERY}", "demo", f"s3://bucket/a%20b%23c/demo{QUERY}", "bucket/a b#c/demo"),
        (f"s3://bucket/runs{QUERY}", "50% #1", f"s3://bucket/runs/50%25%20%231{QUERY}", "bucket/runs/50% #1"),
        ("gs://bucket/runs?project_id=mine", "demo", "gs://bucket/runs/demo?project_id=mine", "bucket/runs/demo"),
        ("file:///mnt/my%20runs", "demo", "file:///mnt/my%20runs/demo", "/mnt/my runs/demo"),
        ("/mnt/who? me #1/", "t000", "/mnt/who? me #1/t000", "/mnt/who? me #1/t000"),
        ("/", "runs", "/runs", "/runs"),
    ],
)
def test_what_lies_below_a_location(location: str, relative: str, joined: str, path: str) -> None:
    assert join_location(location, relative) == joined
    assert open_location(joined)[1] == path
    if "/" not in relative:
        assert parent_location(joined) == without_trailing_slash(location)


def test_a_uris_query_reaches_pyarrow_wherever_it_is_joined() -> None:
    filesystem, _ = open_location(join_location(f"s3://bucket/runs{QUERY}", "demo"))
    assert filesystem == pafs.S3FileSystem(endpoint_override="127.0.0.1:9000", scheme="http", region="us-east-1")


@pytest.mark.parametrize(
    ("location", "hint"),
    [
        ("s3://bucket/runs#1/demo", "write %23"),
        ("s3://bucket/my runs/demo", "write %20"),
        ("s3://bucket//demo", "between its slashes must stand names"),
        ("s3://bucket/./demo", "between its slashes must stand names"),
        ("s3://bucket/../demo", "between its slashes must stand names"),
        ("s3:///demo", "between its slashes must stand names"),
        ("s3:/bucket/demo", "two slashes after s3:"),
        (join_location("s3:", "demo"), "two slashes after s3:"),
        (join_location("s3://", "demo"), "between its slashes must stand names"),
        ("s4://bucket/demo", "Unrecognized filesystem type"),
        ("s3://bucket/demo?zone=7", "Unexpected query parameter"),
    ],
)
def test_what_would_lead_elsewhere_is_refused(location: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        open_location(location)


def test_a_folder_may_be_named_as_a_uri_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_location("./s3:/demo")[1] == str(tmp_path / "s3:/demo")


def test_google_cloud_storage_is_asked_for_seconds_and_not_for_a_quarter_of_an_hour() -> None:
    def seconds(location: str) -> float:
        filesystem, _ = open_location(location)
        _, (constructor_arguments,) = filesystem.__reduce__()
        return constructor_arguments["retry_time_limit"].total_seconds()

    assert seconds("gs://anonymous@bucket/runs") == GCS_RETRIES_S
    assert seconds("gs://anonymous@bucket/runs?scheme=http") == GCS_RETRIES_S
    assert seconds("gs://anonymous@bucket/runs?retry_limit_seconds=60") == 60


def test_a_missing_file_is_an_answer_or_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "RETRY_DELAYS_S", (0.0, 0.0))
    asked = []

    def ask() -> None:
        asked.append(time.monotonic())
        raise FileNotFoundError("gone")

    with pytest.raises(FileNotFoundError, match="gone"):
        with_retries(ask, "a file", missing=False)
    assert len(asked) == 1
    with pytest.raises(StorageError, match=r"refused a file 3 times in 0 s: gone"):
        with_retries(ask, "a file")
    assert len(asked) == 4
