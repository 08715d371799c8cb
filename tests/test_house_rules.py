"""Each house rule reports a planted offence and passes clean files."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import house_rules
import pytest


def results(root: Path, files: dict[str, str]) -> dict[str, house_rules.Rule]:
    """Write `files` under `root`, check it and return the rules by name."""
    for file, text in files.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(text)
    return {rule.name: rule for rule in house_rules.check(root)}


def test_modules_are_counted_per_folder_without_init_and_main(tmp_path: Path):
    names = ["__init__", "__main__", *(f"module_{number}" for number in range(12))]
    files = {f"trainables/{folder}/{name}.py": "" for folder in ("data", "models") for name in names}
    assert not results(tmp_path, files)["modules in the fullest folder"].broken
    rule = results(tmp_path, {"trainables/data/extra.py": ""})["modules in the fullest folder"]
    assert (rule.broken, rule.count, rule.offenders) == (True, 13, ["trainables/data/: 13"])


def test_no_module_or_room_is_named_like_one_of_the_standard_library(tmp_path: Path):
    names = ["orchestrator/__main__", "orchestrator/html", "clusters/secrets/__init__", "clusters/mail_text"]
    rule = results(tmp_path, {f"{name}.py": "" for name in names})["modules with a name of the standard library's"]
    assert rule.offenders == ["orchestrator/html.py", "clusters/secrets/__init__.py"]


def test_any_is_counted_in_code_but_not_where_it_is_imported(tmp_path: Path):
    code = "import typing\nfrom typing import Any\nx: dict[str, Any]\ny: Any\nz: typing.Dict[str, typing.Any]  # Any\n"
    rules = results(tmp_path, {"clusters/a.py": code, "tests/test_a.py": code})
    assert rules["`Any`"].offenders == ["clusters/a.py:3", "clusters/a.py:4", "clusters/a.py:5"]
    assert rules["`dict[str, Any]`"].offenders == ["clusters/a.py:3", "clusters/a.py:5"]


def test_parameters_are_counted_without_self_and_kernels_are_excepted(tmp_path: Path):
    six, seven = "class A:\n    def f(self, a, b, c, /, d, *e, **f): ...\n", "def f(a, b, c, /, d, *e, f, **g): ...\n"
    files = {"clusters/six.py": six, "clusters/seven.py": seven, house_rules.KERNELS[0]: seven}
    assert results(tmp_path, files)["functions of more than 6 parameters"].offenders == ["clusters/seven.py:1 f: 7"]


def test_lines_of_a_function_are_counted_without_its_docstring(tmp_path: Path):
    documented = 'def f():\n    """Return.\n\n    Nothing.\n    """\n'
    files = {"clusters/a.py": documented + "    x = 0\n" * 59, "clusters/b.py": documented + "    x = 0\n" * 60}
    assert results(tmp_path, files)["functions of more than 60 lines"].offenders == ["clusters/b.py:1 f: 61"]


def test_retired_words_in_names_are_recognized():
    retired = ["candidate", "num_candidates", "PaddedRoad", "_play_once", "made", "of_seed", "Round"]
    plain = ["trial", "broad", "display", "held_out", "placeholder", "cutoff", "trial_of", "Rounded"]
    assert [name for name in (*retired, *plain) if house_rules.retired_name(name)] == retired


def test_names_are_judged_where_they_are_defined():
    used = "import hashlib.road\nroad.mailbox(candidate=1)\nother.mailbox = road\nleft, right = 1, 2"
    assert house_rules.retired_names(ast.parse(used)) == []
    defined = "def f(road): ...\nself.mailbox = 1\nleft = 2\nclass A:\n    rows: int"
    assert house_rules.retired_names(ast.parse(defined)) == [(2, "mailbox"), (3, "left"), (1, "road")]
    assert (5, "rows") in house_rules.retired_names(ast.parse(defined), is_config=True)


@pytest.mark.parametrize("text", ["It goes on\nwith it.", "c017", "live_road", "Beside it", "`defer`", "rows: sqrt"])
def test_a_retired_phrase_is_found(text: str):
    assert house_rules.retired_phrases(f"First line.\n{text}")[0][0] == 2


@pytest.mark.parametrize("text", ["one text is left; rows are found", "told apart", "by mistake", "besides", "#c01725"])
def test_plain_english_is_not_a_retired_phrase(text: str):
    assert house_rules.retired_phrases(text) == []


def test_prose_of_python_is_its_comments_and_strings():
    source = 'road = 1  # goes\n# on with it\nx = ("in the "\n    "light of")\n'
    assert house_rules.retired_phrases(house_rules.python_prose(source)) == [(1, "goes on"), (3, "in the light of")]


def test_retired_words_are_found_in_names_and_pages_and_the_changelog_may_quote_them(tmp_path: Path):
    files = {"orchestrator/sweeps/road.yaml": "seed: 1\n", "docs/a.md": "A tournament.\n", "tests/a.py": "road = 1\n"}
    files |= {".ci/run": "make demo --set num_candidates=2\n"}
    allowed = {"CHANGELOG.md": "- `road` is `execution`.\n", "tests/house_rules.py": "# road\n"}
    rules = results(tmp_path, files | allowed)
    expected = {"tests/a.py:1 road", ".ci/run:1 candidates", "docs/a.md:1 tournament"}
    assert set(rules["retired words"].offenders) == expected | {"orchestrator/sweeps/road.yaml:1 road"}


def test_sentences_are_split_sensibly():
    page = """# A heading is none
See e.g. [a page with 2.5 words](https://x.example/A. B) and `some code`. Here is
another one; it has a semicolon: <!-- A comment is none. -->
- an item of five words
| A cell. Two sentences here. | 12 |
```
Code is not a sentence.
```
"""
    expected = [(2, 9), (2, 8), (4, 5), (5, 3)]
    assert [(line, house_rules.num_words(text)) for line, text in house_rules.sentences(page)] == expected


def test_long_sentences_are_found(tmp_path: Path):
    rules = results(tmp_path, {"README.md": "Word " * 41 + "\n\n" + "Word " * 40, "docs/a.md": "Three short words."})
    assert rules["sentences of more than 40 words"].offenders == ["README.md:1: 41 words"]
    assert rules["mean words of a sentence, in the worst page"].count == 40.5


def test_missing_docstrings_and_calls_that_compute_again_are_listed(tmp_path: Path):
    code = "def find_distributions(): ...\ndef _private(): ...\nclass A:\n    'Documented.'\n    def f(self): ...\n"
    rules = results(tmp_path, {"clusters/a.py": code, "clusters/b.py": "find_distributions()\n"})
    rule = rules["public functions and classes without a docstring"]
    assert (rule.broken, rule.offenders) == (True, ["clusters/a.py:1 find_distributions", "clusters/a.py:5 f"])
    assert rules["calls of `find_distributions` outside its module and the search space"].offenders == [
        "clusters/b.py:1"
    ]


@pytest.mark.parametrize(("num_files", "status"), [(12, 0), (13, 1)])
def test_exit_status_is_1_if_a_limit_is_exceeded(tmp_path: Path, num_files: int, status: int):
    results(tmp_path, {f"clusters/module_{number}.py": "" for number in range(num_files)})
    command = [sys.executable, house_rules.__file__, "--root", str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == status
    assert re.search(rf"modules .*: {num_files} \(limit 12: (ok|too many)\)", finished.stdout)
