"""A file of paraphrases: which of its rows paraphrase which training row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tailsweep.trainables.config.data import DataConfig, Paraphrases
from tailsweep.trainables.data.sources import read_source
from tailsweep.trainables.data.splits import check_labels_seen, column_of, usable_rows
from tailsweep.trainables.errors import DataError

DEFAULT_SOURCE = Paraphrases.model_fields["source"].default


@dataclass(frozen=True)
class ParaphrasesRead:
    """The rows of a file that may be trained on."""

    texts: list[str]
    labels: list[int]
    sources: list[int]  # number of the training row; -1: the file does not say
    without_source: int  # rows left out: what they paraphrase is no training row of their class
    notes: list[str]


def read_paraphrases(
    config: DataConfig, asked: Paraphrases, texts: Sequence[str], labels: Sequence[int], label_names: Sequence[str],
    cache_dir: Path | None,
) -> ParaphrasesRead:  # fmt: skip
    """
    Args:
        config: that ``asked`` is the augmentation of.
        texts, labels: the training rows; labels are indices into ``label_names``.

    Raises:
        DataError: the file cannot be used, or has a class that no training row has.
    """
    notes: list[str] = []
    dataset = read_source(asked.file, "augmentation.file", cache_dir)
    columns = {
        "text" if asked.text is None else "augmentation.text": asked.text or config.text,
        "label" if asked.label is None else "augmentation.label": asked.label or config.label,
    }
    rows, kept = usable_rows(dataset, "augmentation.file", asked.file, columns, config.max_dropped, notes)
    check_labels_seen(rows, "augmentation.file", tuple(label_names))
    index = {name: number for number, name in enumerate(label_names)}
    of_rows = [index[name] for name in rows.labels]
    if asked.source == DEFAULT_SOURCE and asked.source not in dataset.column_names:
        notes.append(
            f'data.augmentation.file: "{asked.file}" has no column "{asked.source}", so that nobody can tell whether a '
            "row of it paraphrases a validation or test row: if some do, the scores are too good"
        )
        return ParaphrasesRead(rows.texts, of_rows, [-1] * len(of_rows), 0, notes)
    column = column_of(dataset, asked.source, "augmentation.source", "augmentation.file")
    numbers = _numbers(texts, labels)
    sources = [numbers.get((column[row], label)) for row, label in zip(kept, of_rows, strict=True)]
    known = [place for place, source in enumerate(sources) if source is not None]
    if not known:
        raise DataError(
            f'data.augmentation.source is "{asked.source}", but no row of "{asked.file}" has the text of a '
            "training row of its class there: the column must hold that text, character by character"
        )
    return ParaphrasesRead(
        [rows.texts[place] for place in known],
        [of_rows[place] for place in known],
        [source for source in sources if source is not None],
        len(sources) - len(known),
        notes,
    )


def _numbers(texts: Sequence[str], labels: Sequence[int]) -> Mapping[tuple[str, int], int]:
    """Of each text and class the first training row that has both."""
    numbers: dict[tuple[str, int], int] = {}
    for number, row in enumerate(zip(texts, labels, strict=True)):
        numbers.setdefault(row, number)
    return numbers
