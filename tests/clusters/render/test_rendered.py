"""Rendered files are those that were recorded; to record them anew: python tests/support/recorded.py"""

import difflib
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.recorded import CASES, RENDERED, ROOT, rendered_now

SHELLCHECK = Path(sys.executable).with_name("shellcheck")
SCRIPTS = [name for name in CASES if name.endswith(".sh")]


@pytest.mark.parametrize("name", CASES)
def test_what_is_rendered_is_what_was_recorded(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    before, now = (RENDERED / name).read_text(), rendered_now(name)
    moved = "".join(difflib.unified_diff(before.splitlines(True), now.splitlines(True), "recorded", "now"))
    assert not moved, f"look at it, then record it anew: python tests/support/recorded.py\n{moved}"


def test_nothing_recorded_is_left_over():
    assert {path.name for path in RENDERED.iterdir()} == set(CASES)


@pytest.mark.parametrize("name", [name for name in CASES if name.endswith(".yaml")])
def test_a_recorded_file_is_yaml_and_opens_with_its_command(name: str):
    text = (RENDERED / name).read_text()
    assert text.startswith("# Rendered by tailsweep; to start it: ")
    documents = list(yaml.safe_load_all(text))
    assert len(documents) == (2 if name == "rayjob.yaml" else 1)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_bash_that_shellcheck_finds_nothing_in(name: str):
    assert subprocess.run(["bash", "-n", RENDERED / name], capture_output=True, text=True).stderr == ""
    # SC1090, SC1091: what the user's own setup sources is not here to be read.
    command = [SHELLCHECK, "--severity=warning", "--exclude=SC1090,SC1091", RENDERED / name]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_shellcheck_finds_what_is_wrong(tmp_path: Path):
    (tmp_path / "wrong.sh").write_text("#!/bin/bash\nrm -rf $1/*\nif [ $x = 1 ]; then exit; fi\n")
    checked = subprocess.run([SHELLCHECK, "--severity=warning", tmp_path / "wrong.sh"], capture_output=True)
    assert checked.returncode == 1
