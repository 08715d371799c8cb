"""What nodes tell of themselves, and what is found in that. No Ray runs here."""

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
from tailsweep.clusters.nodes.probe import Facts, Node, Question, SharedStorage, look

HEAD, OTHER = Node("aa11", "10.0.0.1"), Node("bb22", "10.0.0.2")
BOTH = [HEAD, OTHER]


def facts(**different: Any) -> Facts:
    packages = {"ray": "2.60.0", "torch": "2.13.0", "numpy": "2.4.6", "tailsweep": "0.1.0"} | different.pop(
        "packages", {}
    )
    same = Facts(
        python="3.11.7",
        packages=packages,
        code="c0de",
        token=None,
        state_api=None,
        storage=None,
        gpus=None,
        gpus_failed=None,
    )
    return Facts(**(same | different))


def told(check: Check) -> list[str]:
    return [f"{finding.severity}: {finding}" for finding in check.findings]


def test_nodes_like_the_driver_give_no_finding():
    found = {HEAD.id: facts(), OTHER.id: facts()}
    checks = [
        nodes_check(BOTH, {}),
        versions_check(facts(), BOTH, found, "tailsweep"),
        token_check(facts(), BOTH, found),
        state_api_check(BOTH, found),
        gpu_check(BOTH, found),
    ]
    assert [told(check) for check in checks] == [[]] * 5
    assert checks[1].passed == "Python 3.11.7, ray 2.60.0, torch 2.13.0, numpy 2.4.6, tailsweep 0.1.0"


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ({"packages": {"torch": "2.9.1"}}, "error: torch is 2.9.1, but 2.13.0 here; install torch==2.13.0 there"),
        ({"packages": {"numpy": "2.3.0"}}, "warning: numpy is 2.3.0, but 2.4.6 here; install numpy==2.4.6 there"),
        ({"packages": {"numpy": None}}, "error: numpy is missing, but 2.4.6 here; install numpy==2.4.6 there"),
        ({"python": "3.12.1"}, "error: Python is 3.12.1, but 3.11.7 here; use the same Python everywhere"),
        ({"python": "3.11.9"}, "warning: Python is 3.11.9, but 3.11.7 here; use the same Python everywhere"),
        ({"code": "o1d"}, "error: tailsweep is of another source than here; install the same version there, or"),
        ({"code": None}, "error: tailsweep cannot be imported; install tailsweep there, or submit by `ray job"),
    ],
)  # fmt: skip
def test_a_version_that_differs_is_told_with_its_node(there: dict[str, Any], expected: str):
    (line,) = told(versions_check(facts(), BOTH, {HEAD.id: facts(), OTHER.id: facts(**there)}, "tailsweep"))
    assert line.replace("10.0.0.2: ", "").startswith(expected)
    assert " 10.0.0.2: " in line


def test_a_node_that_runs_the_drivers_own_source_needs_it_not_installed():
    """As under `ray job submit --working-dir`."""
    found = {HEAD.id: facts(packages={"tailsweep": None})}
    assert told(versions_check(facts(), [HEAD], found, "tailsweep")) == []


def test_what_many_nodes_share_is_one_line_with_their_number():
    nodes = [Node(str(number), f"10.0.0.{number}") for number in range(6)]
    found = {node.id: facts(packages={"numpy": "2.3.0"}) for node in nodes}
    (line,) = told(versions_check(facts(), nodes, found, "tailsweep"))
    assert line.startswith("warning: 10.0.0.0, 10.0.0.1, 10.0.0.2 and 3 more: numpy is 2.3.0")


def test_a_finding_is_one_line():
    assert str(Finding("error", "a\nlong  story", "mend\nit", ("n",))) == "n: a long story; mend it"
    assert str(Finding("note", "so it is", "")) == "so it is"


def test_a_silent_node_is_told_and_judged_no_further():
    silent = {OTHER.id: "no answer within 60 s"}
    (line,) = told(nodes_check(BOTH, silent))
    assert line.startswith("error: 10.0.0.2: no answer within 60 s; look at it in `ray status`")
    found = {HEAD.id: facts()}
    assert told(versions_check(facts(), BOTH, found, "tailsweep")) == []
    assert told(state_api_check(BOTH, found)) == []


@pytest.mark.parametrize(
    ("here", "there", "expected"),
    [
        ("d1", None, "token authentication is on here and off there"),
        (None, "d1", "token authentication is on there and off here"),
        ("d1", "d2", "its token is another than this machine's"),
    ],
)
def test_tokens_must_be_alike(here: str | None, there: str | None, expected: str):
    (line,) = told(token_check(facts(token=here), BOTH, {HEAD.id: facts(token=here), OTHER.id: facts(token=there)}))
    assert line.startswith(f"error: 10.0.0.2: {expected}; ")
    assert "RAY_AUTH_MODE=token" in line


def test_a_state_api_that_does_not_answer_is_told_where():
    (line,) = told(state_api_check(BOTH, {HEAD.id: facts(), OTHER.id: facts(state_api="connection refused")}))
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
    (line,) = told(gpu_check([node], {"x": facts(gpus=seen)}))
    assert line.startswith(expected)


def test_kinds_are_compared_over_nodes_by_rays_name_where_torch_only_counted():
    nodes = [Node("x", "n1", 1.0, "H200"), Node("y", "n2", 1.0, "L4"), Node("z", "cpus")]
    (line,) = told(gpu_check(nodes, {"x": facts(gpus=[""]), "y": facts(gpus=[""]), "z": facts(gpus=[""])}))
    assert line.startswith("warning: GPUs are of 2 kinds: H200 (n1), L4 (n2)")


def ask(storage: SharedStorage, salt: str = "s") -> Question:
    return Question(
        packages=("numpy",), code=("clusters",), salt=salt, gcs_address="", storage=storage.location, gpus="no"
    )


def judged(storage: SharedStorage, nodes: list[Node], found: dict[str, Facts]) -> list[str]:
    return told(storage_check(storage.storage, storage.refused, nodes, found, storage.heard(nodes)))


def test_shared_storage_is_found_shared_and_left_as_it_was(tmp_path: Path):
    with SharedStorage(str(tmp_path / "new" / "runs")) as storage:
        found = {node.id: look(node.id, ask(storage)) for node in BOTH}
        assert judged(storage, BOTH, found) == []
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
        (line,) = judged(storage, [HEAD], {HEAD.id: look(HEAD.id, ask(storage))})
    assert line.startswith("error: 10.0.0.1: mock:///runs is not the driver's: ")
    assert "is not seen here" not in line  # it says why it could not be read
    assert "let --storage name a folder that every node mounts" in line


def test_what_only_the_node_sees_of_its_writing_is_not_shared(tmp_path: Path):
    """A node that reads the driver's disk and writes to its own, as over a read-only export with an overlay."""
    with SharedStorage(str(tmp_path)) as storage:
        found = look(HEAD.id, ask(storage))
        (next(tmp_path.glob(".tailsweep-*")) / HEAD.id).unlink()
        (line,) = judged(storage, [HEAD], {HEAD.id: found})
    assert "what the node writes there is not seen here" in line


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
    question = Question(
        packages=("numpy", "no-such"), code=("a_package",), salt="s", gcs_address="", storage=None, gpus="no"
    )
    first = look("x", question)
    assert first["packages"] == {"numpy": importlib.metadata.version("numpy"), "no-such": None}
    (package / "__init__.py").write_text("one = 2\n")
    changed = look("x", question)["code"]
    assert None not in (first["code"], changed)
    assert first["code"] != changed
    assert look("x", {**question, "code": ("no_such_package",)})["code"] is None


def test_the_token_is_compared_by_a_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    question = Question(packages=(), code=(), salt="s", gcs_address="", storage=None, gpus="no")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert look("x", question)["token"] is None
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    by_variable = look("x", question)["token"]
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    (tmp_path / "token").write_text("secret\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert look("x", question)["token"] == by_variable
    assert look("x", {**question, "salt": "t"})["token"] != by_variable
    assert "secret" not in str(by_variable)


def test_gpus_are_counted_by_torch_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Here with a torch that says what one with two GPUs would, and then with one that cannot be imported."""
    (tmp_path / "torch.py").write_text(
        "import os\nclass cuda:\n    device_count = staticmethod(lambda: 2 - ('CUDA_VISIBLE_DEVICES' in os.environ))\n"
        "    get_device_name = staticmethod(lambda number: f'GPU {number}')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # as Ray sets it in a task that asks for none
    question = Question(packages=(), code=(), salt="s", gcs_address="", storage=None, gpus="names")
    assert look("x", question)["gpus"] == ["GPU 0", "GPU 1"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    (tmp_path / "torch.py").write_text("raise ImportError('libcuda.so is too old')\n")
    broken = look("x", question)
    assert (broken["gpus"], broken["gpus_failed"]) == ([], "ImportError: libcuda.so is too old")
