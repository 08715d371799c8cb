"""The configuration of the data: where examples come from, how they are split, made imbalanced and augmented."""

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)
from tailsweep.trainables.config.base import Section

Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what NumPy and pandas take


class Step(Section):
    """Half of the classes keep all their rows, the others get ``ratio`` times the largest class."""

    kind: Literal["step"]
    ratio: float = Field(gt=0, le=1)  # rows of a minority class / rows of the largest class
    order: list[str] | None = None  # every class, largest first; default: by their number of rows
    seed: Seed = 42  # which rows stay


class LongTailed(Section):
    """Class i of n keeps ``n_max * ratio**(i / (n - 1))`` rows: an exponential tail, ``ratio`` from end to end."""

    kind: Literal["long_tailed"]
    ratio: float = Field(gt=0, le=1)  # rows of the last class / rows of the largest class
    order: list[str] | None = None  # every class, largest first; default: by their number of rows
    seed: Seed = 42


class Downsample(Section):
    """The first class keeps all its rows, every other gets ``floor(ratio * rows of the first)``.

    The recipe of the official two-stage fine-tuning code (ValizadehAslani et al. 2022), row for row: a pandas sample
    with ``random_state=seed``.
    """

    kind: Literal["downsample"]
    ratio: float = Field(gt=0, le=1)
    order: list[str] | None = None
    seed: Seed = 42


ImbalanceConfig = Annotated[Step | LongTailed | Downsample, Field(discriminator="kind")]


Share = Annotated[float, Field(gt=0, lt=1)]


Character = Annotated[str, Field(min_length=1, max_length=1)]


# These need more than one byte for a character, so that the letter a alone is none.
WIDE_ENCODINGS = {"utf_16_le", "utf_16_be", "utf_32_le", "utf_32_be", "utf_16", "utf_32", "utf16", "utf32"}


WordShare = Annotated[float, Field(ge=0, le=1)]


class AugmentationSection(Section):
    """What every way of making rows has; see ``augment.py`` for the rules they share."""

    # Every class gets as many rows as bring it to this share of the largest one; the papers' 1.0: as large as that.
    target_ratio: float = Field(1.0, gt=0, le=1)
    # Whether the training examples are among the augmented ones. Without them, every class has as many synthetic ones.
    originals: bool = Field(True, exclude_if=lambda value: bool(value))
    seed: Seed = 42  # which rows are copied more often than others, and what is random in a copy


class EDA(AugmentationSection):
    """Easy data augmentation (Wei & Zou 2019, arXiv 1901.11196): a copy of a row with some words changed.

    Each copy is changed by one of four operations; each alpha is the share of words it changes, 0 leaves the operation
    out.
    """

    kind: Literal["eda"]
    alpha_sr: WordShare = 0.1  # synonym replacement
    alpha_ri: WordShare = 0.1  # random insertion of synonyms
    alpha_rs: WordShare = 0.1  # random swap
    alpha_rd: WordShare = 0.1  # random deletion: the probability of each word
    lexicon: Literal["built_in", "wordnet"] = "built_in"  # of synonyms; wordnet: through nltk and its corpus

    @model_validator(mode="after")
    def _some_operation(self) -> "EDA":
        if not any((self.alpha_sr, self.alpha_ri, self.alpha_rs, self.alpha_rd)):
            raise ValueError("alpha_sr, alpha_ri, alpha_rs and alpha_rd are all 0, but one of them must be above 0")
        return self


class Pivot(Section):
    """Two translation models: hub names, or folders that ``AutoModelForSeq2SeqLM`` and ``AutoTokenizer`` load."""

    to: str  # from the rows' language to another
    back: str


class Sampling(Section):
    """Every token is drawn, so that one text has as many translations as are asked for."""

    kind: Literal["sampling"]
    temperature: PositiveFloat = 0.8  # towards 0: always the likeliest token; 1: as the model has it


class BeamSearch(Section):
    """The likeliest translation, as far as a search finds it: one of each text."""

    kind: Literal["beam_search"]
    num_beams: PositiveInt = 4


class BackTranslation(AugmentationSection):
    """A row translated to another language and back (Shi et al. 2022, PMLR 183).

    A row's copies come from one pivot after the other; by beam search it has one from each, by sampling as many as its
    class needs.
    """

    kind: Literal["back_translation"]
    pivots: list[Pivot] = Field(
        default=[
            Pivot(to="Helsinki-NLP/opus-mt-en-de", back="Helsinki-NLP/opus-mt-de-en"),
            Pivot(to="Helsinki-NLP/opus-mt-en-ru", back="Helsinki-NLP/opus-mt-ru-en"),
        ],
        min_length=1,
    )
    decoding: Annotated[Sampling | BeamSearch, Field(discriminator="kind")] = Sampling(kind="sampling")


class Paraphrases(AugmentationSection):
    """Rows that somebody has written or had written, as ``aug.csv`` of the official two-stage fine-tuning code."""

    kind: Literal["paraphrases"]
    file: str  # a source, as data.train
    text_column: str | None = None  # the column with the paraphrase; null: as data.text_column
    label_column: str | None = None  # the column with its class; null: as data.label_column
    source: str = "source"  # name of the column with the text of the training row it paraphrases, if there is one


AugmentationConfig = Annotated[EDA | BackTranslation | Paraphrases, Field(discriminator="kind")]


class Fold(Section):
    """One of ``of`` stratified folds of all rows: it is the test rows, the others are split as ``validation`` says."""

    index: NonNegativeInt
    of: int = Field(ge=2)

    @model_validator(mode="after")
    def _one_of_them(self) -> "Fold":
        if self.index >= self.of:
            raise ValueError(f"index is {self.index}, but must be below of ({self.of}): folds are counted from 0")
        return self


# What each type of file leaves open. The compression is of any file.
FORMAT_FIELDS = {
    "csv": ("separator", "quote", "escape", "header", "columns", "encoding"),
    "json": ("encoding",),
    "parquet": (),
    "excel": ("header", "columns", "sheet"),
}


class FileFormat(Section):
    """How the files of ``data`` are written. What is null is found from each file's bytes."""

    type: Literal["csv", "json", "parquet", "excel"] | None = None  # csv: separated text of any kind
    separator: Character | None = None
    quote: Character | Literal["none"] | None = None  # none: quotation marks are characters of the text
    escape: Literal["doubled", "backslash"] | None = None  # how a quotation mark is written within quotation marks
    header: bool | None = None  # whether the first record names the columns
    columns: list[str] | None = Field(None, min_length=1)  # their names, of a file without a header
    encoding: str | None = None
    compression: Literal["none", "gzip", "bz2", "xz", "zstd", "zip"] | None = None
    sheet: str | None = None  # of an Excel file; null: its only one

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, encoding: str | None) -> str | None:
        if encoding is None:
            return None
        try:
            b"a".decode(encoding)
        except (LookupError, UnicodeError, ValueError):
            if encoding.lower().replace("-", "_") in WIDE_ENCODINGS:
                return encoding
            raise ValueError(
                f'"{encoding}" is not an encoding of text that Python knows, such as utf-8, utf-16, windows-1252 or '
                "shift_jis"
            ) from None
        return encoding

    @model_validator(mode="after")
    def _fields_agree(self) -> "FileFormat":
        if self.columns is not None and len(set(self.columns)) < len(self.columns):
            raise ValueError("columns has a name twice")
        if self.quote is not None and self.quote == self.separator:
            raise ValueError(f'quote and separator are both "{self.quote}"')
        if self.quote == "none" and self.escape is not None:
            raise ValueError('escape says how quotation marks are written, but quote is "none": leave one of them out')
        if self.type is not None and (fields := self.without_effect(self.type)):
            raise ValueError(f"type is {self.type}, which has no {' and no '.join(fields)}: leave that out")
        return self

    def without_effect(self, file_type: str) -> list[str]:
        """Return the fields that are set and mean nothing in a file of this type."""
        stated = self.model_dump(exclude={"type", "compression"}, exclude_none=True)
        return [name for name in stated if name not in FORMAT_FIELDS[file_type]]


class AuditConfig(Section):
    """What to do about labels and texts that falsify the scores of classes. What is refused costs nothing."""

    label_variants: Literal["refuse", "merge", "keep"] = "refuse"  # one class written in several ways: "neg", "Neg "
    multi_label: Literal["refuse", "drop", "keep"] = "refuse"  # labels that are several classes: "sports, politics"
    identifiers: Literal["refuse", "keep"] = "refuse"  # a column in which most labels are of one example
    max_class_dropped_fraction: float = Field(0.5, ge=0, le=1)  # share of a class's examples that may be unusable
    max_conflicting_fraction: float = Field(0.05, ge=0, le=1)  # share of examples equal to one of another class
    max_leaked_fraction: float = Field(0.2, ge=0, le=1)  # share of validation or test that is in train, too


class Resplit(Section):
    """Training and validation examples are put together, after everything else: all of them are to train with.

    The validation examples stay what they are, so that no score on them says how good a model is. With ``index`` and
    ``of``, one of as many stratified folds of all these examples is validation, and the others are to train with.
    """

    index: NonNegativeInt | None = None
    of: int | None = Field(None, ge=2)

    @model_validator(mode="after")
    def _one_of_them(self) -> "Resplit":
        if (self.index is None) != (self.of is None):
            raise ValueError("index and of go together: give both, or neither")
        if self.index is not None and self.of is not None and self.index >= self.of:
            raise ValueError(f"index is {self.index}, but must be below of ({self.of}): folds are numbered from 0")
        return self


class DataConfig(Section):
    """Where the rows come from and how they are read.

    A *source* is a CSV, TSV, JSON, Parquet or Excel file, compressed or not, several of them (a folder or a pattern
    such as ``train-*.parquet``), a URI of one, a folder written by ``datasets.save_to_disk``, a hub name (``name`` or
    ``name:config``) or ``demo://drug-labels``.
    """

    train: str
    validation: Share | str = 0.15  # a source, or the share of all rows to split off, stratified by label
    test: Share | str = 0.2
    fold: Fold | None = None  # cross-validation: the test rows are this fold of ``train``, whatever share ``test`` is
    text_column: str | Annotated[list[str], Field(min_length=1)] = "text"  # the column with the text, or several
    label_column: str = "label"  # name of the column with the class: strings, integers, booleans, dates or ClassLabel
    # The texts of two columns are the tokenizer's pair; else those of several are joined by line breaks.
    text_pair: bool = Field(False, exclude_if=lambda value: not value)
    format: FileFormat | None = Field(None, exclude_if=lambda value: value is None)  # how files are written
    audit: AuditConfig = Field(AuditConfig(), exclude_if=lambda value: value == AuditConfig())
    max_length: int = Field(128, ge=3)  # tokens kept of a row, special tokens included
    imbalance: ImbalanceConfig | None = None  # made of the training rows only
    augmentation: AugmentationConfig | None = None  # how the rows of stages with sampling: augmented are made
    # For models that are trained again after the choice, see selection.refit.
    resplit: Resplit | None = Field(None, exclude_if=lambda value: value is None)
    split_seed: int = 42  # which rows are split off; apart from the trial's seed, so that seeds share their splits
    max_dropped_fraction: float = Field(
        0.05, ge=0, lt=1
    )  # share of empty or non-string texts above which a source is refused

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The columns with the text, in their order."""
        return (self.text_column,) if isinstance(self.text_column, str) else tuple(self.text_column)

    @model_validator(mode="after")
    def _columns_agree(self) -> "DataConfig":
        columns = self.text_columns
        if len(set(columns)) < len(columns):
            raise ValueError(f"text_column has a column twice: {', '.join(columns)}")
        if self.label_column in columns:
            raise ValueError(f'text_column and label_column are both "{self.label_column}"')
        if self.text_pair and len(columns) != 2:
            raise ValueError(
                f"text_pair is true, but text_column names {', '.join(columns)}: name two columns, such as "
                "[premise, hypothesis]"
            )
        if self.text_pair and self.augmentation is not None:
            raise ValueError(
                "text_pair is true, but augmentation makes single texts: leave one of them out, or join the columns"
            )
        return self

    @model_validator(mode="after")
    def _test_rows_come_from_one_place(self) -> "DataConfig":
        if self.fold is not None and isinstance(self.test, str):
            raise ValueError(f'test is "{self.test}", but folds take their test rows from train: leave test out')
        return self


class DataSource(Section):
    """Where a node finds the tokenized examples of a trial, see ``data.tokenized.fetch_prepared``."""

    key: str  # in the node's cache
    published: str  # folder or URI of the sweep's own copy, for nodes that lack them
    digest: str  # that they must have, see ``PreparedData``
