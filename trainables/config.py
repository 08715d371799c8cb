"""What one trial is: its data, its model and its two stages. Plain values, checked; nothing here trains or loads.

A method of the literature is two :class:`StageConfig` (the presets are in ``methods.py``); zero epochs of stage one is
ordinary single-stage fine-tuning.
"""

from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from trainables.keys import AUGMENTED, EPOCH_DECIMALS, TRAIN


class Section(BaseModel):
    """A part of the configuration: immutable, typed strictly enough for YAML, unknown keys forbidden."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Step(Section):
    """Half of the classes keep all their rows, the others get ``ratio`` times the largest class."""

    kind: Literal["step"]
    ratio: float = Field(gt=0, le=1)  # rows of a minority class / rows of the largest class
    order: list[str] | None = None  # every class, largest first; default: by their number of rows
    seed: int = 42  # which rows stay


class LongTailed(Section):
    """Class i of n keeps ``n_max * ratio**(i / (n - 1))`` rows: an exponential tail, ``ratio`` from end to end."""

    kind: Literal["long_tailed"]
    ratio: float = Field(gt=0, le=1)  # rows of the last class / rows of the largest class
    order: list[str] | None = None  # every class, largest first; default: by their number of rows
    seed: int = 42


class Downsample(Section):
    """The first class keeps all its rows, every other gets ``floor(ratio * rows of the first)``.

    The recipe of the official two-stage fine-tuning code (ValizadehAslani et al. 2022), row for row: a pandas sample
    with ``random_state=seed``.
    """

    kind: Literal["downsample"]
    ratio: float = Field(gt=0, le=1)
    order: list[str] | None = None
    seed: int = 42


ImbalanceConfig = Annotated[Step | LongTailed | Downsample, Field(discriminator="kind")]
Share = Annotated[float, Field(gt=0, lt=1)]
WordShare = Annotated[float, Field(ge=0, le=1)]


class AugmentationSection(Section):
    """What every way of making rows has; see ``augment.py`` for the rules they share."""

    # Every class gets as many rows as bring it to this share of the largest one; the papers' 1.0: as large as that.
    up_to: float = Field(1.0, gt=0, le=1)
    seed: NonNegativeInt = 42  # which rows are copied more often than others, and what is random in a copy


class EDA(AugmentationSection):
    """Easy data augmentation (Wei & Zou 2019, arXiv 1901.11196): a copy of a row with some of its words changed by one
    of four operations; each alpha is the share of words it changes, 0 leaves the operation out."""

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
    """A row translated to another language and back (Shi et al. 2022, PMLR 183). A row's copies come from one pivot
    after the other; by beam search it has one from each, by sampling as many as its class needs."""

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
    text: str | None = None  # name of the column with the paraphrase; null: as data.text
    label: str | None = None  # name of the column with its class; null: as data.label
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


class DataConfig(Section):
    """Where the rows come from and how they are read. A *source* is a CSV, TSV, JSON-lines or Parquet file, a folder
    written by ``datasets.save_to_disk``, a hub name (``name`` or ``name:config``) or ``demo://drug-labels``."""

    train: str
    validation: Share | str = 0.15  # a source, or the share of all rows to split off, stratified by label
    test: Share | str = 0.2
    fold: Fold | None = None  # cross-validation: the test rows are this fold of ``train``, whatever share ``test`` is
    text: str = "text"  # name of the column with the text
    label: str = "label"  # name of the column with the class: strings, integers or ClassLabel
    max_length: int = Field(128, ge=3)  # tokens kept of a row, special tokens included
    imbalance: ImbalanceConfig | None = None  # made of the training rows only
    augmentation: AugmentationConfig | None = None  # how the rows of stages with rows: augmented are made
    split_seed: int = 42  # which rows are split off; apart from the trial's seed, so that seeds share their splits
    max_dropped: float = Field(0.05, ge=0, lt=1)  # share of empty or non-string texts above which a source is refused

    @model_validator(mode="after")
    def _test_rows_come_from_one_place(self) -> "DataConfig":
        if self.fold is not None and isinstance(self.test, str):
            raise ValueError(f'test is "{self.test}", but folds take their test rows from train: leave test out')
        return self


class HeadConfig(Section):
    """A classification head of ours on a pooled output of the encoder."""

    pooling: Literal["cls", "mean", "pooler"] = "mean"  # first token, mean over real tokens, or the encoder's pooler
    kind: Literal["linear", "mlp"] = "linear"
    hidden: PositiveInt = 50  # width of the mlp's hidden layer (ValizadehAslani et al. 2022 use 50)
    dropout: float = Field(0.1, ge=0, lt=1)  # on the pooled vector


class ModelConfig(Section):
    name: str = "sentence-transformers/all-MiniLM-L6-v2"  # hub name or folder of an encoder that AutoModel loads
    head: Literal["native"] | HeadConfig = "native"  # native: the architecture's own sequence-classification head
    trust_remote_code: bool = False  # run the Python code that this model's folder or hub page brings along


class TopLayers(Section):
    """The last ``top_layers`` encoder layers train, with the pooler (where there is one) and the head."""

    top_layers: PositiveInt


Trains = Literal["head", "pooler", "all"] | TopLayers  # pooler: with the head; top_layers: with both


# Share of each row's target that is spread evenly over all classes (Szegedy et al. 2016), whatever these weigh.
LabelSmoothing = Annotated[float, Field(ge=0, lt=1)]


class CrossEntropy(Section):
    name: Literal["cross_entropy"]
    label_smoothing: LabelSmoothing = 0.0


class DeferrableWeights(Section):
    """Class weights by the effective number of samples (Cui et al. 2019), from the stage's start or deferred."""

    name: str
    beta: float = Field(0.9999, ge=0, lt=1)  # 0: no weights; towards 1: inverse class frequency
    # Deferred re-weighting (Cao et al. 2019): for this share of the stage's steps all classes weigh the same.
    defer: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _there_is_something_to_defer(self) -> Self:
        if self.defer > 0 and self.beta == 0:
            raise ValueError(
                f"defer is {self.defer:g}, but with beta 0 there are no class weights to defer: give beta a value "
                "above 0, such as 0.9999, or leave defer out"
            )
        return self


class WeightedCrossEntropy(DeferrableWeights):
    """Cross-entropy weighted by the effective number of samples (Cui et al. 2019)."""

    name: Literal["weighted_cross_entropy"]
    label_smoothing: LabelSmoothing = 0.0


class LDAM(DeferrableWeights):
    """Label-distribution-aware margins (Cao et al. 2019), weighted by the effective number of samples. With ``defer``
    it is LDAM-DRW: the margins hold throughout, the weights come late."""

    name: Literal["ldam"]
    max_margin: NonNegativeFloat = 0.5  # max_m: the rarest class's margin
    scale: PositiveFloat = 1.0  # s


class Focal(DeferrableWeights):
    """Cross-entropy that rows count less in the surer the model is of them (Lin et al. 2017); with ``beta`` the
    class-balanced focal loss of Cui et al. 2019."""

    name: Literal["focal"]
    gamma: NonNegativeFloat = 2.0  # 0: cross-entropy
    beta: float = Field(0.0, ge=0, lt=1)


class BalancedSoftmax(Section):
    """Cross-entropy of a softmax in which classes count by their training rows (Ren et al. 2020)."""

    name: Literal["balanced_softmax"]
    label_smoothing: LabelSmoothing = 0.0


class LogitAdjustment(Section):
    """Cross-entropy of logits raised by the classes' log shares of the training rows (Menon et al. 2021)."""

    name: Literal["logit_adjustment"]
    tau: NonNegativeFloat = 1.0  # 0: cross-entropy; 1: the balanced softmax
    label_smoothing: LabelSmoothing = 0.0


LossConfig = Annotated[
    CrossEntropy | WeightedCrossEntropy | LDAM | Focal | BalancedSoftmax | LogitAdjustment, Field(discriminator="name")
]


class StageConfig(Section):
    """One stage of fine-tuning: what trains, on which rows, with which loss and optimiser settings."""

    trains: Trains = "all"
    # See samplers.py; augmented: the training rows and those that data.augmentation makes of them
    rows: Literal["original", "oversampled", "class_balanced", "sqrt", "progressive", "augmented"] = "original"
    loss: LossConfig = CrossEntropy(name="cross_entropy")
    learning_rate: PositiveFloat = 3e-5  # at the first step; falls linearly to 0 over the stage
    # Of each encoder layer over that of the layer above it; head and pooler have learning_rate itself, the embeddings
    # one power more than the lowest layer. Below 1, what is pretrained moves less the nearer it is to the tokens.
    layer_decay: float = Field(1.0, gt=0, le=1)
    epochs: NonNegativeInt = 1
    # How often per epoch the validation rows are scored, a report made (which ASHA hears) and a checkpoint written:
    # evenly over its steps, once a step at most. For large training sets.
    evaluations_per_epoch: int = Field(1, ge=1, le=10**EPOCH_DECIMALS)
    # Early stopping: as many evaluations in a row without a better score of the sweep's metric end the stage; until
    # then the learning rate falls as if it had all its epochs. null: it has.
    patience: PositiveInt | None = None
    batch_size: PositiveInt = 32  # rows per optimiser step, over all workers and micro-batches
    gradient_accumulation: PositiveInt = 1  # micro-batches an optimiser step is split into
    weight_decay: NonNegativeFloat = 0.0  # AdamW; not applied to biases and norms
    warmup: float = Field(0.0, ge=0, lt=1)  # share of the stage's steps
    max_grad_norm: PositiveFloat = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: autocast; the parameters stay fp32
    frozen_dropout: bool = False  # True: frozen modules stay in train mode, as in the papers' code

    @model_validator(mode="after")
    def _accumulation_divides_batch(self) -> "StageConfig":
        if self.gradient_accumulation > self.batch_size:
            raise ValueError(
                f"gradient_accumulation is {self.gradient_accumulation}, but must be at most batch_size "
                f"({self.batch_size}): a micro-batch holds at least one row"
            )
        return self

    @property
    def training_split(self) -> str:
        """Which rows of the data the stage trains on: ``train``, or ``augmented``."""
        return AUGMENTED if self.rows == "augmented" else TRAIN


class TrialConfig(Section):
    """Everything a trial needs to know; the same values give the same trial."""

    data: DataConfig
    model: ModelConfig = ModelConfig()
    stage_one: StageConfig
    stage_two: StageConfig
    seed: NonNegativeInt = 0  # initialisation, order of rows and dropout

    @model_validator(mode="after")
    def _something_trains(self) -> "TrialConfig":
        if self.stage_one.epochs + self.stage_two.epochs == 0:
            raise ValueError("stage_one.epochs and stage_two.epochs are both 0, but one of them must be at least 1")
        return self

    @model_validator(mode="after")
    def _augmented_rows_are_made(self) -> "TrialConfig":
        if self.needs_augmented_rows and self.data.augmentation is None:
            stage = "stage_one" if self.stage_one.rows == "augmented" else "stage_two"
            raise ValueError(
                f"{stage}.rows is augmented, but data.augmentation is null: say how rows are made, such as "
                "data: {augmentation: {kind: eda}}, or choose other rows"
            )
        return self

    @property
    def needs_augmented_rows(self) -> bool:
        """Whether a stage trains on them."""
        return AUGMENTED in (self.stage_one.training_split, self.stage_two.training_split)
