"""An S3-compatible server as a process of its own: moto's, behind a door that a test can shut.

``python object_store.py PORT DOOR`` serves on 127.0.0.1. Where the file ``DOOR`` is there, every request is answered
with the status that it holds.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BUCKET = "bucket"
REFUSALS = {"403 Forbidden": "AccessDenied", "503 Service Unavailable": "SlowDown"}


@dataclass(frozen=True)
class ObjectStore:
    """The server, as tests speak to it."""

    port: int
    door: Path

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def uri(self, path: str) -> str:
        """Of a bucket and a key, for a process whose environment names no endpoint."""
        return f"s3://{path}?endpoint_override=127.0.0.1:{self.port}&scheme=http&region=us-east-1"

    @property
    def client(self) -> Any:
        """What sees the buckets as everybody else does."""
        import boto3

        return boto3.client(
            "s3", endpoint_url=self.endpoint, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x"
        )

    def keys(self, prefix: str = "") -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def read(self, key: str) -> bytes:
        content: bytes = self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        return content

    def copied(self, prefix: str, folder: Path) -> Path:
        """``folder``, with all that lies below ``prefix``."""
        for key in self.keys(prefix):
            if not key.endswith("/"):  # a folder itself
                path = folder / key.removeprefix(prefix)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self.read(key))
        return folder

    @contextmanager
    def shut(self, status: str = "503 Service Unavailable") -> Iterator[None]:
        """Within it, nothing is let in."""
        self.door.write_text(status)
        try:
            yield
        finally:
            self.door.unlink()


@contextmanager
def serving(folder: Path) -> Iterator[ObjectStore]:
    """A server with one empty bucket, ``BUCKET``. Its log and its door lie in ``folder``."""
    from support.processes import free_port  # which the server, a program in this file, has no path to

    store = ObjectStore(free_port(), folder / "door")
    with (folder / "requests.log").open("w") as log:
        process = subprocess.Popen([sys.executable, __file__, str(store.port), str(store.door)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while not _answers(store):
            assert process.poll() is None, (folder / "requests.log").read_text()
            assert time.monotonic() < deadline, "it does not answer"
            time.sleep(0.1)
        store.client.create_bucket(Bucket=BUCKET)
        yield store
    finally:
        process.kill()
        process.wait()


def _answers(store: ObjectStore) -> bool:
    import botocore.exceptions

    try:
        store.client.list_buckets()
    except botocore.exceptions.EndpointConnectionError:
        return False
    return True


def _serve(port: int, door: Path) -> None:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import run_simple

    inner = DomainDispatcherApplication(create_backend_app)

    def behind_the_door(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        try:
            status = door.read_text()
        except FileNotFoundError:
            return inner(environ, start_response)
        start_response(status, [("Content-Type", "application/xml")])
        return [f"<Error><Code>{REFUSALS[status]}</Code><Message>The door is shut</Message></Error>".encode()]

    run_simple("127.0.0.1", port, behind_the_door, threaded=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), Path(sys.argv[2]))
