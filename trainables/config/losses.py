"""The configuration of each loss function; the mathematics is in `training/losses.py`."""

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    model_validator,
)
from tailsweep.trainables.config.base import Section

# Share of each row's target that is spread evenly over all classes (Szegedy et al. 2016), whatever these weigh.
LabelSmoothing = Annotated[float, Field(ge=0, lt=1)]


class CrossEntropy(Section):
    """Plain cross-entropy."""

    name: Literal["cross_entropy"]
    label_smoothing: LabelSmoothing = 0.0


class DeferrableWeights(Section):
    """Class weights by the effective number of samples (Cui et al. 2019), from the stage's start or deferred."""

    name: str
    beta: float = Field(0.9999, ge=0, lt=1)  # 0: no weights; towards 1: inverse class frequency
    # Deferred re-weighting (Cao et al. 2019): for this share of the stage's steps all classes weigh the same.
    reweight_after: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _there_is_something_to_defer(self) -> Self:
        if self.reweight_after > 0 and self.beta == 0:
            raise ValueError(
                f"reweight_after is {self.reweight_after:g}, but with beta 0 there are no class weights to defer: "
                "give beta a value above 0, such as 0.9999, or leave reweight_after out"
            )
        return self


class WeightedCrossEntropy(DeferrableWeights):
    """Cross-entropy weighted by the effective number of samples (Cui et al. 2019)."""

    name: Literal["weighted_cross_entropy"]
    label_smoothing: LabelSmoothing = 0.0


class LDAM(DeferrableWeights):
    """Label-distribution-aware margins (Cao et al. 2019), weighted by the effective number of samples.

    With ``reweight_after`` it is LDAM-DRW: the margins apply to all steps, the weights only to the later ones.
    """

    name: Literal["ldam"]
    max_margin: NonNegativeFloat = 0.5  # max_m: the rarest class's margin
    scale: PositiveFloat = 1.0  # s


class Focal(DeferrableWeights):
    """Cross-entropy in which a row counts less, the surer the model is of it (Lin et al. 2017).

    With ``beta`` it is the class-balanced focal loss of Cui et al. 2019.
    """

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
