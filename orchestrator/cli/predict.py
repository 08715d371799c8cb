"""Classify the rows of a file with a model folder, without Ray.

Class names, maximum length and weights come from the folder; what ``postprocess`` fitted is part of the weights. Rows
keep their order and their columns.
"""

import base64
import itertools
import logging
import os
import sys
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import datasets
import numpy as np
from numpy.typing import NDArray
from tailsweep.orchestrator.config.errors import did_you_mean, find_issues, printable
from tailsweep.orchestrator.config.redaction import HINT, has_a_secret
from tailsweep.orchestrator.config.yaml_io import parse_yaml
from tailsweep.trainables.config.data import FileFormat
from tailsweep.trainables.data.rows import join_texts, listed
from tailsweep.trainables.data.sources import quiet_datasets, read_file
from tailsweep.trainables.errors import InputError, describe_error
from tailsweep.trainables.readers.columns import Wanted
from tailsweep.trainables.readers.files import FileRows
from tailsweep.trainables.readers.locations import DataFile, remote_files
from tailsweep.trainables.storage.filesystem import download, open_location
from tailsweep.trainables.text_classifiers import open_text_classifier

logger = logging.getLogger(__name__)

PREDICTION = "prediction"
CONFIDENCE = "confidence"  # the predicted class's probability
PROBABILITY = "probability/"  # followed by the class

OUTPUTS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


@dataclass(frozen=True)
class _Added:
    """What is added to the rows of a file: None where a row has no text."""

    columns: dict[str, tuple[list[str | None] | list[float | None], str]]  # values and their type, by name

    @classmethod
    def from_scores(cls, scores: NDArray[np.float64], known: NDArray[np.bool_], names: list[str], each: bool) -> Self:
        """Choose the class of each row by its probabilities (n, C), where they are known."""
        best = scores.argmax(axis=1)

        def numbers(values: NDArray[np.float64]) -> list[float | None]:
            return [value if given else None for value, given in zip(values.tolist(), known, strict=True)]

        columns: dict[str, tuple[list[str | None] | list[float | None], str]] = {
            PREDICTION: ([names[i] if given else None for i, given in zip(best, known, strict=True)], "string"),
            CONFIDENCE: (numbers(scores[np.arange(len(scores)), best]), "float64"),
        }
        if each:
            columns |= {PROBABILITY + name: (numbers(scores[:, i]), "float64") for i, name in enumerate(names)}
        return cls(columns)


@dataclass(frozen=True)
class TextColumns:
    """Where the texts are, as ``data.text_column`` and ``data.text_pair`` say it for a sweep."""

    names: tuple[str, ...] = ("text",)
    are_pair: bool = False


def predict(
    model_folder: str | Path,
    file: str,
    text: TextColumns,
    output: Path | None,
    probabilities: bool,
    file_format: Sequence[str] = (),
) -> None:
    """Write the rows of ``file`` with the columns above to ``output``, completely or not at all.

    There is a row for each record of the file, in its order, with its own columns. A row whose text is missing or
    blank keeps its place and gets no prediction.

    Args:
        model_folder: A folder or pyarrow URI.
        file: A CSV, TSV, JSON, Parquet or Excel file, compressed or not; or a URI of one.
        text: The columns with the text.
        output: None: write CSV to standard output.
        probabilities: Add a column for each class.
        file_format: Fields of ``data.format`` that say how ``file`` is written, such as ``separator=;``.

    Raises:
        InputError: The folder, the file, its columns or the output cannot be used.
    """
    if output is not None:
        _check_output(output, file)
    with tempfile.TemporaryDirectory(prefix="tailsweep-") as temporary:
        if text.are_pair and len(text.names) != 2:
            raise InputError(f"--pair needs --text-column twice, but it names {', '.join(text.names)}")
        rows = _read(file, text.names, _parse_format(file_format))
        folder = _local_folder(str(model_folder), Path(temporary) / "model")
        classifier = open_text_classifier(folder)
        names = list(classifier.class_names)
        added = [PREDICTION, CONFIDENCE, *(PROBABILITY + name for name in names if probabilities)]
        if clashes := [name for name in added if name in rows.names]:
            raise InputError(f'FILE: "{file}" has a column {clashes[0]} already: rename it or drop it')
        _check_names(rows.names, output)

        texts, seconds = join_texts([_texts(rows.dataset, name, file) for name in text.names], text.are_pair)
        known = np.array([bool(first.strip() or second.strip()) for first, second in zip(texts, seconds, strict=True)])
        scores = np.zeros((len(texts), len(names)))
        if known.any():
            given = [list(itertools.compress(part, known)) for part in (texts, seconds)]
            scores[known] = classifier.probabilities(given[0], given[1] if text.are_pair else None)
        table = _Added.from_scores(scores, known, names, probabilities)
        with quiet_datasets():
            _write(rows, table, output)
    if not known.all():
        logger.warning(f"{len(texts) - known.sum():,} of {len(texts):,} rows have no text, and no prediction")


def _parse_format(fields: Sequence[str]) -> FileFormat:
    """Return what the fields of ``--format`` say.

    Raises:
        InputError: One of them is none, or has a value that it cannot have.
    """
    tree: dict[str, object] = {}
    for field in fields:
        name, equals, value = field.partition("=")
        if not equals:
            raise InputError(f'--format is "{field}", but must be FIELD=VALUE, such as separator=";" or header=false')
        tree[name.strip()] = value if value.strip() == "" or name.strip() == "separator" else parse_yaml(value)
    if tree.get("separator") == "\\t":
        tree["separator"] = "\t"  # as shells leave it
    if issues := find_issues(FileFormat, tree):
        raise InputError("; ".join(f"--format {issue}" for issue in issues))
    return FileFormat.model_validate(tree)


def _local_folder(location: str, copy: Path) -> Path:
    """Return a local folder as it is, and download a URI to ``copy``."""
    if "://" not in location:
        return Path(location)
    if has_a_secret(location):
        raise InputError(f"DIR: {HINT}")
    try:
        download(*open_location(location), copy)
    except (OSError, ValueError) as error:
        raise InputError(f'DIR: "{location}" cannot be read: {describe_error(error)}') from None
    return copy


def _read(file: str, text_columns: tuple[str, ...], file_format: FileFormat) -> FileRows:
    location = DataFile.local(Path(file).expanduser())
    if "://" in file:
        if has_a_secret(file):
            raise InputError(f"FILE: {HINT}")
        location, *others = remote_files(file, "FILE")
        if others:
            raise InputError(f'FILE: "{file}" stands for {1 + len(others)} files: name one')
    elif not Path(file).expanduser().is_file():
        raise InputError(f'FILE: there is no file "{file}"')
    with quiet_datasets():
        rows = read_file(location, "FILE", file_format, Wanted(text_columns, None, text_columns == ("text",)))
    if rows.form is not None:
        logger.warning(f'FILE: "{file}" was read as: {printable(rows.form)} (--format sets it)')
    if rows.too_long:
        lines = listed([f"{line:,}" for line in rows.too_long], 5)
        raise InputError(
            f'FILE: {len(rows.too_long):,} records of "{file}" have more fields than it has columns, in lines {lines}: '
            "quote their fields, or say how the file is written with --format"
        )
    columns = rows.dataset.column_names
    for name in text_columns:
        if name not in columns:
            raise InputError(
                f'--text-column is "{name}", but the columns of "{file}" are {", ".join(rows.names)}'
                f"{did_you_mean(name, columns)}"
            )
        kind = getattr(rows.dataset.features[name], "dtype", "")
        if kind not in ("string", "large_string", "null"):
            raise InputError(
                f'--text-column: the column "{name}" of "{file}" holds {kind or "no text"}, but must hold text'
            )
    return rows


def _check_names(names: Sequence[str], output: Path | None) -> None:
    """Refuse an output that cannot have a name twice, as a CSV file can."""
    twice = [name for name in names if names.count(name) > 1]
    if twice and output is not None and OUTPUTS[output.suffix.lower()] != "csv":
        raise InputError(
            f'--output: FILE has several columns "{twice[0]}", which a {output.suffix} file cannot have: write CSV'
        )


def _texts(rows: datasets.Dataset, text_column: str, file: str) -> list[str | None]:
    try:
        texts: list[str | None] = rows.select_columns([text_column]).with_format(None)[:][text_column]
    except UnicodeDecodeError as error:  # of a damaged Parquet file
        raise InputError(
            f'--text-column: the column "{text_column}" of "{file}" holds bytes that are not UTF-8'
        ) from error
    return texts


def _check_output(output: Path, file: str) -> None:
    """Refuse an output that cannot be written before any prediction."""
    if output.suffix.lower() not in OUTPUTS:
        raise InputError(f'--output: the type of "{output}" must be one of {", ".join(OUTPUTS)}')
    if output.exists() and os.path.exists(file) and output.samefile(file):
        raise InputError(f'--output is "{output}", which is FILE: name another file')
    if output.is_dir() or not output.absolute().parent.is_dir():
        problem = "is a folder" if output.is_dir() else "lies in a folder that does not exist"
        raise InputError(f'--output: "{output}" {problem}: name a file in an existing folder')


def _write(rows: FileRows, added: _Added, output: Path | None) -> None:
    dataset = rows.dataset
    for name, (values, dtype) in added.columns.items():
        dataset = dataset.add_column(name, values, feature=datasets.Value(dtype))
    kind = "csv" if output is None else OUTPUTS[output.suffix.lower()]
    if kind != "parquet":
        dataset = _with_bytes_as_text(dataset)
    header = [*rows.names, *added.columns]
    if output is None:
        try:
            dataset.to_csv(sys.stdout.buffer, index=False, header=header)
            sys.stdout.flush()
        except BrokenPipeError:  # `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    aside = output.with_name(f".{output.name}.{uuid.uuid4().hex}.tmp")
    try:
        with aside.open("wb") as file:
            if kind == "parquet":
                dataset.to_parquet(file)
            elif kind == "json":
                dataset.to_json(file, force_ascii=False)
            else:
                dataset.to_csv(file, index=False, header=header, sep="\t" if output.suffix.lower() == ".tsv" else ",")
        os.replace(aside, output)
    except OSError as error:
        raise InputError(f'--output: cannot write "{output}": {error.strerror or error}') from error
    finally:
        aside.unlink(missing_ok=True)


def _with_bytes_as_text(dataset: datasets.Dataset) -> datasets.Dataset:
    """Write the bytes of binary columns in base 64, as neither CSV nor JSON has any."""
    for name, feature in dataset.features.items():
        if getattr(feature, "dtype", "") in ("binary", "large_binary"):
            values = [None if value is None else base64.b64encode(value).decode() for value in dataset[name]]
            place = dataset.column_names.index(name)
            order = dataset.column_names
            dataset = dataset.remove_columns(name).add_column(name, values, feature=datasets.Value("string"))
            dataset = dataset.select_columns([*order[:place], name, *order[place + 1 :]])
            logger.warning(f'the bytes of the column "{name}" are written in base 64')
    return dataset
