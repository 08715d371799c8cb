"""The links, make targets, commands, tests and paths that the documentation names exist."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^ *```[^\n]*\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
INLINE_CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
README = (ROOT / "README.md").read_text()
PAGES = ("README.md", "ARCHITECTURE.md", "CLUSTERS.md", "FAULTS.md", "SECURITY.md", "tests/README.md")


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md", "RESULTS.md", "BENCHMARKS.md"])
def test_relative_links_exist(page: str):
    folder = (ROOT / page).parent
    assert [link for link in relative_links((ROOT / page).read_text()) if not (folder / link).exists()] == []


def test_every_test_named_in_faults_exists():
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "FAULTS.md").read_text())
    assert len(named) > 10
    assert [(file, test) for file, test in named if f"def {test}" not in (ROOT / file).read_text()] == []


def test_every_function_and_file_named_in_the_architecture_exists():
    page = (ROOT / "ARCHITECTURE.md").read_text()
    files = re.findall(r"`((?:trainables|orchestrator|clusters)/[\w/]*(?:\.py)?)(?:::(\w+))?`", page)
    assert len(files) > 20
    assert [file for file, _ in files if not (ROOT / file).exists()] == []
    definitions = {(file, name) for file, name in files if name}
    assert [place for place in definitions if not defines(*place)] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_to_headings_exist(page: str):
    text = (ROOT / page).read_text()
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) - anchors == set()


def test_make_commands_name_targets_of_the_makefile():
    targets = set(re.findall(r"^([\w-]+)(?: [\w -]+)?:(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = make_targets(README)
    assert {"demo", "test"} <= commands
    assert commands - targets == set()


def test_tailsweep_commands_exist(capsys: pytest.CaptureFixture[str]):
    from tailsweep.orchestrator.cli.main import build_parser  # here, because it imports Ray

    commands = tailsweep_commands(README)
    assert "run" in commands
    assert [command for command in sorted(commands) if not knows(build_parser(), command)] == [], (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("page", ["README.md", "CLUSTERS.md"])
def test_tailsweep_commands_are_what_the_parser_takes(page: str, capsys: pytest.CaptureFixture[str]):
    from tailsweep.orchestrator.cli.main import build_parser

    lines = "\n".join(fenced_commands((ROOT / page).read_text())).replace("\\\n", "").splitlines()
    commands = [line for line in lines if line.startswith("tailsweep ")]
    assert commands
    for line in commands:
        words = shlex.split(re.split(r"[|>]", line)[0], comments=True)
        try:
            build_parser().parse_args(words[1:])
        except SystemExit:
            pytest.fail(f"{line}\n{capsys.readouterr().err}")


def test_clusters_are_rendered_by_commands_that_exist(monkeypatch: pytest.MonkeyPatch):
    """Render with each command of CLUSTERS.md, with a sweep file in place of SWEEP.yaml."""
    from tailsweep.clusters.render.entrypoint import KINDS
    from tailsweep.orchestrator.cli.main import build_parser
    from tailsweep.orchestrator.jobs.render import render

    monkeypatch.chdir(ROOT)
    lines = "\n".join(fenced_commands((ROOT / "CLUSTERS.md").read_text())).splitlines()
    matches = [re.match(r"tailsweep (cluster render [^|>]+)", line) for line in lines]
    commands = [match[1].replace("SWEEP.yaml", "orchestrator/sweeps/demo.yaml") for match in matches if match]
    rendered = set()
    for command in commands:
        parsed = build_parser().parse_args(command.split())
        assert render(parsed.kind, parsed.cluster, parsed.sweep, parsed.overrides)[0]
        rendered.add(parsed.kind)
    assert rendered == KINDS.keys() - {"gcp", "azure"}


def test_paths_in_the_tree_exist():
    paths = tree_paths(README)
    assert {"trainables/", "orchestrator/", "clusters/", "tests/"} <= set(paths)
    assert [path for path in paths if not is_there(path)] == []


def test_readers_see_what_a_page_says():
    page = """
See [the tree](docs/tree.md#top), [elsewhere](https://example.org), [below](#below) and `tailsweep show RUN`;
tailsweep is a name. ![plot](plot.png "title")
```bash
$ make demo       # make nothing
cd x && make -j2 lint VERBOSE=1
.venv/bin/tailsweep run sweep.yaml --set a=b   # tailsweep is quick
ray job submit -- python -m tailsweep resume RUN
[not](a-link.md)
```
```
trainables/      one trial
  keys.py          names, which is all; see
                   its first lines
orchestrator/
├── config.py, launch.py   two files
├── sweeps/*.yaml
│   └── inner/   # a remark
README.md
```
"""
    assert relative_links(page) == ["docs/tree.md", "plot.png"]
    assert make_targets(page) == {"demo", "lint"}
    assert tailsweep_commands(page) == {"show", "run", "resume"}
    assert tree_paths(page) == [
        "trainables/", "trainables/keys.py", "orchestrator/", "orchestrator/config.py", "orchestrator/launch.py",
        "orchestrator/sweeps/*.yaml", "orchestrator/sweeps/inner/", "README.md",
    ]  # fmt: skip


def test_a_command_is_known_if_the_parser_has_it():
    parser = argparse.ArgumentParser()
    parser.add_subparsers().add_parser("run").add_argument("sweep")
    assert knows(parser, "run")
    assert not knows(parser, "walk")


def relative_links(page: str) -> list[str]:
    """Return the targets of the links outside code, without their anchors."""
    prose = INLINE_CODE.sub("", FENCE.sub("", page))
    targets = re.findall(r"\]\(<?([^)>\s]+)", prose) + re.findall(r"^\[[^\]]+\]: *(\S+)", prose, re.MULTILINE)
    files = [target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:", target)]
    return [file for file in files if file]


def make_targets(page: str) -> set[str]:
    """Return the targets of the ``make`` commands in fenced blocks, without options and variables."""
    commands = re.findall(r"(?:^|&&|;) *(?:\$ +)?make +([^&;|\n]+)", "\n".join(fenced_commands(page)), re.MULTILINE)
    words = {word for command in commands for word in command.splitlines()[0].split()}
    return {word for word in words if not word.startswith("-") and "=" not in word}


def tailsweep_commands(page: str) -> set[str]:
    """Return the first argument of each ``tailsweep`` and ``python -m tailsweep`` in fenced blocks and inline code."""
    code = [*fenced_commands(page), *INLINE_CODE.findall(FENCE.sub("", page))]
    return set(re.findall(r"(?:^|[ /])(?:tailsweep|-m tailsweep) +([a-z][a-z-]*)", "\n".join(code), re.MULTILINE))


def fenced_commands(page: str) -> list[str]:
    """Return the lines of the fenced blocks without comments, except those of a tree."""
    blocks = [block for block in FENCE.findall(page) if not is_tree(block)]
    return [re.sub(r"(?:^|\s+)#.*", "", line) for block in blocks for line in block.splitlines()]


def tree_paths(page: str) -> list[str]:
    """Return the paths in the fenced block that draws the tree, by their indentation.

    ``,`` separates paths. Two blanks or ``#`` begin a remark. A line with the indentation of a remark continues it.
    """
    trees = [block for block in FENCE.findall(page) if is_tree(block)]
    assert len(trees) == 1, f"{len(trees)} fenced blocks show the folder trainables/ in a tree, but one must"
    paths: list[str] = []
    open_folders: list[tuple[int, str]] = []  # indentation, path with its slash
    remark_column = 1000
    for line in trees[0].splitlines():
        bare = re.sub("[│├└─]", " ", line)
        indentation = len(bare) - len(bare.lstrip())
        if not bare.strip() or indentation >= remark_column:
            continue
        entry, gap, _ = re.match(r"(.*?)( {2,}#? *| +# *|$)(.*)", bare.lstrip()).groups()
        remark_column = indentation + len(entry) + len(gap) if gap else 1000
        while open_folders and open_folders[-1][0] >= indentation:
            open_folders.pop()
        folder = open_folders[-1][1] if open_folders else ""
        names = [name for name in re.split(r"[, ]+", entry) if name]
        paths += [folder + name for name in names]
        if len(names) == 1 and "/" in names[0]:
            open_folders.append((indentation, folder + names[0].rpartition("/")[0] + "/"))
    return paths


def is_tree(block: str) -> bool:
    """Return whether a fenced block draws the tree of folders."""
    return re.search(r"^\W*trainables/(\s|$)", block, re.MULTILINE) is not None


def is_there(path: str) -> bool:
    """Return whether a path or pattern exists, and is a folder where it ends with a slash."""
    paths = list(ROOT.glob(path))
    return any(each.is_dir() for each in paths) if path.endswith("/") else bool(paths)


def defines(file: str, name: str) -> bool:
    """Return whether a module defines a function or class at its top level."""
    return re.search(rf"^(?:def|class) {name}\b", (ROOT / file).read_text(), re.MULTILINE) is not None


def knows(parser: argparse.ArgumentParser, command: str) -> bool:
    """Return whether ``COMMAND --help`` exits with 0, which it does for a known command."""
    with pytest.raises(SystemExit) as ended:
        parser.parse_args([command, "--help"])
    return ended.value.code == 0
