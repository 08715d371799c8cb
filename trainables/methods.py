"""The methods of the literature as pairs of stages: plain values, under the fields of ``StageConfig``.

A preset says only what makes its method that method, plus learning rates and epochs to start from; every other field
keeps the default of ``StageConfig``. Whoever merges a preset with a user's own settings copies it first.
"""

from collections.abc import Mapping
from typing import Any, Final

METHODS: Final[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
    # ValizadehAslani et al. 2022 (arXiv 2207.10858), with more epochs of stage one than their one: heads start fresh.
    "two_stage": {
        "stage_one": {
            "trains": {"top_layers": 1},
            "rows": "original",
            "loss": {"name": "ldam", "max_margin": 0.5, "scale": 1.0, "beta": 0.9999},
            "learning_rate": 1e-4,
            "epochs": 3,
        },
        "stage_two": {
            "trains": "all",
            "rows": "original",
            "loss": {"name": "cross_entropy"},
            "learning_rate": 3e-5,
            "epochs": 1,
        },
    },
    # Ordinary fine-tuning (Devlin et al. 2019); three epochs, as the vanilla baseline of Shi et al. 2022 (PMLR 183).
    "vanilla": {
        "stage_one": {"epochs": 0},
        "stage_two": {
            "trains": "all",
            "rows": "original",
            "loss": {"name": "cross_entropy"},
            "learning_rate": 3e-5,
            "epochs": 3,
        },
    },
    # Cross-entropy weighted by the effective number of samples (Cui et al. 2019, arXiv 1901.05555).
    "reweighting": {
        "stage_one": {"epochs": 0},
        "stage_two": {
            "trains": "all",
            "rows": "original",
            "loss": {"name": "weighted_cross_entropy", "beta": 0.9999},
            "learning_rate": 3e-5,
            "epochs": 3,
        },
    },
    # Rows of the smaller classes repeated: the oversampling baseline of Shi et al. 2022 (PMLR 183).
    "oversampling": {
        "stage_one": {"epochs": 0},
        "stage_two": {
            "trains": "all",
            "rows": "oversampled",
            "loss": {"name": "cross_entropy"},
            "learning_rate": 3e-5,
            "epochs": 3,
        },
    },
    # Linear probing, then fine-tuning (Kumar et al. 2022, arXiv 2202.10054); a head alone bears a higher learning rate.
    "lp_ft": {
        "stage_one": {
            "trains": "head",
            "rows": "original",
            "loss": {"name": "cross_entropy"},
            "learning_rate": 1e-3,
            "epochs": 3,
        },
        "stage_two": {
            "trains": "all",
            "rows": "original",
            "loss": {"name": "cross_entropy"},
            "learning_rate": 3e-5,
            "epochs": 1,
        },
    },
}
