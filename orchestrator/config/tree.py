"""Trees of settings: the plain form that YAML and JSON have, and the read-only form of a checked configuration."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated

from pydantic import AfterValidator, PlainSerializer

Tree = dict[str, object]


class FrozenTree(Mapping[str, object]):
    """A tree that cannot be written to, at any depth: its mappings are frozen trees, and its lists are tuples.

    Example:
        >>> frozen = FrozenTree({"loss": {"name": "ldam"}, "layers": [1, 2]})
        >>> frozen["layers"]
        (1, 2)
        >>> frozen["loss"]["name"] = "focal"
        Traceback (most recent call last):
        TypeError: 'FrozenTree' object does not support item assignment
    """

    __slots__ = ("_items",)

    def __init__(self, tree: Mapping[str, object] = MappingProxyType({})) -> None:
        self._items = MappingProxyType({name: _freeze(value) for name, value in tree.items()})

    def __getitem__(self, name: str) -> object:
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __eq__(self, other: object) -> bool:
        """Return whether both state the same, ``other`` in lists or in tuples."""
        return isinstance(other, Mapping) and thaw(self) == thaw(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(thaw(self))

    def __reduce__(self) -> tuple[type["FrozenTree"], tuple[Tree]]:
        return FrozenTree, (thaw(self),)


def thaw(tree: Mapping[str, object]) -> Tree:
    """Return a plain copy of a tree, with dicts and lists that the caller may write to.

    Example:
        >>> thaw(FrozenTree({"layers": [1, 2]}))
        {'layers': [1, 2]}
    """
    return {name: _thaw(value) for name, value in tree.items()}


def _freeze(value: object) -> object:
    if isinstance(value, Mapping):
        return FrozenTree(value)
    return tuple(map(_freeze, value)) if isinstance(value, list | tuple) else value


def _thaw(value: object) -> object:
    if isinstance(value, Mapping):
        return thaw(value)
    return list(map(_thaw, value)) if isinstance(value, list | tuple) else value


# Fields of a configuration: a mapping or list of the file, read-only after validation and plain again when dumped.
TreeField = Annotated[Mapping[str, object], AfterValidator(FrozenTree), PlainSerializer(thaw)]
TreesField = Annotated[
    Sequence[TreeField], AfterValidator(tuple), PlainSerializer(lambda trees: [thaw(tree) for tree in trees])
]
TextsField = Annotated[Sequence[str], AfterValidator(tuple), PlainSerializer(list)]
