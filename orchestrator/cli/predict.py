"""Classify the rows of a file with a model folder, without Ray.

Class names, maximum length and weights come from the folder; what ``postprocess`` fitted is part of the weights. Rows
keep their order and their columns.
"""

import logging
import os
import sys
import tempfile
import uuid
from pathlib import Path
from typing import cast

import datasets
import numpy as np
from numpy.typing import NDArray
from tailsweep.orchestrator.config.errors import did_you_mean
from tailsweep.orchestrator.config.redaction import HINT, has_a_secret
from tailsweep.trainables.data.sources import FILE_TYPES, quiet_datasets, read_file
from tailsweep.trainables.errors import InputError, describe_error
from tailsweep.trainables.inference import class_names, classify
from tailsweep.trainables.models.classifier import load_classifier
from tailsweep.trainables.storage.filesystem import download, open_location

logger = logging.getLogger(__name__)

PREDICTION = "prediction"
CONFIDENCE = "confidence"  # the predicted class's probability
PROBABILITY = "probability/"  # followed by the class


def predict(model_folder: str | Path, file: Path, text_column: str, output: Path | None, probabilities: bool) -> None:
    """Write the rows of ``file`` with the columns above to ``output``, completely or not at all.

    A row whose text is missing or blank keeps its place and gets no prediction.

    Args:
        model_folder: A folder or pyarrow URI.
        file: A CSV, TSV, JSON-lines or Parquet file.
        text_column: The column with the text.
        output: None: write CSV to standard output.
        probabilities: Add a column for each class.

    Raises:
        InputError: The folder, the file, its columns or the output cannot be used.
    """
    if output is not None:
        _check_output(output, file)
    with tempfile.TemporaryDirectory(prefix="tailsweep-") as temporary:
        rows = _read(file, text_column, Path(temporary))
        folder = _local_folder(str(model_folder), Path(temporary) / "model")
        model, tokenizer = load_classifier(folder)
        names = class_names(model, folder)
        added = [PREDICTION, CONFIDENCE, *(PROBABILITY + name for name in names if probabilities)]
        if clashes := [name for name in added if name in rows.column_names]:
            raise InputError(f'FILE: "{file}" has a column {clashes[0]} already: rename it or drop it')

        texts = _texts(rows, text_column, file)
        with_text = [row for row, text in enumerate(texts) if text is not None and text.strip()]
        scores = np.full((len(texts), len(names)), np.nan)
        if with_text:
            scores[with_text] = classify(model, tokenizer, [cast(str, texts[row]) for row in with_text])
        with quiet_datasets():
            _write(_with_columns(rows, scores, names, probabilities), output)
    if len(with_text) < len(texts):
        logger.warning(f"{len(texts) - len(with_text):,} of {len(texts):,} rows have no text, and no prediction")


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


def _read(file: Path, text_column: str, cache_dir: Path) -> datasets.Dataset:
    if not file.is_file():
        raise InputError(f'FILE: there is no file "{file}"')
    with quiet_datasets():
        rows = read_file(file, "FILE", cache_dir)
    if text_column not in rows.column_names:
        raise InputError(
            f'--text-column is "{text_column}", but "{file}" has no such column'
            f"{did_you_mean(text_column, rows.column_names)}"
        )
    kind = getattr(rows.features[text_column], "dtype", "")
    if kind not in ("string", "large_string", "null"):
        raise InputError(
            f'--text-column: the column "{text_column}" of "{file}" holds {kind or "no text"}, but must hold text'
        )
    return rows


def _texts(rows: datasets.Dataset, text_column: str, file: Path) -> list[str | None]:
    try:
        texts: list[str | None] = rows.select_columns([text_column]).with_format(None)[:][text_column]
    except UnicodeDecodeError as error:  # of a damaged Parquet file
        raise InputError(
            f'--text-column: the column "{text_column}" of "{file}" holds bytes that are not UTF-8'
        ) from error
    return texts


def _check_output(output: Path, file: Path) -> None:
    """Refuse an output that cannot be written before any prediction."""
    if output.suffix.lower() not in FILE_TYPES:
        raise InputError(f'--output: the type of "{output}" must be one of {", ".join(FILE_TYPES)}')
    if output.exists() and file.exists() and output.samefile(file):
        raise InputError(f'--output is "{output}", which is FILE: name another file')
    if output.is_dir() or not output.absolute().parent.is_dir():
        problem = "is a folder" if output.is_dir() else "lies in a folder that does not exist"
        raise InputError(f'--output: "{output}" {problem}: name a file in an existing folder')


def _with_columns(
    rows: datasets.Dataset, scores: NDArray[np.float64], names: list[str], probabilities: bool
) -> datasets.Dataset:
    """Add our columns to those of the file; None where a row has no text."""
    known = ~np.isnan(scores[:, 0])
    best = np.where(known, scores.argmax(axis=1), 0)

    def numbers(values: NDArray[np.float64]) -> list[float | None]:
        return [value if given else None for value, given in zip(values.tolist(), known, strict=True)]

    columns: dict[str, tuple[list[str | None] | list[float | None], str]] = {
        PREDICTION: ([names[i] if given else None for i, given in zip(best, known, strict=True)], "string"),
        CONFIDENCE: (numbers(scores[np.arange(len(scores)), best]), "float64"),
    }
    if probabilities:
        columns |= {PROBABILITY + name: (numbers(scores[:, i]), "float64") for i, name in enumerate(names)}
    for name, (values, dtype) in columns.items():
        rows = rows.add_column(name, values, feature=datasets.Value(dtype))
    return rows


def _write(rows: datasets.Dataset, output: Path | None) -> None:
    if output is None:
        try:
            rows.to_csv(sys.stdout.buffer, index=False)
            sys.stdout.flush()
        except BrokenPipeError:  # `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    kind = FILE_TYPES[output.suffix.lower()]
    aside = output.with_name(f".{output.name}.{uuid.uuid4().hex}.tmp")
    try:
        with aside.open("wb") as file:
            if kind == "parquet":
                rows.to_parquet(file)
            elif kind == "json":
                rows.to_json(file, force_ascii=False)
            else:
                rows.to_csv(file, index=False, sep="\t" if output.suffix.lower() == ".tsv" else ",")
        os.replace(aside, output)
    except OSError as error:
        raise InputError(f'--output: cannot write "{output}": {error.strerror or error}') from error
    finally:
        aside.unlink(missing_ok=True)
