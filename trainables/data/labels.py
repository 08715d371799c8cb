"""The classes that a column of labels names, the same whatever type of file it comes from."""

import datetime
import decimal
import math
import numbers
import re
import uuid
from collections.abc import Sequence

import datasets
from tailsweep.trainables.errors import DataError

INTEGRAL = re.compile(r"([+-]?\d+)\.0+")  # how pandas writes the integers of a column where some are missing


def label_names(
    values: Sequence[object], feature: object, column: str, called: str
) -> tuple[list[str | None], tuple[str, ...] | None]:
    """Return each row's class by name, None if it has none; and the names of a ClassLabel in their order.

    Strings are names as they are. Integers are written without a point, also where they are stored as floats. Dates
    and times are in ISO 8601, booleans ``true`` and ``false``.

    Args:
        values: of the column.
        feature: its type.
        column: its name.
        called: what messages begin with, such as ``data.train``.

    Raises:
        DataError: A value is no name of one class: a list, an object, bytes, a number beyond a ClassLabel's names.

    Example:
        >>> label_names([1.0, 2.0, None], None, "label", "data.train")
        (['1', '2', None], None)
        >>> label_names([True, datetime.date(2026, 1, 31), "a "], None, "label", "data.train")
        (['true', '2026-01-31', 'a '], None)
    """
    if isinstance(feature, datasets.ClassLabel):
        beyond = [value for value in values if isinstance(value, int) and value >= len(feature.names)]
        if beyond:
            raise DataError(
                f'{called}: column "{column}" has the label {beyond[0]}, but its ClassLabel names only the labels 0 to '
                f"{len(feature.names) - 1}: write the file again with a name for every label, or with plain integers"
            )
        # The hub marks rows without a label by -1.
        return [feature.names[value] if isinstance(value, int) and value >= 0 else None for value in values], tuple(
            feature.names
        )
    given = [value for value in values if not _is_missing(value)]
    are_integral = all(isinstance(value, numbers.Integral) or _is_integral(value) for value in given)
    are_days = all(isinstance(value, datetime.date) and _has_no_time(value) for value in given)
    names: list[str | None] = []
    for value in values:
        if _is_missing(value):
            names.append(None)
        elif isinstance(value, str):
            names.append(INTEGRAL.sub(r"\1", value) if are_integral else value)
        elif isinstance(value, bool):
            names.append(str(value).lower())
        elif isinstance(value, float):
            names.append(str(int(value)) if are_integral else repr(value))
        elif isinstance(value, datetime.datetime):
            names.append(value.date().isoformat() if are_days else value.isoformat(" "))
        elif isinstance(value, datetime.date | datetime.time):
            names.append(value.isoformat())
        elif isinstance(value, int | decimal.Decimal | uuid.UUID | datetime.timedelta):
            names.append(str(value))
        else:
            raise _wrong_label(value, column, called)
    return names, None


def _is_missing(value: object) -> bool:
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and not value.strip())


def _is_integral(value: object) -> bool:
    if isinstance(value, float):
        return value.is_integer()
    return isinstance(value, str) and INTEGRAL.fullmatch(value) is not None


def _has_no_time(value: datetime.date) -> bool:
    return not isinstance(value, datetime.datetime) or value.time() == datetime.time()


def _wrong_label(value: object, column: str, called: str) -> DataError:
    several = isinstance(value, list | tuple | dict)
    hint = "each example has one class here: keep one label of each" if several else "write them as strings"
    return DataError(
        f'{called}: the label column "{column}" holds the {type(value).__name__} {value!s:.40}, but labels must be '
        f"strings, numbers, booleans, dates or ClassLabel: {hint}"
    )
