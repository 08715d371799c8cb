"""What is wrong with a user's settings, in plain words: dotted field, value, rule, and the nearest valid name.

pydantic finds the mistakes; the words come from the fields' own types, because pydantic reports a union once per branch
and in the language of its branches. Knows the types of a configuration, but nothing of sweeps, files or distributions.
"""

import difflib
import json
import types
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from tailsweep.trainables.errors import InputError

Path = tuple[str | int, ...]  # ("stage_one", "loss", "scale"); a number is a place in a list


class SweepConfigError(InputError):
    """Everything found wrong with one file of settings, at once.

    ``source`` is the file, ``mistakes`` has one line each.
    """

    def __init__(self, source: str, mistakes: Sequence[str]) -> None:
        assert mistakes
        self.source = source
        self.mistakes = list(mistakes)
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        super().__init__("\n".join([f"{source}: {count}", *(f"  {mistake}" for mistake in mistakes)]))


class Mistake(NamedTuple):
    path: Path  # the field; () for the whole
    text: str  # without the path

    def __str__(self) -> str:
        steps = [step if isinstance(step, str) and step.isprintable() else show(step) for step in self.path]
        return f"{'.'.join(steps)}: {self.text}" if self.path else self.text

    def is_within(self, path: Path) -> bool:
        """Whether the mistake is at ``path`` or below it."""
        return self.path[: len(path)] == path


def find_mistakes(model: type[BaseModel], tree: object) -> list[Mistake]:
    """All that ``model`` has against ``tree``, at most one mistake per field. Types are strict: ``"3"`` is text."""
    try:
        model.model_validate(tree, strict=True)
    except ValidationError as error:
        details = error.errors(include_url=False)
    else:
        return []
    errors_at: dict[Path, list[ErrorDetails]] = {}
    for detail in details:
        errors_at.setdefault(_field(detail, tree), []).append(detail)
    mistakes = [
        Mistake(path, _words(model, tree, path, errors))
        for path, errors in errors_at.items()
        # A union is tried branch by branch; where a mapping was written, the branch that looked inside it says more.
        if not (isinstance(_value(tree, path), dict) and any(_is_below(other, path) for other in errors_at))
    ]
    return [mistake for mistake in mistakes if not _is_meant_by_another(mistake, errors_at)]


def in_file_order(mistakes: Iterable[Mistake], tree: object) -> list[Mistake]:
    """The mistakes in the order in which ``tree`` states the fields; what it does not state comes last."""

    def place(mistake: Mistake) -> list[int]:
        places = []
        for depth, step in enumerate(mistake.path):
            stated = _value(tree, mistake.path[:depth])
            names = list(stated) if isinstance(stated, dict) else []
            places.append(step if isinstance(step, int) else names.index(step) if step in names else len(names))
        return places

    return sorted(mistakes, key=place)


def did_you_mean(word: object, valid: Iterable[str]) -> str:
    """``; did you mean "pooler"?``, or the list of what is valid where nothing is near."""
    names = list(valid)
    near = difflib.get_close_matches(str(word), names, n=1)
    return f'; did you mean "{near[0]}"?' if near else f"; valid are {', '.join(names)}"


def show(value: object) -> str:
    """A value as one would write it in the file, cut short."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


class Alternative(NamedTuple):
    """One member of a field's union: ``Literal["all"]``, a section, ``float`` ..."""

    type: Any
    constraints: tuple[Any, ...] = ()  # objects with gt, ge, lt, le, min_length


def alternatives(model: type[BaseModel], path: Path, tree: object) -> list[Alternative]:
    """What may stand at ``path``, empty where there is no such field.

    ``tree`` decides where it must: below a loss named ``ldam`` only LDAM's fields exist.
    """
    found = [Alternative(model)]
    for depth, step in enumerate(path):
        written = _value(tree, path[:depth])
        found = [below for alternative in found for below in _below(alternative, step, written)]
    return found


def _below(alternative: Alternative, step: str | int, written: object) -> list[Alternative]:
    if get_origin(alternative.type) is list:
        return _members(get_args(alternative.type)[0]) if isinstance(step, int) else []
    if get_origin(alternative.type) is dict:
        return _members(get_args(alternative.type)[1])
    if not _is_section(alternative.type) or not _is_meant(alternative.type, written):
        return []
    field = alternative.type.model_fields.get(step)
    return [] if field is None else _members(field.annotation, tuple(field.metadata))


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _is_meant(section: type[BaseModel], written: object) -> bool:
    """Not where a name written in the mapping contradicts the section's own (``name: ldam``)."""
    if not isinstance(written, dict):
        return True
    fixed = {name: get_args(field.annotation) for name, field in section.model_fields.items() if _is_fixed(field)}
    return all(written.get(name, value) == value for name, (value,) in fixed.items())


def _is_fixed(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1


def _members(annotation: Any, constraints: tuple[Any, ...] = ()) -> list[Alternative]:
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *extra = get_args(annotation)
        flat = [part for item in extra for part in (item.metadata if isinstance(item, FieldInfo) else [item])]
        return _members(inner, (*constraints, *flat))
    if origin in (Union, types.UnionType):
        return [member for part in get_args(annotation) for member in _members(part, constraints)]
    return [Alternative(annotation, constraints)]


def _field(detail: ErrorDetails, tree: object) -> Path:
    """The field an error is about: pydantic's location without the names of union branches."""
    path: Path = ()
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


def _value(tree: object, path: Path) -> Any:
    """What is written at ``path``, None where nothing is."""
    value: Any = tree
    for step in path:
        value = value[step] if _has(value, step) else None
    return value


def _is_below(path: Path, other: Path) -> bool:
    return len(path) > len(other) and path[: len(other)] == other


def _is_meant_by_another(mistake: Mistake, errors_at: dict[Path, list[ErrorDetails]]) -> bool:
    """``top_layer: 1`` is one mistake: not also that ``top_layers`` is missing."""
    if not any(detail["type"] == "missing" for detail in errors_at[mistake.path]):
        return False
    *parent, name = mistake.path
    unknown = [
        str(path[-1])
        for path, errors in errors_at.items()
        if path[:-1] == tuple(parent) and errors[0]["type"] == "extra_forbidden"
    ]
    return bool(difflib.get_close_matches(str(name), unknown))


def _words(model: type[BaseModel], tree: object, path: Path, errors: Sequence[ErrorDetails]) -> str:
    kinds = {error["type"] for error in errors}
    if kinds == {"extra_forbidden"}:
        parents = alternatives(model, path[:-1], tree)
        return f"unknown field{did_you_mean(path[-1], _field_names(parents, _value(tree, path[:-1])))}"
    if "value_error" in kinds:  # a rule of ours, which found its own words
        return next(str(error["ctx"]["error"]) for error in errors if error["type"] == "value_error")
    tag = kinds & {"union_tag_invalid", "union_tag_not_found"}
    written = _value(tree, path)
    # Every branch of a tagged union has a tag of its own: look at them all, as if none were written.
    found = alternatives(model, path, None if tag else tree)
    rule = _rule(found)
    if kinds & {"missing", "union_tag_not_found"}:
        return f"missing, but must be {rule}"
    names = [str(value) for member in found if get_origin(member.type) is Literal for value in get_args(member.type)]
    near = difflib.get_close_matches(written, names, n=1) if isinstance(written, str) else []
    remedy = f'; did you mean "{near[0]}"?' if near else ""
    if any(member.type is str for member in found) and isinstance(written, bool | int | float):
        remedy = f'; if it is meant as text, write "{show(written)}" in quotes'
    return f"is {show(written)}, but must be {rule}{remedy}"


def _field_names(parents: Iterable[Alternative], written: object) -> list[str]:
    meant = [parent.type for parent in parents if _is_section(parent.type) and _is_meant(parent.type, written)]
    return list(dict.fromkeys(name for section in meant for name in section.model_fields))


def _rule(found: Sequence[Alternative]) -> str:
    """``one of head, pooler, all or {top_layers: k}``."""
    names = [str(name) for member in found if get_origin(member.type) is Literal for name in get_args(member.type)]
    literals = [f"one of {', '.join(names)}" if len(names) > 1 else names[0]] if names else []
    # Any number says that a whole one will do.
    others = [member for member in found if not (member.type is int and member._replace(type=float) in found)]
    return " or ".join(literals + [_kind(member) for member in others if get_origin(member.type) is not Literal])


def _kind(member: Alternative) -> str:
    """The words for one type with its bounds."""
    if _is_section(member.type):
        return _form(member.type)
    if get_origin(member.type) is list:
        return f"a list of {_kind(_members(get_args(member.type)[0])[0])}"
    words = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        type(None): "null",
    }.get(member.type, "a mapping")
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
    """``{top_layers: k}``; of a tagged section the tag, ``{name: ldam}``; one of many fields is only "a mapping"."""
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
