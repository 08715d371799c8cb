"""W&B asked for and not to be had: no one there, no one answering, a wrong key, none, and a server that vanishes.

The server is a small one of this file's: it answers what W&B 0.31 asks of its own, and keeps what it is sent.
"""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import wandb
from support.wandb_files import read_runs
from tailsweep.orchestrator.config.sweep import WandbConfig
from tailsweep.orchestrator.monitoring import wandb_tracker
from tailsweep.orchestrator.monitoring.wandb_tracker import Tracker, sync_command

pytestmark = [pytest.mark.thorough, pytest.mark.xdist_group("wandb_offline")]

KEY = "5e" * 20
STREAM = re.compile(r"/files/me/tailsweep/(?P<run>[^/]+)/file_stream")


class Server(ThreadingHTTPServer):
    """W&B's, as far as a run needs it; with another key than ``accepted`` it answers 401."""

    daemon_threads = True

    def __init__(self, accepted: str = KEY) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.accepted = accepted
        self.history: dict[str, dict[int, dict[str, Any]]] = {}  # by run and line, as uploaded
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def vanish(self) -> None:
        """Like a machine that is switched off; connections that are open end too."""
        self.accepted = ""
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        data: dict[str, Any] = {}
        status = 200
        if self.path == "/graphql" and not self._is_authorised():
            status, data = 401, {"errors": [{"message": "user is not logged in"}]}
        elif self.path == "/graphql":
            asked = json.loads(body)
            data = {"data": self._graphql(asked["operationName"], asked.get("variables", {}))}
        elif (stream := STREAM.fullmatch(self.path)) is not None:
            sent = json.loads(body).get("files", {}).get("wandb-history.jsonl", {"offset": 0, "content": []})
            lines = self.server.history.setdefault(stream["run"], {})
            lines |= {sent["offset"] + i: json.loads(line) for i, line in enumerate(sent["content"])}
        answer = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do_PUT = _answer

    def _is_authorised(self) -> bool:
        import base64

        given = base64.b64decode(self.headers.get("authorization", "Basic ").removeprefix("Basic "))
        return bool(self.server.accepted) and given == f"api:{self.server.accepted}".encode()

    def _graphql(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        me = {"id": "e", "name": "me"}
        if operation == "Viewer":
            return {"viewer": {"id": "e", "entity": "me", "username": "me", "teams": {"edges": []}}}
        if operation == "UpsertBucket":
            project = {"id": "p", "name": variables["project"], "entity": me}
            bucket = {"id": "b", "name": variables["name"], "config": "{}", "project": project, "historyLineCount": 0}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if operation == "CreateRunFiles":
            urls = [{"name": name, "uploadUrl": f"{self.server.url}/put/{name}"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": urls}}
        return {"model": None}  # RunResumeStatus: there is no such run

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def closed_port() -> Iterator[str]:
    """A port on which no one listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@contextmanager
def deaf() -> Iterator[str]:
    """A port that takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(50)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@contextmanager
def with_another_key() -> Iterator[str]:
    yield Server(accepted="not " + KEY).url


@pytest.fixture(autouse=True)
def own_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No key, configuration or service of anybody else's."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name, folder in (("CACHE_DIR", "cache"), ("CONFIG_DIR", "config")):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / folder))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "1")
    wandb.teardown()
    yield
    wandb.teardown()


def report(epoch: int) -> dict[str, Any]:
    return {"stage": "stage_one", "epoch": epoch, "train/loss": 1 / epoch}


def synced(folder: Path, server: Server) -> str:
    """What the printed command says; the server has then what it uploaded."""
    command = sync_command(str(folder / "wandb"))
    environment = os.environ | {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
    environment.pop("WANDB_SERVICE", None)
    arguments = [sys.executable, "-m", *command.split()]
    done = subprocess.run(
        arguments, capture_output=True, text=True, env=environment, timeout=60, check=False, cwd=folder
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def steps(server: Server) -> dict[str, list[int]]:
    return {run: [lines[i]["_step"] for i in sorted(lines)] for run, lines in server.history.items()}


@pytest.mark.parametrize(
    ("where", "key"), [(closed_port, KEY), (deaf, KEY), (with_another_key, KEY), (closed_port, None)]
)
def test_without_wandb_a_sweep_says_so_once_and_keeps_all_for_later(
    messages_logged: list[str],
    where: Callable[[], Any],
    key: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if key is not None:
        monkeypatch.setenv("WANDB_API_KEY", key)
    with where() as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        began = time.monotonic()
        tracker = Tracker(WandbConfig(mode="online"), "s", tmp_path)
        for trial in ("t000", "t001", "t002"):
            tracker.start(trial, {"seed": 0}, [])
            tracker.log(trial, report(1))
            tracker.finish(trial, {"state": "completed"})
        tracker.close()
        assert time.monotonic() - began < 10
    assert tracker.mode == "offline"
    assert len(messages_logged) == 1
    assert messages_logged[0].startswith("W&B cannot be used: ")
    assert ("export WANDB_API_KEY" in messages_logged[0]) == (key is None)
    assert KEY not in messages_logged[0]
    assert {run: logged.steps for run, logged in read_runs(tmp_path).items()} == {f"s-t00{i}": [0] for i in range(3)}
    server = Server()
    synced(tmp_path, server)
    assert steps(server) == {f"s-t00{i}": [0] for i in range(3)}


def test_a_server_that_vanishes_costs_seconds_and_nothing_that_was_logged(
    messages_logged: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(wandb_tracker, "FINISH_SECONDS", 2.0)
    tracker = Tracker(WandbConfig(mode="online"), "s", tmp_path)
    for trial in ("t000", "t001", "t002", "t003"):
        tracker.start(trial, {}, [])
        tracker.log(trial, report(1))
    tracker.finish("t000", {"state": "completed"})
    assert (messages_logged, tracker.mode) == ([], "online")
    assert steps(server)["s-t000"] == [0]

    server.vanish()
    began = time.monotonic()
    for trial in ("t001", "t002", "t003"):
        tracker.log(trial, report(2))
    tracker.finish("t001", {"state": "pruned"})  # waits, and W&B is given up
    given_up = time.monotonic()
    tracker.finish("t002", {"state": "completed"})
    assert time.monotonic() - given_up < 1
    tracker.start("t004", {}, [report(1)])
    tracker.log("t004", report(2))
    tracker.finish("t004", {"state": "completed"})
    tracker.close()  # t003 is interrupted
    assert time.monotonic() - began < 12
    assert len(messages_logged) == 1
    logged = read_runs(tmp_path)
    assert {run: logged_run.steps for run, logged_run in logged.items()} == {
        "s-t000": [0],
        **{f"s-t00{i}": [0, 1] for i in range(1, 5)},
    }
    assert [logged[f"s-t00{i}"].summary.get("state") for i in range(5)] == [
        "completed", "pruned", "completed", None, "completed",
    ]  # fmt: skip

    later = Server()
    synced(tmp_path, later)
    assert steps(later) == {f"s-t00{i}": [0, 1] for i in range(1, 5)}  # t000 is at W&B already


def test_a_sweep_resumed_online_uploads_what_was_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a trial that continues, the folder written offline goes: else it would be uploaded a second time."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with closed_port() as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        tracker = Tracker(WandbConfig(mode="online"), "s", tmp_path)
        tracker.start("t000", {}, [])
        tracker.log("t000", report(1))
        tracker.close()
    server = Server()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    tracker = Tracker(WandbConfig(mode="online"), "s", tmp_path)
    tracker.start("t000", {}, [report(1)])
    tracker.log("t000", report(2))
    tracker.finish("t000", {"state": "completed"})
    tracker.close()
    assert steps(server) == {"s-t000": [0, 1]}
    assert len(read_runs(tmp_path)["s-t000"].folders) == 1
