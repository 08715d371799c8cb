"""What may be done to the chosen model after training; what it means is in ``finish.py``."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt
from tailsweep.trainables.config.base import Section

Tau = Literal["auto"] | Annotated[float, Field(ge=0, le=10)]  # auto: the best of 0, 0.1 ... 2 on validation rows


class ClassifierRetraining(Section):
    """cRT (Kang et al. 2020, arXiv 1910.09217): the last linear layer is trained anew.

    It is drawn anew and trained on class-balanced rows with cross-entropy, behind the rest of the model as it is.
    """

    kind: Literal["crt"]
    learning_rate: float = Field(1e-2, gt=0, le=1)  # of AdamW at the first step; falls linearly to 0
    epochs: PositiveInt = 20
    batch_size: PositiveInt = 32


class TauNormalization(Section):
    """The last layer's weights w_c / ||w_c||^tau, its bias dropped (Kang et al. 2020)."""

    kind: Literal["tau_normalization"]
    tau: Tau = "auto"


class LearnableWeightScaling(Section):
    """LWS (Kang et al. 2020): one factor per class on the last layer as it is, trained on class-balanced rows."""

    kind: Literal["lws"]
    learning_rate: float = Field(1e-2, gt=0, le=1)
    epochs: PositiveInt = 20
    batch_size: PositiveInt = 32


class Thresholds(Section):
    """The class is argmax_c p_c / t_c; the t_c are fitted to ``metric`` on validation rows, see decision.py."""

    kind: Literal["thresholds"]


class PostHocLogitAdjustment(Section):
    """Post-hoc logit adjustment (Menon et al. 2021, arXiv 2007.07314): logits - tau * log(share of training rows)."""

    kind: Literal["logit_adjustment"]
    tau: Tau = "auto"


class BestDecision(Section):
    """None, logit adjustment or thresholds: what scores best on validation rows left out of its fit.

    A rule is taken only if it gains more than one standard error, see decision_rules.py.
    """

    kind: Literal["auto"]


class PostprocessConfig(Section):
    """What is done to the chosen model after training, in this order; by default nothing. See finish.py."""

    classifier: (
        Annotated[ClassifierRetraining | TauNormalization | LearnableWeightScaling, Field(discriminator="kind")] | None
    ) = None
    decision: Annotated[BestDecision | Thresholds | PostHocLogitAdjustment, Field(discriminator="kind")] | None = None
    temperature: bool = False  # temperature scaling (Guo et al. 2017, arXiv 1706.04599), fitted on validation rows
