"""Classifies the rows of a file with a model folder: without Ray, on packed rows where the model takes them.

The folder's own class names, length and weights decide; what ``finish`` fitted lies in the weights. Rows keep their
order and their columns.
"""

import os
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
from numpy.typing import NDArray
from tailsweep.orchestrator.config.errors import did_you_mean
from tailsweep.orchestrator.config.redaction import REMEDY, has_a_secret
from tailsweep.trainables.data.sources import FILE_TYPES, quiet_datasets, read_file
from tailsweep.trainables.errors import InputError
from tailsweep.trainables.inference import class_names, classify
from tailsweep.trainables.models.classifier import load_classifier
from tailsweep.trainables.storage.filesystem import copy_here, open_location
from tailsweep.trainables.storage.retry import first_line

PREDICTION = "prediction"
CONFIDENCE = "confidence"  # the predicted class's probability
PROBABILITY = "probability/"  # followed by the class


def predict(model_folder: str | Path, file: Path, text: str, output: Path | None, probabilities: bool) -> None:
    """Write ``file`` with the columns above to ``output``, whole or not at all; None: as CSV to standard output.

    Args:
        model_folder: a folder or pyarrow URI.

    A row whose text is missing or blank keeps its place and gets no prediction: nothing can be said of it.

    Raises:
        InputError: the folder, the file, its columns or the output cannot be used.
    """
    if output is not None:
        _check_output(output, file)
    with tempfile.TemporaryDirectory(prefix="tailsweep-") as temporary:
        rows = _read(file, text, Path(temporary))
        folder = _folder_here(str(model_folder), Path(temporary) / "model")
        model, tokenizer = load_classifier(folder)
        names = class_names(model, folder)
        added = [PREDICTION, CONFIDENCE, *(PROBABILITY + name for name in names if probabilities)]
        if clashes := [name for name in added if name in rows.column_names]:
            raise InputError(f'FILE: "{file}" has a column {clashes[0]} already: rename it or drop it')

        texts = _texts(rows, text, file)
        told = [row for row, given in enumerate(texts) if given is not None and given.strip()]
        found = np.full((len(texts), len(names)), np.nan)
        if told:
            found[told] = classify(model, tokenizer, [cast(str, texts[row]) for row in told])
        with quiet_datasets():
            _write(_with_columns(rows, found, names, probabilities), output)
    if len(told) < len(texts):
        print(f"{len(texts) - len(told):,} of {len(texts):,} rows have no text, and no prediction", file=sys.stderr)


def _folder_here(location: str, copy: Path) -> Path:
    """A local folder itself, of a URI a copy."""
    if "://" not in location:
        return Path(location)
    if has_a_secret(location):
        raise InputError(f"DIR: {REMEDY}")
    try:
        copy_here(*open_location(location), copy)
    except (OSError, ValueError) as error:
        raise InputError(f'DIR: "{location}" cannot be read: {first_line(error)}') from None
    return copy


def _read(file: Path, text: str, cache_dir: Path) -> datasets.Dataset:
    if not file.is_file():
        raise InputError(f'FILE: there is no file "{file}"')
    with quiet_datasets():
        rows = read_file(file, "FILE", cache_dir)
    if text not in rows.column_names:
        raise InputError(f'--text is "{text}", but "{file}" has no such column{did_you_mean(text, rows.column_names)}')
    kind = getattr(rows.features[text], "dtype", "")
    if kind not in ("string", "large_string", "null"):
        raise InputError(f'--text: the column "{text}" of "{file}" holds {kind or "no text"}, but must hold text')
    return rows


def _texts(rows: datasets.Dataset, text: str, file: Path) -> list[str | None]:
    try:
        texts: list[str | None] = rows.select_columns([text]).with_format(None)[:][text]
    except UnicodeDecodeError as error:  # Parquet that is not what it says
        raise InputError(f'--text: the column "{text}" of "{file}" holds bytes that are not UTF-8') from error
    return texts


def _check_output(output: Path, file: Path) -> None:
    """Refuse what could not be written, before the time for predicting is spent."""
    if output.suffix.lower() not in FILE_TYPES:
        raise InputError(f'--output: the type of "{output}" must be one of {", ".join(FILE_TYPES)}')
    if output.exists() and file.exists() and output.samefile(file):
        raise InputError(f'--output is "{output}", which is FILE: name another file')
    if output.is_dir() or not output.absolute().parent.is_dir():
        what = "is a folder" if output.is_dir() else "lies in no folder that there is"
        raise InputError(f'--output: "{output}" {what}: name a file in an existing folder')


def _with_columns(
    rows: datasets.Dataset, found: NDArray[np.float64], names: list[str], probabilities: bool
) -> datasets.Dataset:
    """The file's columns and ours; None where nothing was found."""
    known = ~np.isnan(found[:, 0])
    best = np.where(known, found.argmax(axis=1), 0)

    def numbers(values: NDArray[np.float64]) -> list[float | None]:
        return [value if given else None for value, given in zip(values.tolist(), known, strict=True)]

    columns: dict[str, tuple[list[Any], str]] = {
        PREDICTION: ([names[i] if given else None for i, given in zip(best, known, strict=True)], "string"),
        CONFIDENCE: (numbers(found[np.arange(len(found)), best]), "float64"),
    }
    if probabilities:
        columns |= {PROBABILITY + name: (numbers(found[:, i]), "float64") for i, name in enumerate(names)}
    for name, (values, dtype) in columns.items():
        rows = rows.add_column(name, values, feature=datasets.Value(dtype))
    return rows


def _write(rows: datasets.Dataset, output: Path | None) -> None:
    if output is None:
        try:
            rows.to_csv(sys.stdout.buffer, index=False)
            sys.stdout.flush()
        except BrokenPipeError:  # `| head`; nobody is left to be told
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
