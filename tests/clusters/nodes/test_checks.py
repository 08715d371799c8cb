"""What nodes report about themselves, and the findings. No Ray runs here."""

import importlib.metadata
import os
from pathlib import Path
from typing import Any

import pytest
from tailsweep.clusters.nodes.checks import (
    Check,
    Finding,
    gpu_check,
    nodes_check,
    state_api_check,
    storage_check,
    token_check,
    versions_check,
)
from tailsweep.clusters.nodes.probe import Node, NodeInfo, ProbeRequest, SharedStorage, probe_node

HEAD, OTHER = Node("aa11", "10.0.0.1"), Node("bb22", "10.0.0.2")
BOTH = [HEAD, OTHER]


def node_info(**different: Any) -> NodeInfo:
    packages = {"ray": "2.60.0", "torch": "2.13.0", "numpy": "2.4.6", "tailsweep": "0.1.0"} | different.pop(
        "packages", {}
    )
    same = NodeInfo(
        python="3.11.7",
        packages=packages,
        code="c0de",
        token=None,
        state_api=None,
        storage=None,
        gpus=None,
        gpus_failed=None,
    )
    return NodeInfo(**(same | different))


def in_lines(check: Check) -> list[str]:
    return [f"{finding.severity}: {finding}" for finding in check.findings]


def test_nodes_like_the_driver_give_no_finding():
    infos = {HEAD.id: node_info(), OTHER.id: node_info()}
    checks = [
        nodes_check(BOTH, {}),
        versions_check(node_info(), BOTH, infos, "tailsweep"),
        token_check(node_info(), BOTH, infos),
        state_api_check(BOTH, infos),
        gpu_check(BOTH, infos),
    ]
    assert [in_lines(check) for check in checks] == [[]] * 5
    assert checks[1].passed == "Python 3.11.7, ray 2.60.0, torch 2.13.0, numpy 2.4.6, tailsweep 0.1.0"


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ({"packages": {"torch": "2.9.1"}}, "error: torch is 2.9.1, but 2.13.0 here; install torch==2.13.0 there"),
        ({"packages": {"numpy": "2.3.0"}}, "warning: numpy is 2.3.0, but 2.4.6 here; install numpy==2.4.6 there"),
        ({"packages": {"numpy": None}}, "error: numpy is missing, but 2.4.6 here; install numpy==2.4.6 there"),
        ({"python": "3.12.1"}, "error: Python is 3.12.1, but 3.11.7 here; use the same Python everywhere"),
        ({"python": "3.11.9"}, "warning: Python is 3.11.9, but 3.11.7 here; use the same Python everywhere"),
        ({"code": "o1d"}, "error: tailsweep has other source code than here; install the same version there, or"),
        ({"code": None}, "error: tailsweep cannot be imported; install tailsweep there, or submit by `ray job"),
    ],
)  # fmt: skip
def test_a_version_that_differs_is_reported_with_its_node(there: dict[str, Any], expected: str):
    (line,) = in_lines(
        versions_check(node_info(), BOTH, {HEAD.id: node_info(), OTHER.id: node_info(**there)}, "tailsweep")
    )
    assert line.replace("10.0.0.2: ", "").startswith(expected)
    assert " 10.0.0.2: " in line


def test_a_node_that_runs_the_drivers_own_source_needs_it_not_installed():
    """As under `ray job submit --working-dir`."""
    infos = {HEAD.id: node_info(packages={"tailsweep": None})}
    assert in_lines(versions_check(node_info(), [HEAD], infos, "tailsweep")) == []


def test_what_many_nodes_share_is_one_line_with_their_number():
    nodes = [Node(str(number), f"10.0.0.{number}") for number in range(6)]
    infos = {node.id: node_info(packages={"numpy": "2.3.0"}) for node in nodes}
    (line,) = in_lines(versions_check(node_info(), nodes, infos, "tailsweep"))
    assert line.startswith("warning: 10.0.0.0, 10.0.0.1, 10.0.0.2 and 3 more: numpy is 2.3.0")


def test_a_finding_is_one_line():
    assert str(Finding("error", "a\nlong  story", "fix\nit", ("n",))) == "n: a long story; fix it"
    assert str(Finding("note", "so it is", "")) == "so it is"


def test_a_silent_node_is_reported_and_not_checked_further():
    silent = {OTHER.id: "no answer within 60 s"}
    (line,) = in_lines(nodes_check(BOTH, silent))
    assert line.startswith("error: 10.0.0.2: no answer within 60 s; check it in `ray status`")
    infos = {HEAD.id: node_info()}
    assert in_lines(versions_check(node_info(), BOTH, infos, "tailsweep")) == []
    assert in_lines(state_api_check(BOTH, infos)) == []


@pytest.mark.parametrize(
    ("here", "there", "expected"),
    [
        ("d1", None, "token authentication is on here and off there"),
        (None, "d1", "token authentication is on there and off here"),
        ("d1", "d2", "its token differs from this machine's"),
    ],
)
def test_tokens_must_be_alike(here: str | None, there: str | None, expected: str):
    (line,) = in_lines(
        token_check(node_info(token=here), BOTH, {HEAD.id: node_info(token=here), OTHER.id: node_info(token=there)})
    )
    assert line.startswith(f"error: 10.0.0.2: {expected}; ")
    assert "RAY_AUTH_MODE=token" in line


def test_a_state_api_that_does_not_answer_is_reported_with_its_node():
    (line,) = in_lines(
        state_api_check(BOTH, {HEAD.id: node_info(), OTHER.id: node_info(state_api="connection refused")})
    )
    assert line.startswith("error: 10.0.0.2: Ray's State API does not answer: connection refused; install ray[default]")


@pytest.mark.parametrize(
    ("recognised", "seen", "expected"),
    [
        (None, [], "warning: n: Ray declares 2 GPU(s) of this node, but there is none: what asks for one runs on"),
        ("H200", [], "error: n: Ray declares 2 GPU(s) of this node, but torch cannot use them: torch.cuda sees none"),
        ("H200", ["H200"], "warning: n: Ray declares 2 GPU(s) of this node, but torch sees 1"),
        (None, ["H200", "L4"], "warning: GPUs are of 2 kinds: H200 (n), L4 (n)"),
    ],
)  # fmt: skip
def test_gpus_must_be_seen_and_alike(recognised: str | None, seen: list[str], expected: str):
    node = Node("x", "n", gpus=2.0, accelerator=recognised)
    (line,) = in_lines(gpu_check([node], {"x": node_info(gpus=seen)}))
    assert line.startswith(expected)


def test_kinds_are_compared_over_nodes_by_rays_name_where_torch_only_counted():
    nodes = [Node("x", "n1", 1.0, "H200"), Node("y", "n2", 1.0, "L4"), Node("z", "cpus")]
    (line,) = in_lines(
        gpu_check(nodes, {"x": node_info(gpus=[""]), "y": node_info(gpus=[""]), "z": node_info(gpus=[""])})
    )
    assert line.startswith("warning: GPUs are of 2 kinds: H200 (n1), L4 (n2)")


def ask(storage: SharedStorage, salt: str = "s") -> ProbeRequest:
    return ProbeRequest(
        packages=("numpy",), code=("clusters",), salt=salt, gcs_address="", storage=storage.location, gpus="no"
    )


def judged(storage: SharedStorage, nodes: list[Node], infos: dict[str, NodeInfo]) -> list[str]:
    return in_lines(storage_check(storage.storage, storage.refused, nodes, infos, storage.reported(nodes)))


def test_shared_storage_is_recognised_and_left_as_it_was(tmp_path: Path):
    with SharedStorage(str(tmp_path / "new" / "runs")) as storage:
        infos = {node.id: probe_node(node.id, ask(storage)) for node in BOTH}
        assert judged(storage, BOTH, infos) == []
    assert list(tmp_path.iterdir()) == []


def test_storage_that_is_used_meanwhile_stays(tmp_path: Path):
    with SharedStorage(str(tmp_path / "runs")):
        (tmp_path / "runs" / "another-sweep").mkdir()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["another-sweep"]


def test_the_nonce_is_removed_when_looking_fails(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), SharedStorage(str(tmp_path / "runs")):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_storage_of_each_processs_own_is_not_shared():
    """`mock://` lies in the memory of whoever opens it, like a path that each node has a disk of its own for."""
    with SharedStorage("mock:///runs") as storage:
        (line,) = judged(storage, [HEAD], {HEAD.id: probe_node(HEAD.id, ask(storage))})
    assert line.startswith("error: 10.0.0.1: mock:///runs is not the driver's: ")
    assert "do not appear here" not in line  # it says why it could not be read
    assert "let --storage name a folder that every node mounts" in line


def test_what_only_the_node_sees_of_its_writing_is_not_shared(tmp_path: Path):
    """A node that reads the driver's disk and writes to its own, as over a read-only export with an overlay."""
    with SharedStorage(str(tmp_path)) as storage:
        infos = probe_node(HEAD.id, ask(storage))
        (next(tmp_path.glob(".tailsweep-*")) / HEAD.id).unlink()
        (line,) = judged(storage, [HEAD], {HEAD.id: infos})
    assert "files that the node writes there do not appear here" in line


def test_storage_the_driver_cannot_write_is_the_only_finding(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with SharedStorage(str(tmp_path / "file" / "runs")) as storage:
        (line,) = judged(storage, BOTH, {})
    assert line.startswith(f"error: {tmp_path}/file/runs cannot be written: ")


def test_look_tells_versions_and_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "a_package"
    package.mkdir()
    (package / "__init__.py").write_text("one = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    question = ProbeRequest(
        packages=("numpy", "no-such"), code=("a_package",), salt="s", gcs_address="", storage=None, gpus="no"
    )
    first = probe_node("x", question)
    assert first["packages"] == {"numpy": importlib.metadata.version("numpy"), "no-such": None}
    (package / "__init__.py").write_text("one = 2\n")
    changed = probe_node("x", question)["code"]
    assert None not in (first["code"], changed)
    assert first["code"] != changed
    assert probe_node("x", {**question, "code": ("no_such_package",)})["code"] is None


def test_the_token_is_compared_by_a_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    question = ProbeRequest(packages=(), code=(), salt="s", gcs_address="", storage=None, gpus="no")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert probe_node("x", question)["token"] is None
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    by_variable = probe_node("x", question)["token"]
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    (tmp_path / "token").write_text("secret\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert probe_node("x", question)["token"] == by_variable
    assert probe_node("x", {**question, "salt": "t"})["token"] != by_variable
    assert "secret" not in str(by_variable)


def test_gpus_are_counted_by_torch_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Here with a torch that says what one with two GPUs would, and then with one that cannot be imported."""
    (tmp_path / "torch.py").write_text(
        "import os\nclass cuda:\n    device_count = staticmethod(lambda: 2 - ('CUDA_VISIBLE_DEVICES' in os.environ))\n"
        "    get_device_name = staticmethod(lambda number: f'GPU {number}')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # as Ray sets it in a task that asks for none
    question = ProbeRequest(packages=(), code=(), salt="s", gcs_address="", storage=None, gpus="names")
    assert probe_node("x", question)["gpus"] == ["GPU 0", "GPU 1"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    (tmp_path / "torch.py").write_text("raise ImportError('libcuda.so is too old')\n")
    broken = probe_node("x", question)
    assert (broken["gpus"], broken["gpus_failed"]) == ([], "ImportError: libcuda.so is too old")
