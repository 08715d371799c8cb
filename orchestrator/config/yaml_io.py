"""YAML text and ``dotted.field=value`` overrides to a plain tree of dicts, lists and scalars, and back to YAML.

Scalars are read as YAML 1.2 reads them: ``1e-5`` is a number, ``no`` and ``2026-11-22`` are words. Only plain values
are ever made (no tags, no objects), keys are names, numbers are finite. What the fields mean is not known here.
"""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, NoReturn

import yaml
from tailsweep.orchestrator.config.errors import SweepConfigError
from tailsweep.orchestrator.config.tree import Tree

MAX_CHARACTERS = 1_000_000
MAX_VALUES = 100_000  # nine aliases of nine each, nine times over, would be more than memory holds
MAX_DEPTH = 20  # a sweep needs less than half of it


def read_sweep_file(path: Path, example: str = "data: {train: ...}") -> Tree:
    """Return the mapping that a file holds.

    Args:
        path: The file.
        example: A field that it must have, for the message.

    Raises:
        SweepConfigError: The file cannot be read as a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise SweepConfigError(str(path), ["there is no such file"]) from None
    except IsADirectoryError:
        raise SweepConfigError(str(path), ["is a folder, but must be a YAML file"]) from None
    except UnicodeDecodeError as error:
        raise SweepConfigError(str(path), [f"byte {error.start} is not UTF-8: save the file as UTF-8"]) from None
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        raise SweepConfigError(str(path), [f"cannot be read: {error}"]) from None
    try:
        tree = parse_yaml(text)
    except ValueError as error:
        raise SweepConfigError(str(path), [str(error)]) from None
    if tree is None:
        raise SweepConfigError(str(path), [f"is empty, but must at least say {example}"])
    if not isinstance(tree, dict):
        kind = "a list" if isinstance(tree, list) else "a single value"
        raise SweepConfigError(str(path), [f"holds {kind}, but must be a mapping of fields such as {example}"])
    return tree


def parse_yaml(text: str) -> object:
    """Return the value of one YAML document.

    Raises:
        ValueError: There is none, or a short text would take long to read (see ``MAX_CHARACTERS`` and below it). The
            message is one line, with the place.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"has {len(text):,} characters, but must have at most {MAX_CHARACTERS:,}")
    try:
        return _Copying().copy(yaml.load(text, Loader=_Loader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(place + ", ".join(text for text in (error.context, error.problem) if text)) from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def write_yaml(tree: Tree) -> str:
    """Return YAML that :func:`parse_yaml` reads back as the same tree."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6)


def split_override(override: str) -> tuple[tuple[str, ...], str]:
    """Split ``"data.train=a=b.csv"`` into ``(("data", "train"), "a=b.csv")``, at the first ``=``."""
    dotted, equals, value = override.partition("=")
    path = tuple(dotted.split("."))
    if not equals or not all(path):
        raise ValueError(f"--set {override!r} must be written as dotted.field=value, such as stage_one.epochs=2")
    return path, value


def parse_number(text: str) -> int | float | None:
    """Return the number that ``text`` is, or None."""
    if not any(pattern.fullmatch(text) for pattern in (_INT, _FLOAT)):
        return None
    number = parse_yaml(text)
    assert isinstance(number, int | float)
    return number


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2 and with nothing but plain values."""

    yaml_constructors: ClassVar[dict[str | None, Callable[..., object]]] = {}


class _Dumper(yaml.SafeDumper):
    """Quotes what :class:`_Loader` would read as something else; lists in one line, odd characters escaped."""

    def ignore_aliases(self, data: object) -> bool:
        return True


_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_SCALARS = {
    "null": (re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    "bool": (re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")),
    "int": (_INT, list("-+0123456789")),
    "float": (_FLOAT, list("-+.0123456789")),
}
for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {}
    for _tag, (_pattern, _first) in _SCALARS.items():
        # PyYAML matches at the start only.
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern.pattern})\\Z"), _first)


def _mapping(loader: _Loader, node: yaml.Node) -> Tree:
    if not isinstance(node, yaml.MappingNode):
        raise yaml.constructor.ConstructorError(problem="must be a mapping", problem_mark=node.start_mark)
    tree: Tree = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        problem = None
        if not isinstance(key, str):
            problem = "a field's name must be a word"
        elif "." in key:
            problem = f'"{key}" has a dot: in a file fields are nested, {key.split(".")[0]}: {{...}}'
        elif key in tree:
            problem = f'"{key}" is written twice'
        if problem:
            raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key_node.start_mark)
        tree[key] = loader.construct_object(value_node, deep=True)
    return tree


def _sequence(loader: _Loader, node: yaml.Node) -> list[object]:
    if not isinstance(node, yaml.SequenceNode):
        raise yaml.constructor.ConstructorError(problem="must be a list", problem_mark=node.start_mark)
    return [loader.construct_object(item, deep=True) for item in node.value]


def _scalar(loader: _Loader, node: yaml.Node) -> str | int | float | None:
    if not isinstance(node, yaml.ScalarNode):
        raise yaml.constructor.ConstructorError(problem="must be a single value", problem_mark=node.start_mark)
    text = str(node.value)
    tag = node.tag.rpartition(":")[2]
    if tag == "str":
        return text
    if not _SCALARS[tag][0].fullmatch(text):  # only where a tag was written: !!int abc
        raise yaml.constructor.ConstructorError(problem=f'"{text}" is no {tag}', problem_mark=node.start_mark)
    if tag == "null":
        return None
    if tag == "bool":
        return text.lower() == "true"
    number = math.inf if "n" in text.lower() else float(text)  # .inf and .nan
    if not math.isfinite(number) or (tag == "int" and abs(number) >= 2**63):
        problem = f"{text[:40]} is no finite number" if tag == "float" else f"{text[:40]} is too large a number"
        raise yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark)
    return int(text) if tag == "int" else number


def _refused(loader: _Loader, node: yaml.Node) -> NoReturn:
    raise yaml.constructor.ConstructorError(
        problem=f"the tag {node.tag} cannot be used here: write a plain value", problem_mark=node.start_mark
    )


for _tag in ("str", *_SCALARS):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _scalar)
_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_Loader.add_constructor("tag:yaml.org,2002:seq", _sequence)
_Loader.add_constructor(None, _refused)
_Dumper.add_representer(
    str,  # double quotes where PyYAML 6.0's single ones lose a character: a next-line or line-separator becomes a space
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, None if text.isprintable() else '"'),
)
_Dumper.add_representer(
    list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)


class _Copying:
    """Copies a value so that no two places share a list or mapping, as two aliases of one anchor do."""

    def __init__(self) -> None:
        self.values = 0

    def copy(self, value: object, depth: int = 0) -> object:
        self.values += 1
        if self.values > MAX_VALUES:
            raise ValueError(f"stands for more than {MAX_VALUES:,} values, by aliases of aliases: write them out")
        if depth > MAX_DEPTH:
            raise ValueError(f"nested too deeply: in more than {MAX_DEPTH} lists and mappings")
        if isinstance(value, dict):
            return {key: self.copy(item, depth + 1) for key, item in value.items()}
        return [self.copy(item, depth + 1) for item in value] if isinstance(value, list) else value
