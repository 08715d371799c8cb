"""A small HTTP server that answers as the job server of a Ray head does, and fails as the test asks it to."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import ray
from aiohttp import WSCloseCode, web

DROPPED = 0  # in place of a status: the connection ends without an answer


class FakeHead:
    """What it answers with can be changed while it runs; ``requests`` are those it has had, ``submitted`` the jobs."""

    def __init__(self) -> None:
        self.address = ""
        self.version: Any = ray.__version__
        self.token: str | None = None
        self.answers: dict[tuple[str, str], list[tuple[int, str]]] = {}  # (method, path prefix) -> instead, in turn
        self.jobs: dict[str, dict[str, Any]] = {}
        self.logs = ""
        # Of those who follow the log, in turn: the pieces that are sent, and what comes then: the job's end, a cut
        # connection, or silence. ``logs`` has what was sent.
        self.connections: list[tuple[list[str], Literal["end", "cut", "silence"]]] = []
        self.seconds = 0.0  # that an answer takes
        self.looks_to_stop: int | None = None  # at a job that was asked to end, until it has; None: it does not
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.submitted: list[dict[str, Any]] = []

    def job(self, submission_id: str, status: str, **fields: Any) -> None:
        """There is such a job."""
        self.jobs[submission_id] = {
            "type": "SUBMISSION", "submission_id": submission_id, "status": status, "entrypoint": "true",
            "start_time": 1_700_000_000_000, "metadata": {}, **fields,
        }  # fmt: skip

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path, dict(request.headers)))
        await asyncio.sleep(self.seconds)
        if self.token is not None:
            shown = request.headers.get("Authorization")
            if shown != f"Bearer {self.token}":
                missing = "Unauthorized: Missing authentication token"
                wrong = "Forbidden: Invalid authentication token"
                return web.Response(status=403 if shown else 401, text=wrong if shown else missing)
        for (method, prefix), instead in self.answers.items():
            if request.method == method and request.path.startswith(prefix) and instead:
                status, text = instead.pop(0)
                if status == DROPPED:
                    assert request.transport is not None
                    request.transport.close()
                return web.Response(status=status, text=text)
        parts = request.path.strip("/").split("/")
        match request.method, parts[1:]:
            case "GET", ["version"]:
                return web.json_response({"version": "4", "ray_version": self.version, "ray_commit": "x"})
            case "GET", ["packages", *_]:
                return web.Response(status=404)
            case "PUT", ["packages", *_]:
                await request.read()
                return web.Response()
            case "GET", ["jobs"]:
                return web.json_response(list(self.jobs.values()))
            case "POST", ["jobs"]:
                self.submitted.append(await request.json())
                return web.json_response({"job_id": "x", "submission_id": self.submitted[-1]["submission_id"]})
            case "GET", ["jobs", name] if name in self.jobs:
                return web.json_response(self._advance(self.jobs[name]))
            case "GET", ["jobs", name, "logs"] if name in self.jobs:
                return web.json_response({"logs": self.logs})
            case "POST", ["jobs", name, "stop"] if name in self.jobs:
                self.jobs[name]["ends_after"] = self.looks_to_stop
                return web.json_response({"stopped": True})
            case "GET", ["jobs", name, "logs", "tail"] if name in self.jobs:
                return await self._tail(request, name)
        return web.Response(status=404, text=f"Job {parts[-1]} does not exist")

    def _advance(self, job: dict[str, Any]) -> dict[str, Any]:
        if (num_looks := job.get("ends_after")) is not None:
            job.update({"status": "STOPPED"} if num_looks == 0 else {"ends_after": num_looks - 1})
        return job

    async def _tail(self, request: web.Request, name: str) -> web.StreamResponse:
        if not self.connections:
            return web.Response(status=400, text="no web sockets here")
        pieces, then = self.connections.pop(0)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        for piece in pieces:
            await socket.send_str(piece)
        self.logs = max(self.logs, "".join(pieces), key=len)
        if then == "silence":
            await socket.receive()  # that the other side has gone
        elif then == "cut":
            assert request.transport is not None
            request.transport.close()
        else:
            self.jobs[name]["status"] = "SUCCEEDED"
            self.logs += "the end\n"  # written after the last look at the file
            await socket.close(code=WSCloseCode.OK)
        return socket


@contextmanager
def fake_head() -> Iterator[FakeHead]:
    head = FakeHead()
    loop = asyncio.new_event_loop()
    started = threading.Event()

    async def serve() -> web.AppRunner:
        application = web.Application(client_max_size=2**30)
        application.router.add_route("*", "/{path:.*}", head.answer)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        head.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    def work() -> None:
        runner = loop.run_until_complete(serve())
        started.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    started.wait()
    try:
        yield head
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
