"""Read a file of paraphrases, and find the training row that each of its rows paraphrases."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tailsweep.trainables.config.data import DataConfig, Paraphrases
from tailsweep.trainables.data.rows import RowColumns, column_of, usable_rows, wanted_columns
from tailsweep.trainables.data.sources import read_source
from tailsweep.trainables.data.splits import check_labels_seen
from tailsweep.trainables.errors import DataError

DEFAULT_SOURCE = Paraphrases.model_fields["source"].default


@dataclass(frozen=True)
class ParaphrasesRead:
    """The rows of a file of paraphrases that may be trained on."""

    texts: list[str]
    labels: list[int]
    sources: list[int]  # number of the training row; -1: the file does not say
    without_source: int  # rows left out: what they paraphrase is no training row of their class
    notes: list[str]


def read_paraphrases(
    config: DataConfig,
    augmentation: Paraphrases,
    texts: Sequence[str],
    labels: Sequence[int],
    label_names: Sequence[str],
) -> ParaphrasesRead:
    """Read the paraphrases of training rows.

    Args:
        config: The configuration that contains ``augmentation``.
        augmentation: The file and its columns.
        texts: The texts of the training rows.
        labels: Their labels, indices into ``label_names``.
        label_names: The classes.

    Raises:
        DataError: The file cannot be used, or has a class that no training row has.
    """
    notes: list[str] = []
    columns = RowColumns(
        config.text_columns if augmentation.text_column is None else (augmentation.text_column,),
        augmentation.label_column or config.label_column,
        "text_column" if augmentation.text_column is None else "augmentation.text_column",
        "label_column" if augmentation.label_column is None else "augmentation.label_column",
    )
    source = read_source(augmentation.file, "augmentation.file", config.format, wanted_columns(config, columns))
    dataset = source.dataset
    rows, kept = usable_rows(source, "augmentation.file", augmentation.file, columns, config, notes)
    check_labels_seen(rows, "augmentation.file", tuple(label_names))
    index = {name: number for number, name in enumerate(label_names)}
    row_labels = [index[name] for name in rows.labels]
    if augmentation.source == DEFAULT_SOURCE and augmentation.source not in dataset.column_names:
        notes.append(
            f'data.augmentation.file: "{augmentation.file}" has no column "{augmentation.source}", so that no one can '
            "tell whether a row of it paraphrases a validation or test row: if some do, the scores are too good"
        )
        return ParaphrasesRead(rows.texts, row_labels, [-1] * len(row_labels), 0, notes)
    column = column_of(dataset, augmentation.source, "augmentation.source", "augmentation.file")
    numbers = _row_numbers(texts, labels)
    sources = [numbers.get((column[row], label)) for row, label in zip(kept, row_labels, strict=True)]
    known = [place for place, source in enumerate(sources) if source is not None]
    if not known:
        raise DataError(
            f'data.augmentation.source is "{augmentation.source}", but no row of "{augmentation.file}" has the text of '
            "a training row of its class there: the column must hold that text, character by character"
        )
    return ParaphrasesRead(
        [rows.texts[place] for place in known],
        [row_labels[place] for place in known],
        [source for source in sources if source is not None],
        len(sources) - len(known),
        notes,
    )


def _row_numbers(texts: Sequence[str], labels: Sequence[int]) -> Mapping[tuple[str, int], int]:
    """Map each text and class to the first training row that has both."""
    numbers: dict[tuple[str, int], int] = {}
    for number, row in enumerate(zip(texts, labels, strict=True)):
        numbers.setdefault(row, number)
    return numbers
