"""What is wrong with a user's settings, in plain words: dotted field, value, rule, and the nearest valid name.

pydantic finds the errors; the words come from the fields' own types, because pydantic reports a union once per branch
and in the language of its branches. Knows the types of a configuration, but nothing of sweeps, files or distributions.
"""

import difflib
import json
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal, NamedTuple, TypeGuard, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from tailsweep.trainables.errors import InputError

FieldPath = tuple[str | int, ...]  # ("stage_one", "loss", "scale"); a number is a place in a list
LISTS, MAPPINGS = (list, Sequence), (dict, Mapping)  # the origins of such annotations


class SweepConfigError(InputError):
    """Everything found wrong with one file of settings, at once.

    ``source`` is the file, ``issues`` has one line each.
    """

    def __init__(self, source: str, issues: Sequence[str]) -> None:
        assert issues
        self.source = source
        self.issues = list(issues)
        count = "1 error" if len(issues) == 1 else f"{len(issues)} errors"
        super().__init__("\n".join([f"{source}: {count}", *(f"  {issue}" for issue in issues)]))


class ConfigIssue(NamedTuple):
    """One error of a configuration: the field and what is wrong with it."""

    path: FieldPath  # the field; () for the whole
    text: str  # without the path

    def __str__(self) -> str:
        steps = [step if isinstance(step, str) and step.isprintable() else show(step) for step in self.path]
        return f"{'.'.join(steps)}: {self.text}" if self.path else self.text

    def is_within(self, path: FieldPath) -> bool:
        """Return whether the issue is at ``path`` or below it."""
        return self.path[: len(path)] == path


def find_issues(model: type[BaseModel], tree: object) -> list[ConfigIssue]:
    """Return what ``model`` refuses in ``tree``, at most one issue per field. Types are strict: ``"3"`` is text."""
    try:
        model.model_validate(tree, strict=True)
    except ValidationError as error:
        details = error.errors(include_url=False)
    else:
        return []
    errors_at: dict[FieldPath, list[ErrorDetails]] = {}
    for detail in details:
        errors_at.setdefault(_field(detail, tree), []).append(detail)
    issues = [
        ConfigIssue(path, _words(model, tree, path, errors))
        for path, errors in errors_at.items()
        # A union is tried branch by branch; where a mapping was written, the branch that looked inside it says more.
        if not (isinstance(_value(tree, path), dict) and any(_is_below(other, path) for other in errors_at))
    ]
    return [issue for issue in issues if not _is_meant_by_another(issue, errors_at)]


def in_file_order(issues: Iterable[ConfigIssue], tree: object) -> list[ConfigIssue]:
    """Return the issues in the order in which ``tree`` states the fields; what it does not state comes last."""

    def place(issue: ConfigIssue) -> list[int]:
        places = []
        for depth, step in enumerate(issue.path):
            stated = _value(tree, issue.path[:depth])
            names = list(stated) if isinstance(stated, dict) else []
            places.append(step if isinstance(step, int) else names.index(step) if step in names else len(names))
        return places

    return sorted(issues, key=place)


def did_you_mean(word: object, valid: Iterable[str]) -> str:
    """Return ``; did you mean "pooler"?``, or the list of valid words if none is near."""
    names = list(valid)
    near = difflib.get_close_matches(str(word), names, n=1)
    return f'; did you mean "{near[0]}"?' if near else f"; valid are {', '.join(names)}"


def show(value: object) -> str:
    """Return a value as the file would state it, at most 80 characters of it."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def printable(text: str) -> str:
    r"""Return a text with its control characters escaped: a label from a file must not steer the user's terminal.

    Example:
        >>> printable("red \x1b[31m")
        'red \\x1b[31m'
    """
    return "".join(
        character if character.isprintable() or character in "\n\t" else character.encode("unicode_escape").decode()
        for character in text
    )


class Alternative(NamedTuple):
    """One member of a field's union: ``Literal["all"]``, a section, ``float`` ..."""

    type: object  # a class or a typing construct
    constraints: tuple[object, ...] = ()  # objects with gt, ge, lt, le, min_length


def alternatives(model: type[BaseModel], path: FieldPath, tree: object) -> list[Alternative]:
    """Return the types that may stand at ``path``; none if there is no such field.

    ``tree`` decides if it must: below a loss named ``ldam`` only LDAM's fields exist.
    """
    members = [Alternative(model)]
    for depth, step in enumerate(path):
        written = _value(tree, path[:depth])
        members = [below for member in members for below in _below(member, step, written)]
    return members


def _below(alternative: Alternative, step: str | int, written: object) -> list[Alternative]:
    if get_origin(alternative.type) in LISTS:
        return _members(get_args(alternative.type)[0]) if isinstance(step, int) else []
    if get_origin(alternative.type) in MAPPINGS:
        return _members(get_args(alternative.type)[1])
    if not _is_section(alternative.type) or not _is_meant(alternative.type, written):
        return []
    field = alternative.type.model_fields.get(str(step))
    return [] if field is None else _members(field.annotation, tuple(field.metadata))


def _is_section(annotation: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _is_meant(section: type[BaseModel], written: object) -> bool:
    """Not where a name written in the mapping contradicts the section's own (``name: ldam``)."""
    if not isinstance(written, dict):
        return True
    fixed = {name: get_args(field.annotation) for name, field in section.model_fields.items() if _is_fixed(field)}
    return all(written.get(name, value) == value for name, (value,) in fixed.items())


def _is_fixed(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1


def _members(annotation: object, constraints: tuple[object, ...] = ()) -> list[Alternative]:
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *extra = get_args(annotation)
        flat = [part for item in extra for part in (item.metadata if isinstance(item, FieldInfo) else [item])]
        return _members(inner, (*constraints, *flat))
    if origin in (Union, types.UnionType):
        return [member for part in get_args(annotation) for member in _members(part, constraints)]
    return [Alternative(annotation, constraints)]


def _field(detail: ErrorDetails, tree: object) -> FieldPath:
    """Return the field of an error: pydantic's location without the names of union branches."""
    path: FieldPath = ()
    for step in detail["loc"]:
        if _has(_value(tree, path), step):
            path = (*path, step)
    if detail["type"] == "missing":
        return (*path, detail["loc"][-1])
    if detail["type"].startswith("union_tag"):
        return (*path, detail["ctx"]["discriminator"].strip("'"))
    return path


def _has(value: object, step: str | int) -> bool:
    return (isinstance(value, dict) and step in value) or (isinstance(value, list) and isinstance(step, int))


def _value(tree: object, path: FieldPath) -> object:
    """Return what is written at ``path``, or None."""
    value = tree
    for step in path:
        if isinstance(value, dict):
            value = value.get(step)
        else:
            value = value[step] if isinstance(value, list) and isinstance(step, int) else None
    return value


def _is_below(path: FieldPath, other: FieldPath) -> bool:
    return len(path) > len(other) and path[: len(other)] == other


def _is_meant_by_another(issue: ConfigIssue, errors_at: dict[FieldPath, list[ErrorDetails]]) -> bool:
    """Return whether another issue explains this one: ``top_layer: 1`` also leaves ``top_layers`` missing."""
    if not any(detail["type"] == "missing" for detail in errors_at[issue.path]):
        return False
    *parent, name = issue.path
    unknown = [
        str(path[-1])
        for path, errors in errors_at.items()
        if path[:-1] == tuple(parent) and errors[0]["type"] == "extra_forbidden"
    ]
    return bool(difflib.get_close_matches(str(name), unknown))


def _words(model: type[BaseModel], tree: object, path: FieldPath, errors: Sequence[ErrorDetails]) -> str:
    kinds = {error["type"] for error in errors}
    if kinds == {"extra_forbidden"}:
        parents = alternatives(model, path[:-1], tree)
        return f"unknown field{did_you_mean(path[-1], _field_names(parents, _value(tree, path[:-1])))}"
    if "value_error" in kinds:  # a rule of ours, which found its own words
        return next(str(error["ctx"]["error"]) for error in errors if error["type"] == "value_error")
    tag = kinds & {"union_tag_invalid", "union_tag_not_found"}
    written = _value(tree, path)
    # Every branch of a tagged union has a tag of its own: look at them all, as if none were written.
    members = alternatives(model, path, None if tag else tree)
    rule = _rule(members)
    if kinds & {"missing", "union_tag_not_found"}:
        return f"missing, but must be {rule}"
    names = [str(value) for member in members if get_origin(member.type) is Literal for value in get_args(member.type)]
    near = difflib.get_close_matches(written, names, n=1) if isinstance(written, str) else []
    hint = f'; did you mean "{near[0]}"?' if near else ""
    if any(member.type is str for member in members) and isinstance(written, bool | int | float):
        hint = f'; if it is meant as text, write "{show(written)}" in quotes'
    return f"is {show(written)}, but must be {rule}{hint}"


def _field_names(parents: Iterable[Alternative], written: object) -> list[str]:
    meant = [parent.type for parent in parents if _is_section(parent.type) and _is_meant(parent.type, written)]
    return list(dict.fromkeys(name for section in meant for name in section.model_fields))


def _rule(members: Sequence[Alternative]) -> str:
    """Return ``one of head, pooler, all or {top_layers: k}``."""
    names = [str(name) for member in members if get_origin(member.type) is Literal for name in get_args(member.type)]
    literals = [f"one of {', '.join(names)}" if len(names) > 1 else names[0]] if names else []
    # Any number says that a whole one will do.
    others = [member for member in members if not (member.type is int and member._replace(type=float) in members)]
    return " or ".join(literals + [_kind(member) for member in others if get_origin(member.type) is not Literal])


def _kind(member: Alternative) -> str:
    """Return the words for one type with its bounds."""
    if _is_section(member.type):
        return _form(member.type)
    if get_origin(member.type) in LISTS:
        return f"a list of {_kind(_members(get_args(member.type)[0])[0])}"
    kinds: dict[object, str] = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        type(None): "null",
    }
    words = kinds.get(member.type, "a mapping")
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    bounds = [
        f"{sign} {getattr(constraint, name):.10g}"
        for name, sign in signs.items()
        for constraint in member.constraints
        if getattr(constraint, name, None) is not None and member.type in (int, float)
    ]
    if any(getattr(constraint, "min_length", None) for constraint in member.constraints):
        words = f"{words}, not empty"
    return " ".join([words, " and ".join(bounds)]) if bounds else words


def _form(section: type[BaseModel]) -> str:
    """Return ``{top_layers: k}``; for a tagged section its tag, ``{name: ldam}``; for many fields only "a mapping"."""
    tags = {name: field for name, field in section.model_fields.items() if _is_fixed(field)}
    if tags:
        return f"{{{', '.join(f'{name}: {_placeholder(field)}' for name, field in tags.items())}}}"
    if len(section.model_fields) > 4:
        return "a mapping"
    fields = section.model_fields.items()
    return f"{{{', '.join(f'{name}: {_placeholder(field)}' for name, field in fields)}}}"


def _placeholder(field: FieldInfo) -> str:
    if _is_fixed(field):
        return str(get_args(field.annotation)[0])
    return "k" if field.annotation is int else "..."
