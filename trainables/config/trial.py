"""What one trial is: its data, its model and its two stages. Plain values, checked; nothing here trains or loads.

A method of the literature is two :class:`StageConfig` (the presets are in ``methods.py``); zero epochs of stage one is
ordinary single-stage fine-tuning.
"""

from typing import Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from tailsweep.trainables.config.base import Section
from tailsweep.trainables.config.data import DataConfig
from tailsweep.trainables.config.losses import CrossEntropy, LossConfig
from tailsweep.trainables.report_keys import AUGMENTED, EPOCH_DECIMALS, TRAIN


class HeadConfig(Section):
    """A classification head of ours on a pooled output of the encoder."""

    pooling: Literal["cls", "mean", "pooler"] = "mean"  # first token, mean over real tokens, or the encoder's pooler
    kind: Literal["linear", "mlp"] = "linear"
    hidden: PositiveInt = 50  # width of the mlp's hidden layer (ValizadehAslani et al. 2022 use 50)
    dropout: float = Field(0.1, ge=0, lt=1)  # on the pooled vector


class ModelConfig(Section):
    """The encoder and its classification head."""

    name: str = "sentence-transformers/all-MiniLM-L6-v2"  # hub name or folder of an encoder that AutoModel loads
    head: Literal["native"] | HeadConfig = "native"  # native: the architecture's own sequence-classification head
    # The values that the layer of the logits starts with. class_means: it takes each example to the class whose mean
    # vector is nearest, by at most 100 training examples of each (LIFT, arXiv 2309.10019, starts so).
    head_init: Literal["random", "class_means"] = Field("random", exclude_if=lambda value: value == "random")
    trust_remote_code: bool = False  # run the Python code that this model's folder or hub page brings along


class TopLayers(Section):
    """The last ``top_layers`` encoder layers train, with the pooler (where there is one) and the head."""

    top_layers: PositiveInt


Trainable = Literal["head", "pooler", "all"] | TopLayers  # pooler: with the head; top_layers: with both


class ContrastiveConfig(Section):
    """Supervised contrastive loss of the vectors that the layer of the logits reads (Khosla et al. 2020)."""

    weight: float = Field(0.5, gt=0, lt=1)  # of it; the loss has the rest (lambda of Gunel et al. 2021)
    temperature: PositiveFloat = 0.1  # of the cosines


class StageConfig(Section):
    """One stage of fine-tuning: what trains, on which rows, with which loss and optimizer settings."""

    trainable: Trainable = "all"
    # See samplers.py; augmented: the training rows and those that data.augmentation makes of them
    sampling: Literal["original", "oversampled", "class_balanced", "sqrt", "progressive", "augmented"] = "original"
    loss: LossConfig = CrossEntropy(name="cross_entropy")
    learning_rate: PositiveFloat = 3e-5  # at the first step; falls linearly to 0 over the stage
    # Of each encoder layer over that of the layer above it; head and pooler have learning_rate itself, the embeddings
    # one power more than the lowest layer. Below 1, what is pretrained moves less the nearer it is to the tokens.
    layer_decay: float = Field(1.0, gt=0, le=1)
    epochs: NonNegativeInt = 1
    # Optimizer steps of the stage, rounded up to a multiple of its epochs: these are then equal parts of the steps, and
    # not passes over the rows. Methods whose sampling or batch size differ so have one budget. null: epochs are passes.
    steps: PositiveInt | None = Field(None, exclude_if=lambda value: value is None)
    # How often per epoch the validation rows are scored, a report published (to ASHA too) and a checkpoint written:
    # evenly over its steps, once a step at most. For large training sets.
    evaluations_per_epoch: int = Field(1, ge=1, le=10**EPOCH_DECIMALS)
    # Early stopping: as many evaluations in a row without a better score of the sweep's metric end the stage; until
    # then the learning rate falls as if it had all its epochs. null: it has.
    patience: PositiveInt | None = None
    # Which of its evaluations the stage's model is, if the trial ends with it: that with the best score of the sweep's
    # metric, or the last. Of many by few validation examples the best is the luckiest. With patience it is the best.
    keep: Literal["best", "last"] = Field("best", exclude_if=lambda value: value == "best")
    batch_size: PositiveInt = 32  # rows per optimizer step, over all workers and micro-batches
    gradient_accumulation: PositiveInt = 1  # micro-batches an optimizer step is split into
    weight_decay: NonNegativeFloat = 0.0  # AdamW; not applied to biases and norms
    warmup_fraction: float = Field(0.0, ge=0, lt=1)  # share of the stage's steps
    max_grad_norm: PositiveFloat = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: autocast; the parameters stay fp32
    frozen_dropout: bool = False  # True: frozen modules stay in train mode, as in the papers' code
    # Four regularizers, see training/regularization.py and training/weight_average.py.
    # Decay of an exponential moving average of the weights, which is the stage's model. null: no average.
    ema_decay: float | None = Field(None, gt=0, lt=1, exclude_if=lambda value: value is None)
    # Each example is computed twice, with different dropout; this is the weight of the two predictions' divergence
    # (alpha of R-Drop, Liang et al. 2021, arXiv 2106.14448). 0: once.
    r_drop: NonNegativeFloat = Field(0.0, exclude_if=lambda value: value == 0)
    # Examples are mixed in pairs by a share from Beta(mixup, mixup): the vectors that the layer of the logits reads,
    # and the losses by their labels (Zhang et al. 2018; of text vectors Sun et al. 2020, arXiv 2010.02394). null: not.
    mixup: PositiveFloat | None = Field(None, exclude_if=lambda value: value is None)
    # Vectors of a class are drawn together, those of different classes apart. null: not.
    contrastive: ContrastiveConfig | None = Field(None, exclude_if=lambda value: value is None)

    @model_validator(mode="after")
    def _accumulation_divides_batch(self) -> "StageConfig":
        if self.gradient_accumulation > self.batch_size:
            raise ValueError(
                f"gradient_accumulation is {self.gradient_accumulation}, but must be at most batch_size "
                f"({self.batch_size}): a micro-batch holds at least one row"
            )
        return self

    @property
    def keeps_best(self) -> bool:
        """Whether the stage's model is that with the best score, and not the last one."""
        return self.keep == "best" or self.patience is not None

    @property
    def reads_vectors(self) -> str | None:
        """The name of a field that is about the vectors which the layer of the logits reads; None if none is set."""
        set_fields = {"mixup": self.mixup, "contrastive": self.contrastive}
        return next((name for name, value in set_fields.items() if value is not None), None)

    @property
    def training_split(self) -> str:
        """The split that the stage trains on: ``train`` or ``augmented``."""
        return AUGMENTED if self.sampling == "augmented" else TRAIN


class TrialConfig(Section):
    """Everything a trial needs to know; the same values give the same trial."""

    data: DataConfig
    model: ModelConfig = ModelConfig()
    stage_one: StageConfig
    stage_two: StageConfig
    seed: NonNegativeInt = 0  # initialization, order of rows and dropout

    @model_validator(mode="after")
    def _something_trains(self) -> "TrialConfig":
        if self.stage_one.epochs + self.stage_two.epochs == 0:
            raise ValueError("stage_one.epochs and stage_two.epochs are both 0, but one of them must be at least 1")
        return self

    @model_validator(mode="after")
    def _augmented_rows_are_made(self) -> "TrialConfig":
        if self.needs_augmented_rows and self.data.augmentation is None:
            stage = "stage_one" if self.stage_one.sampling == "augmented" else "stage_two"
            raise ValueError(
                f"{stage}.sampling is augmented, but data.augmentation is null: set it, such as "
                "data: {augmentation: {kind: eda}}, or choose another sampling"
            )
        return self

    @property
    def needs_augmented_rows(self) -> bool:
        """Whether a stage trains on augmented rows."""
        return AUGMENTED in (self.stage_one.training_split, self.stage_two.training_split)
