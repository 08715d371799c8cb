"""Audit the labels of a file before anything is trained: are they the classes that their owner means?

Scores that average over classes are false where one class is written in several ways, where a label is several classes
at once, or where most of a rare class cannot be used.
"""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from tailsweep.trainables.config.data import AuditConfig
from tailsweep.trainables.errors import DataError

JOINED_BY = (",", ";", "|", "/", "+", "&")  # what stands between the classes of a label that is several
LISTED_BY = (",", ";", "|")  # of these, what stands in no name that is not a list
FEW = 20  # rows, below which a column of different labels may still be one of classes


def plain_label(name: str) -> str:
    r"""Return what two spellings of one class have in common.

    Composed characters (Unicode NFC), blanks of one kind and none around, no invisible characters, no case.

    Example:
        >>> plain_label(" Neg\u200b\u00a0ative") == plain_label("neg ative")
        True
    """
    return clean_label(name).casefold()


def clean_label(name: str) -> str:
    """Return a label without what does not show: composed, without invisible characters and blanks around."""
    visible = "".join(character for character in name if unicodedata.category(character) not in ("Cf", "Cc"))
    return " ".join(unicodedata.normalize("NFC", visible).split())


def label_variants(counts: Mapping[str, int]) -> list[list[str]]:
    """Return the groups of labels that are one class, each the most frequent first.

    Example:
        >>> label_variants({"neg": 3, "Neg": 5, "pos": 8})
        [['Neg', 'neg']]
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for name in counts:
        groups[plain_label(name)].append(name)
    return [sorted(group, key=lambda name: (-counts[name], name)) for group in groups.values() if len(group) > 1]


def multi_labels(counts: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """Return the labels that are several classes, and these.

    They are those whose parts are all labels by themselves; and all that have parts, where most labels do and the
    same parts come again and again.

    Example:
        >>> multi_labels({"a": 5, "b": 4, "a, b": 1})
        {'a, b': ('a', 'b')}
    """
    single = {plain_label(name) for name in counts}
    joined: dict[str, tuple[str, ...]] = {}
    for separator in JOINED_BY:
        parts = {name: _parts(name, separator) for name in counts if separator in name}
        parts = {name: classes for name, classes in parts.items() if len(classes) > 1}
        joined |= {
            name: classes for name, classes in parts.items() if all(plain_label(part) in single for part in classes)
        }
        if separator in LISTED_BY and len(parts) * 2 >= len(counts):
            uses = Counter(part for classes in parts.values() for part in classes)
            if len(uses) <= len(parts) and all(count > 1 for count in uses.values()):
                joined |= parts
    return joined


def _parts(name: str, separator: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in name.split(separator) if part.strip())


def are_identifiers(counts: Mapping[str, int]) -> bool:
    """Return whether most labels are of a single example: they name examples, or are numbers, and no classes."""
    return sum(counts.values()) >= FEW and sum(count == 1 for count in counts.values()) * 2 > sum(counts.values())


def audit_labels(
    labels: Iterable[Sequence[str]], audit: AuditConfig, column: str
) -> tuple[dict[str, str | None], list[str]]:
    """Decide what becomes of each label: another spelling, or None for those to drop.

    Args:
        labels: of each source.
        audit: what to do.
        column: the name of the label column.

    Returns:
        The new name of every label that does not stay what it is; and what was done, in words.

    Raises:
        DataError: Labels are not the classes they seem to be, and the configuration does not say what to do.
    """
    counts = Counter(name for part in labels for name in part)
    changed: dict[str, str | None] = {}
    notes: list[str] = []
    if audit.identifiers == "refuse" and are_identifiers(counts):
        once = sum(count == 1 for count in counts.values())
        raise DataError(
            f'data.label_column is "{column}", but {once:,} of its {len(counts):,} labels have one example '
            f"({_quoted(list(counts)[:3])}): it seems to hold identifiers or numbers; name the column of the classes, "
            "or set data.audit.identifiers: keep"
        )
    groups = label_variants(counts)
    described = "; ".join(" = ".join(f"{_quoted([name])} ({counts[name]:,})" for name in group) for group in groups[:5])
    if groups and audit.label_variants == "refuse":
        raise DataError(
            f'data.label_column: {sum(map(len, groups)):,} labels of "{column}" are {_classes(len(groups))} written in '
            f"several ways: {described}\n    set data.audit.label_variants: merge to make one class of each, or keep "
            "if they are different classes"
        )
    if groups and audit.label_variants == "merge":
        for group in groups:
            changed |= dict.fromkeys(group, clean_label(group[0]))
        notes.append(f"data.audit: labels written in several ways were merged: {described}")
    joined = multi_labels(counts)
    if joined and audit.multi_label != "keep":
        count = sum(counts[name] for name in joined)
        if audit.multi_label == "refuse":
            name, parts = next(iter(joined.items()))
            raise DataError(
                f'data.label_column: {count:,} examples have several classes in "{column}", such as {_quoted([name])} '
                f"({' and '.join(parts)}), but each example has one class here\n    set data.audit.multi_label: drop "
                "to leave them out, or keep if each such label is a class of its own"
            )
        changed |= dict.fromkeys(joined)
        notes.append(f"data.audit: {count:,} examples with several classes were left out")
    return changed, notes


def audit_dropped(kept: Mapping[str, int], dropped: Mapping[str, int], audit: AuditConfig, called: str) -> str:
    """Check that no class has lost most of its examples because they cannot be used.

    Args:
        kept: how many examples of each class can be used.
        dropped: how many cannot.
        audit: how many may be lost.
        called: the setting of the source, such as ``data.train``.

    Returns:
        Which classes have lost some, in words; "" if none has.

    Raises:
        DataError: A class has lost more than it may.
    """
    if not dropped:
        return ""
    shares = {name: count / (count + kept.get(name, 0)) for name, count in dropped.items()}
    worst = sorted(shares, key=lambda name: (-shares[name], name))
    described = ", ".join(
        f"{dropped[name]:,} of {dropped[name] + kept.get(name, 0):,} of {_quoted([name])}" for name in worst[:5]
    )
    lost = [name for name in worst if shares[name] > audit.max_class_dropped_fraction]
    if lost:
        raise DataError(
            f"{called}: the examples that cannot be used are most of a class: {described}\n    repair the file, or "
            f"raise data.audit.max_class_dropped_fraction ({audit.max_class_dropped_fraction:g})"
        )
    return f"; by class {described}"


def _classes(count: int) -> str:
    return "one class" if count == 1 else f"{count:,} classes"


def _quoted(names: Sequence[str]) -> str:
    """Show labels so that what does not show can be seen."""
    return ", ".join(
        '"'
        + "".join(
            character if character.isprintable() else character.encode("unicode_escape").decode() for character in name
        )
        + '"'
        for name in names
    )
