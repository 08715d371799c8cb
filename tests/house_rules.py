"""Check the house rules that no linter covers, from the files alone.

`python tests/house_rules.py`, a part of `make lint`, prints the count, the limit and the offenders of each rule. The
exit status is 1 if a limit is exceeded. The tables below list the words that the project has retired.
"""

import argparse
import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

Code = dict[str, ast.Module]  # by the path of the file
Function = ast.FunctionDef | ast.AsyncFunctionDef

PACKAGES = ("trainables", "orchestrator", "clusters", "tailsweep")
PAGES = ("README.md", "CLUSTERS.md", "FAULTS.md", "SECURITY.md", "ARCHITECTURE.md", "tests/README.md", "docs/**/*.md")
PROSE = ("*.md", "*.y*ml", "tests/*.md", "docs/**/*.md", "docs/**/*.y*ml", "orchestrator/sweeps/**/*.y*ml",
         "orchestrator/sweeps/**/*.md", "orchestrator/sweeps/**/*.svg", "clusters/definitions/*.y*ml",
         "tests/**/*.y*ml", "tests/**/*.sh", "Makefile", "pyproject.toml", ".ci/*")  # fmt: skip
MAX_MODULES, MAX_DICT_ANY, MAX_PARAMETERS, MAX_LINES, MAX_MEAN_WORDS, MAX_WORDS = 12, 60, 6, 60, 15, 40
MAX_ANY = 120

# Files, or "file::function", that may exceed MAX_PARAMETERS: transformers dictates how attention functions are called.
KERNELS = ("trainables/execution/attention.py",)
# The retired words that a file may contain: a pattern for the whole name or phrase.
WORDS_ALLOWED = {
    "tests/house_rules.py": ".*",
    "tests/test_house_rules.py": ".*",
    "trainables/augmentation/lexicon.py": ".*verb.*",  # the part of speech
    "trainables/augmentation/eda.py": ".*verb.*",
    "trainables/config/data.py": "of",  # `fold: {index: 0, of: 5}`
}

# Retired in names and in prose. A space also matches an underscore or a line break; case does not matter.
RETIRED = (
    "candidates?", r"c\d{3}(?:\.\d+)?", r"c\{\w+:03d?\}", "roads?", "tournaments?", "rounds? (?:one|two)",
    "(?:first|second) rounds?", "inline(?! (?:code|css|html|svg|styles?|scripts?))", "bookkeeping", "play(?:s|ed|ing)?",
    "hear(?:s|d|ing)?", "told(?! apart)", "patiently", "mailbox(?:es)?", "made_of", "offspring", "laid over",
    "unpackable", "uncuttable", "occurring words", r"(?<!by[\s_])mistakes?", "verbs?", "mend(?:s|ed|ing)?",
    "remed(?:y|ies)", "nobody", "none of ours", "beside", "in the light of", "bad days", "stands? in the way",
    "short of memory", "made rows?", "tak(?:es?|ing) jobs", "raylets of this machine",
    "(?:go|goes|going|gone|went) on(?! (?:the|a|an|each|every|its|which|top|disk)(?![a-z]))",
    "max_seconds", "max_failures", "max_dropped(?!_fraction)", "(?<!_)up_to(?!_)", "`(?:trains|defer|points)`",
    "rows: (?:original|oversampled|class_balanced|sqrt|progressive|augmented)", r"trains:(?=\s*[{\w])",
    r"defer:(?=\s*[{\d])", r"(?<!_)points:(?=\s*\[)", r"finish:(?=\s*[\n{])",
)  # fmt: skip
# Retired in names only: in prose they are plain English.
RETIRED_NAMES = (
    "cut(?!_(?:short|off))", "look_at", "looked", "ask_nodes", "facts", "held(?!_out)", "holder", "ways_out", "unready",
    "(?:un)?sealed", "same_failures", "copy_(?:here|there)", "start_ray_here", "given_out", "to_be_a_model",
    "chosen_row", "of_tune", "to_the_end", "fetched", "entered", "representatives",
)  # fmt: skip
WHOLE_NAMES = re.compile(r"_*(?:found|one|made|what|left|of|of_\w+|Again|Chosen|Fresh|Looked|Question|Round)")
CONFIG_FIELDS = re.compile("trains|rows|points|finish|defer|warmup|label")  # of classes in a file of configuration


def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"(?<![a-z0-9#])(?:{'|'.join(words)})(?![a-z0-9])".replace(" ", r"[\s_]+"))


RETIRED_IN_PROSE, RETIRED_IN_NAMES = _pattern(RETIRED), _pattern(RETIRED + RETIRED_NAMES)

FENCE = re.compile(r"^[ >\t]*(`{3,}|~{3,}).*?^[ >\t]*\1[^\n]*$|<!--.*?-->|\A---\n.*?^---$", re.DOTALL | re.MULTILINE)
INLINE_CODE = re.compile(r"(`+)(?:(?!\n\s*\n).)+?\1", re.DOTALL)
LINK = re.compile(r"!\[[^\]]*\]\([^)]*\)|</?[a-z][^>]*>|\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])", re.IGNORECASE)
NOT_PROSE = re.compile(r"#+ |[-|:=*_+ ]*$|\[[^\]]+\]:|:::|!!!|\?\?\?|=== ")
LIST_ITEM = re.compile(r"(?:[-*+]|\d+[.)])\s+(?:\[[ xX]\] )?")
SENTENCE_END = re.compile(r"(\S*[.!?])[)\]\"'*_”’]*\s+(?=[(\[\"'*_“‘]*[^\W_a-z])")
ABBREVIATION = re.compile(r"\W*(?:e\.g|i\.e|cf|vs|al|approx|[A-Z])\.")


@dataclass(frozen=True)
class Rule:
    """A house rule and the places that break it; without a limit it is informational."""

    name: str
    limit: int
    offenders: list[str]
    measured: float | None = None  # the count, where that is not the number of offenders

    @property
    def count(self) -> float:
        """Return what is compared with the limit."""
        return len(self.offenders) if self.measured is None else self.measured

    @property
    def broken(self) -> bool:
        """Return whether the count is above the limit."""
        return self.count > self.limit

    def report(self, num_shown: int | None) -> str:
        """Return the count and the verdict, then the first `num_shown` offenders, or all of them for None."""
        verdict = f"limit {self.limit}: {'too many' if self.broken else 'ok'}"
        shown = self.offenders[:num_shown] if self.broken or num_shown is None else []
        return "\n    ".join([f"{self.name}: {round(self.count, 2):g} ({verdict})", *shown])


def check(root: Path) -> list[Rule]:
    """Return every rule with its offenders among the files under `root`."""
    code = {file: ast.parse((root / file).read_text()) for file in _python_files(root, *PACKAGES)}
    return [
        _module_rule(code),
        Rule("modules with a name of the standard library's", 0, list(_named_like_the_library(code))),
        Rule("`Any`", MAX_ANY, _places(code, lambda node: _is_named(node, "Any"))),
        Rule("`dict[str, Any]`", MAX_DICT_ANY, _places(code, _is_dict_of_any)),
        *_function_rules(code),
        Rule("retired words", 0, list(_retired_words(root))),
        *_sentence_rules(root),
        Rule("public functions and classes without a docstring", 0, list(_undocumented(code))),
        Rule(
            "calls of `find_distributions` outside its module and the search space", 3, list(_distribution_calls(code))
        ),
    ]


def _python_files(root: Path, *folders: str) -> list[str]:
    paths = (path for folder in folders for path in sorted((root / folder).rglob("*.py")))
    return [path.relative_to(root).as_posix() for path in paths]


@cache
def _nodes(tree: ast.Module) -> list[ast.AST]:
    return list(ast.walk(tree))


def _places(code: Code, is_counted: Callable[[ast.expr], bool]) -> list[str]:
    nodes = ((file, node) for file, tree in code.items() for node in _nodes(tree) if isinstance(node, ast.expr))
    lines = sorted((file, node.lineno) for file, node in nodes if is_counted(node))
    return [f"{file}:{line}" for file, line in lines]


def _is_named(node: ast.AST, *names: str) -> bool:
    return getattr(node, "id", getattr(node, "attr", None)) in names


def _is_dict_of_any(node: ast.expr) -> bool:
    match node:
        case ast.Subscript(value=kind, slice=ast.Tuple(elts=[key, value])):
            return _is_named(kind, "dict", "Dict") and _is_named(key, "str") and _is_named(value, "Any")
    return False


def _module_rule(code: Code) -> Rule:
    sizes = Counter(Path(file).parent for file in code if Path(file).stem not in ("__init__", "__main__"))
    crowded = [f"{folder}/: {size}" for folder, size in sorted(sizes.items()) if size > MAX_MODULES]
    return Rule("modules in the fullest folder", MAX_MODULES, crowded, max(sizes.values(), default=0))


def _named_like_the_library(code: Code) -> Iterator[str]:
    for file in code:
        if ({*Path(file).parts[:-1], Path(file).stem} - {"__main__"}) & sys.stdlib_module_names:
            yield file


def _functions(code: Code) -> Iterator[tuple[str, Function]]:
    for file, tree in code.items():
        yield from ((file, node) for node in _nodes(tree) if isinstance(node, Function))


def _function_rules(code: Code) -> Iterator[Rule]:
    wide, long = [], []
    for file, node in _functions(code):
        if (number := _num_parameters(node)) > MAX_PARAMETERS and not f"{file}::{node.name}".startswith(KERNELS):
            wide.append(f"{file}:{node.lineno} {node.name}: {number}")
        if (number := _num_lines(node)) > MAX_LINES:
            long.append(f"{file}:{node.lineno} {node.name}: {number}")
    yield Rule(f"functions of more than {MAX_PARAMETERS} parameters", 0, wide)
    yield Rule(f"functions of more than {MAX_LINES} lines", 0, long)


def _num_parameters(node: Function) -> int:
    named = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    is_bound = bool(named) and named[0].arg in ("self", "cls")
    return len(named) - is_bound + bool(node.args.vararg) + bool(node.args.kwarg)


def _num_lines(node: Function) -> int:
    """Count the lines from `def` to the last one, without the docstring."""
    first = node.body[0]
    num_documented = (first.end_lineno or 0) - first.lineno + 1 if ast.get_docstring(node) is not None else 0
    return (node.end_lineno or 0) - node.lineno + 1 - num_documented


def _retired_words(root: Path) -> Iterator[str]:
    pages = {path.relative_to(root).as_posix() for glob in PROSE for path in root.glob(glob) if path.is_file()}
    for file in (*_python_files(root, *PACKAGES, "tests"), *sorted(pages)):
        text, stem = (root / file).read_text(), Path(file).stem
        words = [(1, stem)] if retired_name(stem) else []
        if file.endswith(".py"):
            words += retired_names(ast.parse(text), is_config="config" in file or "schema" in file)
            words += retired_phrases(python_prose(text))
        else:  # the changelog may quote an old name
            words += retired_phrases(_blank(INLINE_CODE, text) if file == "CHANGELOG.md" else text)
        allowed = re.compile(WORDS_ALLOWED.get(file, "(?!)"))
        yield from (f"{file}:{line} {word}" for line, word in sorted(words) if not allowed.fullmatch(word))


def retired_names(tree: ast.AST, is_config: bool = False) -> list[tuple[int, str]]:
    """Return line and name of each retired name that `tree` defines; a name it only uses may belong to a library."""
    defined: list[tuple[int, str]] = []
    fields: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        match node:
            case (
                ast.FunctionDef(name=str(name), lineno=line)
                | ast.AsyncFunctionDef(name=str(name), lineno=line)
                | ast.ClassDef(name=str(name), lineno=line)
                | ast.ExceptHandler(name=str(name), lineno=line)
                | ast.MatchAs(name=str(name), lineno=line)
                | ast.arg(arg=str(name), lineno=line)
                | ast.alias(asname=str(name), lineno=line)
                | ast.Name(id=str(name), ctx=ast.Store(), lineno=line)
                | ast.Attribute(value=ast.Name(id="self"), attr=str(name), ctx=ast.Store(), lineno=line)
            ):
                defined.append((line, name))
        if is_config and isinstance(node, ast.ClassDef):
            targets = [statement.target for statement in node.body if isinstance(statement, ast.AnnAssign)]
            fields += [(target.lineno, target.id) for target in targets if isinstance(target, ast.Name)]
    is_a_side = any(name == "right" for _, name in defined)  # a `left` with a `right` is not a remainder
    retired = [(line, name) for line, name in defined if retired_name(name) and not (name == "left" and is_a_side)]
    return retired + [(line, name) for line, name in fields if CONFIG_FIELDS.fullmatch(name)]


def retired_name(name: str) -> bool:
    """Return whether a name contains a retired word, in snake_case or CamelCase."""
    return bool(WHOLE_NAMES.fullmatch(name) or RETIRED_IN_NAMES.search(_snake_case(name)))


def retired_phrases(text: str) -> list[tuple[int, str]]:
    """Return line and wording of the retired phrases in `text`."""
    words = _snake_case(text)
    matches = RETIRED_IN_PROSE.finditer(words)
    return [(words.count("\n", 0, match.start()) + 1, " ".join(match[0].split())) for match in matches]


def _snake_case(text: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", text).lower()


def python_prose(source: str) -> str:
    """Return the comments and strings of `source` at their positions, with NUL characters in place of the code."""
    prose, line_starts = list(re.sub(r"\S", "\0", source)), [0]
    for line in source.split("\n"):
        line_starts.append(line_starts[-1] + len(line) + 1)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)):
            start = line_starts[token.start[0] - 1] + token.start[1]
            prose[start : start + len(token.string)] = _blank(re.compile(r"^\w+(?=[\"'])|[\"'#]"), token.string)
    return "".join(prose)


def _blank(pattern: re.Pattern[str], text: str) -> str:
    return pattern.sub(lambda match: re.sub(r"\S", " ", match[0]), text)


def _sentence_rules(root: Path) -> Iterator[Rule]:
    means: dict[str, float] = {}
    long: list[str] = []
    for file in sorted({path.relative_to(root).as_posix() for glob in PAGES for path in root.glob(glob)}):
        lengths = [(line, num_words(sentence)) for line, sentence in sentences((root / file).read_text())]
        means[file] = sum(length for _, length in lengths) / max(len(lengths), 1)
        long += [f"{file}:{line}: {length} words" for line, length in lengths if length > MAX_WORDS]
    listed = [f"{file}: {mean:.1f}" for file, mean in sorted(means.items(), key=lambda item: -item[1])]
    yield Rule("mean words of a sentence, in the worst page", MAX_MEAN_WORDS, listed, max(means.values(), default=0))
    yield Rule(f"sentences of more than {MAX_WORDS} words", 0, long)


def sentences(markdown: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of the sentences of a page, without code, headings and fragments of one or two words."""
    text = FENCE.sub(lambda match: "\n" * match[0].count("\n"), markdown)
    text = INLINE_CODE.sub(lambda match: "Code" + "\n" * match[0].count("\n"), text)
    text = LINK.sub(lambda match: match[1] or "\n" * match[0].count("\n"), text)
    blocks: list[tuple[int, str]] = []
    is_open = False  # whether the next line of plain text continues the last block
    for number, line in enumerate(text.split("\n"), start=1):
        content = line.strip().removeprefix(">").strip()
        item = LIST_ITEM.match(content)
        if NOT_PROSE.match(content):
            is_open = False
        elif content.startswith("|"):
            blocks += [(number, cell) for cell in content.split("|")]
            is_open = False
        elif item or not is_open:
            blocks.append((number, content[item.end() :] if item else content))
            is_open = True
        else:
            blocks[-1] = (blocks[-1][0], f"{blocks[-1][1]}\n{content}")
    for number, block in blocks:
        ends = [match.end() for match in SENTENCE_END.finditer(block) if not ABBREVIATION.fullmatch(match[1])]
        for start, end in zip([0, *ends], [*ends, len(block)], strict=True):
            if num_words(block[start:end]) > 2:
                yield number + block.count("\n", 0, start), block[start:end]


def num_words(text: str) -> int:
    """Count the words; a word is any text between spaces that has a letter or a digit."""
    return sum(any(character.isalnum() for character in word) for word in text.split())


def _undocumented(code: Code) -> Iterator[str]:
    for file, tree in code.items():
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
        for node in (*tree.body, *(member for each in classes for member in each.body)):
            if isinstance(node, Function | ast.ClassDef) and node.name[0] != "_" and ast.get_docstring(node) is None:
                yield f"{file}:{node.lineno} {node.name}"


def _distribution_calls(code: Code) -> Iterator[str]:
    homes = {file for file, node in _functions(code) if node.name in ("find_distributions", "expand_promoted")}
    others = {file: tree for file, tree in code.items() if file not in homes}
    return iter(_places(others, lambda node: isinstance(node, ast.Call) and _is_named(node.func, "find_distributions")))


def main() -> int:
    """Print the report on a repository and return the exit status."""
    parser = argparse.ArgumentParser(description="Check the house rules of this repository.")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent, help="the repository")
    parser.add_argument("--all", action="store_true", help="list every offender, not ten of each broken rule")
    parsed = parser.parse_args()
    rules = check(parsed.root)
    print("\n".join(rule.report(num_shown=None if parsed.all else 10) for rule in rules))
    return int(any(rule.broken for rule in rules))


if __name__ == "__main__":
    sys.exit(main())
