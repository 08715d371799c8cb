"""What is to be known of the nodes of a Ray cluster, looked up on each of them.

:func:`ask_nodes` has a function run on every node, :func:`look` is what every node is asked, :class:`SharedStorage`
what the driver does meanwhile. What the answers mean is for ``preflight.py`` to say.
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
from typing import Any, Literal, TypedDict

# Ray and pyarrow are imported where they are needed: what judges the facts needs neither.

SECONDS_TO_ANSWER = 90.0  # of a node: its first task waits for a process, and that for imports from a slow disk
SECONDS_OF_STATE_API = 20.0  # a Ray that has just been started may take some before it answers
SECONDS_OF_TORCH = 60.0  # to be imported in a process of its own


@dataclass(frozen=True)
class Node:
    """An alive node, as Ray describes it."""

    id: str
    name: str  # its address; where several nodes share one, with the start of the node's id
    gpus: float = 0.0  # declared
    accelerator: str | None = None  # the kind of GPU that Ray has recognised there; None: none, or it is only declared


class Question(TypedDict):
    """What :func:`look` looks for; plain values, since it travels."""

    packages: tuple[str, ...]
    code: tuple[str, ...]  # import names of the packages whose source must be the same everywhere
    salt: str  # of the digest that the token is compared by
    gcs_address: str  # of the cluster, whose State API is asked; "": it is not
    storage: str | None  # folder or pyarrow URI with the driver's nonce, see SharedStorage
    gpus: Literal["no", "count", "names"]  # names: by torch in a process of its own; count: in this process


class Facts(TypedDict):
    """What :func:`look` found on a node."""

    python: str
    packages: dict[str, str | None]  # None: not installed
    code: str | None  # digest of the source; None: it cannot be imported
    token: str | None  # digest of the token that processes there authenticate with; None: they do not
    state_api: str | None  # why it does not answer
    storage: str | None  # why the nonce could not be read and answered
    gpus: list[str] | None  # names of those that torch sees ("" where they were only counted); None: not looked at
    gpus_failed: str | None  # why torch could not say


@dataclass(frozen=True)
class Answers:
    """Of the nodes that were asked, by their ids."""

    facts: dict[str, Any]
    silent: dict[str, str]  # why there are none


def alive_nodes() -> list[Node]:
    """The nodes of the Ray that this process is connected to."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    addresses = [node["NodeManagerAddress"] for node in alive]
    found = []
    for node, address in zip(alive, addresses, strict=True):
        kinds = [name.split(":", 1)[1] for name in node["Resources"] if name.startswith("accelerator_type:")]
        name = address if addresses.count(address) == 1 else f"{address} ({node['NodeID'][:6]})"
        found.append(Node(node["NodeID"], name, node["Resources"].get("GPU", 0.0), kinds[0] if kinds else None))
    return found


def ask_nodes(
    nodes: Sequence[Node], function: Callable[..., Any], *arguments: Any, seconds: float = SECONDS_TO_ANSWER
) -> Answers:
    """``function(node id, *arguments)`` on each node, in a task that needs no CPU and can run nowhere else.

    A function of this module needs nothing of ours on the nodes: it travels by value.

    Args:
        seconds: after which a node that has not answered is silent.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = sys.modules[__name__] if function.__module__ == __name__ else None
    if here is not None:
        ray.cloudpickle.register_pickle_by_value(here)
    try:
        task = ray.remote(num_cpus=0, max_retries=0)(function)
        asked = {
            task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(
                node.id, *arguments
            ): node.id
            for node in nodes
        }
    finally:
        if here is not None:
            ray.cloudpickle.unregister_pickle_by_value(here)
    facts, silent = {}, {}
    done, late = ray.wait(list(asked), num_returns=len(asked), timeout=seconds)
    for reference in done:
        try:
            facts[asked[reference]] = ray.get(reference)
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            lines = str(cause).strip().splitlines() or [type(cause).__name__]
            silent[asked[reference]] = f"{type(cause).__name__}: {lines[-1]}"
    for reference in late:
        silent[asked[reference]] = f"no answer within {seconds:g} s"
        ray.cancel(reference, force=True)
    return Answers(facts, silent)


def look(node_id: str, question: Question) -> Facts:
    """What is to be known of the machine and the environment that this process runs in."""
    gpus, gpus_failed = _gpus(question["gpus"])
    return Facts(
        python=platform.python_version(),
        packages={name: _version(name) for name in question["packages"]},
        code=_code(question["code"]),
        token=_token(question["salt"]),
        state_api=_state_api(question["gcs_address"]) if question["gcs_address"] else None,
        storage=_answer_nonce(question["storage"], node_id) if question["storage"] else None,
        gpus=gpus,
        gpus_failed=gpus_failed,
    )


class SharedStorage:
    """Whether every node sees the driver's storage and the driver sees theirs. Nothing is left of it afterwards but,
    on an object store, the empty object that stands for the folder ``storage``.

    Args:
        storage: a folder or pyarrow URI; a folder need not be there.
    """

    def __init__(self, storage: str) -> None:
        self.storage = storage
        self.refused: str | None = None  # why the driver itself cannot write there
        self.location: str | None = None  # of the nonce, for the nodes
        self._created: list[Path] = []  # folders that were not there, innermost first

    def __enter__(self) -> "SharedStorage":
        name = f".tailsweep-doctor-{uuid.uuid4().hex}"
        try:
            if "://" in self.storage:
                path, mark, query = self.storage.partition("?")
                location = f"{path.rstrip('/')}/{name}{mark}{query}"
            else:
                folder = Path(self.storage).expanduser().absolute()
                self._created = [one for one in (folder, *folder.parents) if not one.exists()]
                location = str(folder / name)
            self._filesystem, self._path = _open(location)
            self._filesystem.create_dir(self._path, recursive=True)
            self.location = location
            _write(self._filesystem, f"{self._path}/driver", name)
        except (OSError, ValueError) as error:
            self.refused = _one_line(error)
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(OSError):
            if self.location is not None:
                self._filesystem.delete_dir(self._path)
        with contextlib.suppress(OSError):  # not empty: somebody else has begun to use it
            for folder in self._created:
                folder.rmdir()

    def heard(self, nodes: Sequence[Node]) -> set[str]:
        """Ids of the nodes whose answers the driver sees. To be called within the context."""
        return {node.id for node in nodes if self._hears(node.id)}

    def _hears(self, node_id: str) -> bool:
        if self.location is None:
            return False
        try:
            return _read(self._filesystem, f"{self._path}/{node_id}") == node_id
        except OSError:
            return False


def free_bytes(path: Path) -> int | None:
    """Of the disk that a folder is on, or will be on; None where nothing tells."""
    with contextlib.suppress(OSError):
        there = next(one for one in (path, *path.parents) if one.exists())
        return shutil.disk_usage(there).free
    return None


# What `look` is made of. Each of these runs on a node, by value.


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
    """By a digest that says nothing about the token to who does not know the salt of this one comparison."""
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
                said[0] = _one_line(error)
            else:
                said[0] = None
                return
            if time.monotonic() > deadline:
                return
            time.sleep(0.5)

    # In a thread: where there is no dashboard at all, Ray 2.60 asks for its address for 40 s.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(SECONDS_OF_STATE_API)
    return said[0]


def _answer_nonce(location: str, node_id: str) -> str | None:
    try:
        filesystem, path = _open(location)
        if _read(filesystem, f"{path}/driver") != path.rsplit("/", 1)[-1]:
            return "what the driver has written there reads otherwise"
        _write(filesystem, f"{path}/{node_id}", node_id)
    except (OSError, ValueError) as error:
        return _one_line(error)
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
        return [], _one_line(error)
    if done.returncode != 0:
        return [], (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    names: list[str] = json.loads(done.stdout.strip().splitlines()[-1])
    return names, None


def _open(location: str) -> Any:
    """Filesystem and path; a local path may hold any character."""
    import pyarrow.fs

    if "://" in location:
        return pyarrow.fs.FileSystem.from_uri(location)
    return pyarrow.fs.LocalFileSystem(), location


def _read(filesystem: Any, path: str) -> str:
    with filesystem.open_input_stream(path) as stream:
        return str(stream.read(), "utf-8")


def _write(filesystem: Any, path: str, text: str) -> None:
    with filesystem.open_output_stream(path) as stream:
        stream.write(text.encode())


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
