"""The papers' recipes for making a data set imbalanced: labels -> the rows that stay.

Applied to training rows only, after the splits are made; never to validation or test. Rows are taken away, none is
copied or changed.
"""

import difflib
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tailsweep.trainables.config.data import Downsample, ImbalanceConfig, LongTailed


class ImbalanceError(ValueError):
    """The recipe does not fit the classes that are there."""


def imbalance_rows(labels: Sequence[str], config: ImbalanceConfig) -> NDArray[np.int64]:
    """Return the rows that stay, in ascending order.

    Args:
        labels: class of each training row, by name.
        config: the recipe. Within a class the rows that stay are a pandas sample with ``random_state=config.seed``.

    Raises:
        ImbalanceError: ``order`` does not name each class once, or a class has fewer rows than the recipe asks for.
    """
    classes = pd.Series(list(labels))
    counts = Counter(classes)
    order = _class_order(counts, config.order)
    kept = []
    for name, size in zip(order, kept_sizes([counts[name] for name in order], config), strict=True):
        rows = classes.index[classes == name].to_series()
        if size > len(rows):
            raise ImbalanceError(
                f'class "{name}" has {len(rows)} rows, but {config.kind} with ratio {config.ratio} asks for {size} of '
                "it: lower ratio, or move the class towards the end of order"
            )
        if size == 0:
            raise ImbalanceError(
                f'class "{name}" would keep 0 of its {len(rows)} rows, but must keep at least 1: raise ratio '
                f"(now {config.ratio})"
            )
        # All rows of a class are not a sample of them: a sample would only shuffle.
        kept.append(rows if size == len(rows) else rows.sample(n=size, random_state=config.seed))
    return np.sort(pd.concat(kept).to_numpy(dtype=np.int64))


def kept_sizes(sizes: Sequence[int], config: ImbalanceConfig) -> list[int]:
    """Rows each class is to keep; may ask for more than there are.

    Args:
        sizes: rows of each class now, in the recipe's order, the class to be largest first.
    """
    num_classes = len(sizes)
    if isinstance(config, Downsample):
        # Plain floor of the floating-point product, as the official code computes it (down_sample.py).
        return [sizes[0]] + [math.floor(sizes[0] * config.ratio)] * (num_classes - 1)
    if isinstance(config, LongTailed):
        # n_i = n_max * rho^(i / (n - 1)), Cao et al. 2019; Shi et al. 2022 print these rounded down.
        return [_floor(sizes[0] * config.ratio ** (i / max(1, num_classes - 1))) for i in range(num_classes)]
    # step: with an odd number of classes the middle one keeps its rows
    majority = list(sizes[: num_classes - num_classes // 2])
    return majority + [_floor(max(majority) * config.ratio)] * (num_classes // 2)


def _class_order(counts: Counter[str], order: Sequence[str] | None) -> list[str]:
    """All classes, the one to be largest first; by default by their number of rows, ties by name."""
    if order is None:
        return sorted(counts, key=lambda name: (-counts[name], name))
    for name in order:
        if name not in counts:
            near = difflib.get_close_matches(name, counts, n=1)
            raise ImbalanceError(
                f'order names the class "{name}", but no training row has it: '
                + (f'did you mean "{near[0]}"?' if near else f"the classes are {', '.join(sorted(counts))}")
            )
    missing = sorted(counts.keys() - set(order))
    if missing:
        raise ImbalanceError(
            f"order names {len(set(order))} of {len(counts)} classes, but must name each: add {', '.join(missing)}"
        )
    if len(order) > len(counts):
        twice = sorted(name for name, times in Counter(order).items() if times > 1)
        raise ImbalanceError(f"order names {', '.join(twice)} more than once, but must name each class once")
    return list(order)


def _floor(rows: float) -> int:
    """Round down, where 59.999999999 is a 60 that floating-point arithmetic missed."""
    return math.floor(rows + 1e-9)
