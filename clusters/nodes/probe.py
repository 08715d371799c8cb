"""Collect information about the nodes of a Ray cluster, on each of them.

:func:`run_on_nodes` runs a function on every node, :func:`probe_node` is that function, and :class:`SharedStorage` is
the driver's part meanwhile. ``checks.py`` judges the answers.
"""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Literal, TypedDict, TypeVar

from tailsweep.clusters import errors
from tailsweep.clusters.errors import describe_error

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

# Ray and pyarrow are imported where they are needed: the checks of the answers need neither.

Answer = TypeVar("Answer")

SECONDS_TO_ANSWER = 90.0  # of a node: its first task waits for a process, and that for imports from a slow disk
SECONDS_OF_STATE_API = 20.0  # a Ray that has just been started may need some before it answers
SECONDS_OF_TORCH = 60.0  # to be imported in a process of its own


@dataclass(frozen=True)
class Node:
    """An alive node, as Ray describes it."""

    id: str
    name: str  # its address; where several nodes share one, with the start of the node's id
    gpus: float = 0.0  # declared
    accelerator: str | None = None  # the kind of GPU that Ray has detected there; None: none, or it is only declared


class ProbeRequest(TypedDict):
    """What :func:`probe_node` reports; plain values, since it is sent to the nodes."""

    packages: tuple[str, ...]
    code: tuple[str, ...]  # import names of the packages whose source must be the same everywhere
    salt: str  # of the digest that the token is compared by
    gcs_address: str  # of the cluster whose State API is tested; "": it is not
    storage: str | None  # folder or pyarrow URI with the driver's nonce, see SharedStorage
    gpus: Literal["no", "count", "names"]  # names: by torch in a process of its own; count: in this process


class NodeInfo(TypedDict):
    """What :func:`probe_node` reports of a node."""

    python: str
    packages: dict[str, str | None]  # None: not installed
    code: str | None  # digest of the source; None: it cannot be imported
    token: str | None  # digest of the token of processes there; None: they do not authenticate
    state_api: str | None  # why it does not answer
    storage: str | None  # why the nonce could not be read and answered
    gpus: list[str] | None  # names of those that torch sees ("" if they were only counted); None: not checked
    gpus_failed: str | None  # why torch could not report them


@dataclass(frozen=True)
class NodeAnswers(Generic[Answer]):
    """The answers of nodes, by their ids."""

    results: dict[str, Answer]
    silent: dict[str, str]  # why a node has none


def alive_nodes() -> list[Node]:
    """Return the nodes of the Ray cluster that this process is connected to."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    addresses = [node["NodeManagerAddress"] for node in alive]
    nodes = []
    for node, address in zip(alive, addresses, strict=True):
        kinds = [name.split(":", 1)[1] for name in node["Resources"] if name.startswith("accelerator_type:")]
        name = address if addresses.count(address) == 1 else f"{address} ({node['NodeID'][:6]})"
        nodes.append(Node(node["NodeID"], name, node["Resources"].get("GPU", 0.0), kinds[0] if kinds else None))
    return nodes


def run_on_nodes(
    nodes: Sequence[Node], function: Callable[..., Answer], *arguments: object, seconds: float = SECONDS_TO_ANSWER
) -> NodeAnswers[Answer]:
    """Run ``function(node id, *arguments)`` on each node, in a task that needs no CPU and is bound to the node.

    A function of this module needs none of our packages on the nodes: it is sent by value.

    Args:
        nodes: Where to run it.
        function: What to run.
        *arguments: Follow the node's id.
        seconds: After which a node without an answer counts as silent.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    sent = [sys.modules[__name__], errors] if function.__module__ == __name__ else []
    for module in sent:
        ray.cloudpickle.register_pickle_by_value(module)
    try:
        task = ray.remote(num_cpus=0, max_retries=0)(function)
        node_of = {
            task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(
                node.id, *arguments
            ): node.id
            for node in nodes
        }
    finally:
        for module in sent:
            ray.cloudpickle.unregister_pickle_by_value(module)
    results: dict[str, Answer] = {}
    silent: dict[str, str] = {}
    done, late = ray.wait(list(node_of), num_returns=len(node_of), timeout=seconds)
    for reference in done:
        try:
            results[node_of[reference]] = ray.get(reference)
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            silent[node_of[reference]] = f"{type(cause).__name__}: {describe_error(cause, 'last')}"
    for reference in late:
        silent[node_of[reference]] = f"no answer within {seconds:g} s"
        ray.cancel(reference, force=True)
    return NodeAnswers(results, silent)


def probe_node(node_id: str, request: ProbeRequest) -> NodeInfo:
    """Return the information about the machine and the environment that this process runs in."""
    gpus, gpus_failed = _gpus(request["gpus"])
    return NodeInfo(
        python=platform.python_version(),
        packages={name: _version(name) for name in request["packages"]},
        code=_code(request["code"]),
        token=_token(request["salt"]),
        state_api=_state_api(request["gcs_address"]) if request["gcs_address"] else None,
        storage=_answer_nonce(request["storage"], node_id) if request["storage"] else None,
        gpus=gpus,
        gpus_failed=gpus_failed,
    )


class SharedStorage:
    """A test whether every node sees the driver's storage and the driver sees theirs.

    It removes its files at the end. On an object store, the empty object for the folder ``storage`` remains.

    Args:
        storage: A folder or pyarrow URI; a folder need not exist.
    """

    def __init__(self, storage: str) -> None:
        self.storage = storage
        self.refused: str | None = None  # why the driver itself cannot write there
        self.location: str | None = None  # of the nonce, for the nodes
        self._created: list[Path] = []  # folders that did not exist, innermost first

    def __enter__(self) -> "SharedStorage":
        name = f".tailsweep-doctor-{uuid.uuid4().hex}"
        try:
            if "://" in self.storage:
                path, mark, query = self.storage.partition("?")
                location = f"{path.rstrip('/')}/{name}{mark}{query}"
            else:
                folder = Path(self.storage).expanduser().absolute()
                self._created = [missing for missing in (folder, *folder.parents) if not missing.exists()]
                location = str(folder / name)
            self._filesystem, self._path = _open(location)
            self._filesystem.create_dir(self._path, recursive=True)
            self.location = location
            _write(self._filesystem, f"{self._path}/driver", name)
        except (OSError, ValueError) as error:
            self.refused = describe_error(error)
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(OSError):
            if self.location is not None:
                self._filesystem.delete_dir(self._path)
        with contextlib.suppress(OSError):  # not empty: another process has begun to use it
            for folder in self._created:
                folder.rmdir()

    def reported(self, nodes: Sequence[Node]) -> set[str]:
        """Return the ids of the nodes whose answers the driver sees. Call this within the context."""
        return {node.id for node in nodes if self._has_answer(node.id)}

    def _has_answer(self, node_id: str) -> bool:
        if self.location is None:
            return False
        try:
            return _read(self._filesystem, f"{self._path}/{node_id}") == node_id
        except OSError:
            return False


def free_bytes(path: Path) -> int | None:
    """Return the free bytes of the disk that a folder is on, or will be on; None if unknown."""
    with contextlib.suppress(OSError):
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        return shutil.disk_usage(there).free
    return None


# The parts of `probe_node`. Each of these runs on a node, sent by value.


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _code(packages: Sequence[str]) -> str | None:
    digest = hashlib.sha256()
    for package in packages:
        try:
            spec = importlib.util.find_spec(package)
        except ModuleNotFoundError:  # of the package above it
            return None
        if spec is None or not spec.submodule_search_locations:
            return None
        folder = Path(spec.submodule_search_locations[0])
        for file in sorted(folder.rglob("*.py")):
            digest.update(f"{package}/{file.relative_to(folder)}\0".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _token(salt: str) -> str | None:
    """Return a digest that reveals nothing about the token without the salt of this one comparison."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return None
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    if not token:
        file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
        with contextlib.suppress(OSError):
            token = file.read_text(encoding="utf-8")
    return hashlib.sha256(f"{salt}{token.strip()}".encode()).hexdigest()


def _state_api(gcs_address: str) -> str | None:
    deadline = time.monotonic() + SECONDS_OF_STATE_API
    said: list[str | None] = [f"no answer within {SECONDS_OF_STATE_API:g} s"]

    def ask() -> None:
        while True:
            try:
                from ray.util.state import list_nodes

                list_nodes(address=gcs_address, limit=1, timeout=int(SECONDS_OF_STATE_API))
            except Exception as error:  # of requests, of Ray, of a dashboard without its dependencies
                said[0] = describe_error(error)
            else:
                said[0] = None
                return
            if time.monotonic() > deadline:
                return
            time.sleep(0.5)

    # In a thread: without a dashboard, Ray 2.60 asks for its address for 40 s.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(SECONDS_OF_STATE_API)
    return said[0]


def _answer_nonce(location: str, node_id: str) -> str | None:
    try:
        filesystem, path = _open(location)
        if _read(filesystem, f"{path}/driver") != path.rsplit("/", 1)[-1]:
            return "the driver's file there has other content"
        _write(filesystem, f"{path}/{node_id}", node_id)
    except (OSError, ValueError) as error:
        return describe_error(error)
    return None


def _gpus(how: Literal["no", "count", "names"]) -> tuple[list[str] | None, str | None]:
    if how == "no":
        return None, None
    if how == "count":
        import torch

        return [""] * torch.cuda.device_count(), None  # asks the driver library, and takes no memory of a GPU
    # A process of its own gives back the GPU memory that asking takes, and sees the GPUs that Ray hides from its tasks.
    program = (
        "import json, torch; "
        "print(json.dumps([torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            timeout=SECONDS_OF_TORCH,
            env=environment,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], describe_error(error)
    if done.returncode != 0:
        return [], (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    names: list[str] = json.loads(done.stdout.strip().splitlines()[-1])
    return names, None


def _open(location: str) -> "tuple[FileSystem, str]":
    """Return filesystem and path; a local path may hold any character."""
    import pyarrow.fs

    if "://" in location:
        filesystem, path = pyarrow.fs.FileSystem.from_uri(location)
        return filesystem, path
    return pyarrow.fs.LocalFileSystem(), location


def _read(filesystem: "FileSystem", path: str) -> str:
    with filesystem.open_input_stream(path) as stream:
        return str(stream.read(), "utf-8")


def _write(filesystem: "FileSystem", path: str, text: str) -> None:
    with filesystem.open_output_stream(path) as stream:
        stream.write(text.encode())
