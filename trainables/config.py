"""What one trial is: its data, its model and its two stages. Plain values, checked; nothing here trains or loads.

A method of the literature is two :class:`StageConfig` (the presets are in ``methods.py``); zero epochs of stage one is
ordinary single-stage fine-tuning.
"""

from typing import Annotated, Literal

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

from trainables.keys import EPOCH_DECIMALS


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


class DataConfig(Section):
    """Where the rows come from and how they are read. A *source* is a CSV, TSV, JSON-lines or Parquet file, a folder
    written by ``datasets.save_to_disk``, a hub name (``name`` or ``name:config``) or ``demo://drug-labels``."""

    train: str
    validation: Share | str = 0.15  # a source, or the share of all rows to split off, stratified by label
    test: Share | str = 0.2
    text: str = "text"  # name of the column with the text
    label: str = "label"  # name of the column with the class: strings, integers or ClassLabel
    max_length: int = Field(128, ge=3)  # tokens kept of a row, special tokens included
    imbalance: ImbalanceConfig | None = None  # made of the training rows only
    split_seed: int = 42  # which rows are split off; apart from the trial's seed, so that seeds share their splits
    max_dropped: float = Field(0.05, ge=0, lt=1)  # share of empty or non-string texts above which a source is refused


class HeadConfig(Section):
    """A classification head of ours on a pooled output of the encoder."""

    pooling: Literal["cls", "mean", "pooler"] = "mean"  # first token, mean over real tokens, or the encoder's pooler
    kind: Literal["linear", "mlp"] = "linear"
    hidden: PositiveInt = 50  # width of the mlp's hidden layer (ValizadehAslani et al. 2022 use 50)
    dropout: float = Field(0.1, ge=0, lt=1)  # on the pooled vector


class ModelConfig(Section):
    name: str = "sentence-transformers/all-MiniLM-L6-v2"  # hub name or folder of an encoder that AutoModel loads
    head: Literal["native"] | HeadConfig = "native"  # native: the architecture's own sequence-classification head


class TopLayers(Section):
    """The last ``top_layers`` encoder layers train, with the pooler (where there is one) and the head."""

    top_layers: PositiveInt


Trains = Literal["head", "pooler", "all"] | TopLayers  # pooler: with the head; top_layers: with both


class CrossEntropy(Section):
    name: Literal["cross_entropy"]


class WeightedCrossEntropy(Section):
    """Cross-entropy weighted by the effective number of samples (Cui et al. 2019)."""

    name: Literal["weighted_cross_entropy"]
    beta: float = Field(0.9999, ge=0, lt=1)  # 0: no weights; towards 1: inverse class frequency


class LDAM(Section):
    """Label-distribution-aware margins (Cao et al. 2019), weighted by the effective number of samples."""

    name: Literal["ldam"]
    max_margin: NonNegativeFloat = 0.5  # max_m: the rarest class's margin
    scale: PositiveFloat = 1.0  # s
    beta: float = Field(0.9999, ge=0, lt=1)


LossConfig = Annotated[CrossEntropy | WeightedCrossEntropy | LDAM, Field(discriminator="name")]


class StageConfig(Section):
    """One stage of fine-tuning: what trains, on which rows, with which loss and optimiser settings."""

    trains: Trains = "all"
    rows: Literal["original", "oversampled", "class_balanced"] = "original"  # see samplers.py
    loss: LossConfig = CrossEntropy(name="cross_entropy")
    learning_rate: PositiveFloat = 3e-5  # at the first step; falls linearly to 0 over the stage
    epochs: NonNegativeInt = 1
    # How often per epoch the validation rows are scored, a report made (which ASHA hears) and a checkpoint written:
    # evenly over its steps, once a step at most. For large training sets.
    evaluations_per_epoch: int = Field(1, ge=1, le=10**EPOCH_DECIMALS)
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


Tau = Literal["auto"] | Annotated[float, Field(ge=0, le=10)]  # auto: the best of 0, 0.1 ... 2 on validation rows


class ClassifierRetraining(Section):
    """cRT (Kang et al. 2020, arXiv 1910.09217): the last linear layer is drawn anew and trained on class-balanced rows
    with cross-entropy, behind the rest of the model as it is."""

    kind: Literal["crt"]
    learning_rate: float = Field(1e-2, gt=0, le=1)  # of AdamW at the first step; falls linearly to 0
    epochs: PositiveInt = 20
    batch_size: PositiveInt = 32


class TauNormalisation(Section):
    """The last layer's weights w_c / ||w_c||^tau, its bias dropped (Kang et al. 2020)."""

    kind: Literal["tau_normalisation"]
    tau: Tau = "auto"


class LearnableWeightScaling(Section):
    """LWS (Kang et al. 2020): one factor per class on the last layer as it is, trained on class-balanced rows."""

    kind: Literal["lws"]
    learning_rate: float = Field(1e-2, gt=0, le=1)
    epochs: PositiveInt = 20
    batch_size: PositiveInt = 32


class Thresholds(Section):
    """The class is argmax_c p_c / t_c; the t_c are those of the best ``metric`` on validation rows."""

    kind: Literal["thresholds"]


class LogitAdjustment(Section):
    """Post-hoc logit adjustment (Menon et al. 2021, arXiv 2007.07314): logits - tau * log(share of training rows)."""

    kind: Literal["logit_adjustment"]
    tau: Tau = "auto"


class FinishConfig(Section):
    """What is done to the chosen model after training, in this order; by default nothing. See finish.py."""

    classifier: (
        Annotated[ClassifierRetraining | TauNormalisation | LearnableWeightScaling, Field(discriminator="kind")] | None
    ) = None
    decision: Annotated[Thresholds | LogitAdjustment, Field(discriminator="kind")] | None = None
    temperature: bool = False  # temperature scaling (Guo et al. 2017, arXiv 1706.04599), fitted on validation rows


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
