"""The methods of the literature as presets: plain values under the fields of ``TrialConfig``, and what to sweep.

Each has two variants. ``two_stage`` says what makes the method that method and gives lists of values, written as in a
sweep file, for what depends on rows and encoder: learning rates, epochs, batch size. ``two_stage/paper`` has the exact
settings of the paper, its model and length included. Every other field keeps its default. A user's fields are merged
into a deep copy of a preset.

    (a) ValizadehAslani et al., arXiv 2207.10858 (2022), and Neurocomputing 592:127801 (2024), with their official code
    (b) Shi et al., PMLR 183:68-82 (2022)
"""

from collections.abc import Mapping
from typing import Any, Final

Preset = Mapping[str, Mapping[str, Any]]  # section of a trial -> its fields

SKIPPED = {"epochs": 0}

# Lists, since a grid goes through them as well as a random search.
TOP_RATES = {"choice": [1e-4, 3e-4, 1e-3, 3e-3]}  # of a few layers; (a) and (b) have 1e-4, too low for few rows
HEAD_RATES = {"choice": [1e-3, 3e-3, 1e-2, 3e-2]}  # a head alone bears higher ones
ALL_RATES = {"choice": [1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4]}  # base models at the lower end, small ones at the higher
TOP_LAYERS = {"choice": [{"top_layers": 1}, {"top_layers": 2}]}
TOP_EPOCHS = {"choice": [1, 3, 6]}
# The same for every method. Longer and with smaller batches than Devlin et al. 2019, whose largest set is 100 times as
# large as those that rare classes come from: every method chose the most epochs and the smallest batch of their lists.
ALL_EPOCHS = {"choice": [2, 4, 6]}
BATCH_SIZES = {"choice": [8, 16, 32]}

CROSS_ENTROPY = {"name": "cross_entropy"}
WEIGHTED = {"name": "weighted_cross_entropy", "beta": 0.9999}
LDAM = {"name": "ldam", "max_margin": 0.5, "scale": 1.0, "beta": 0.9999}

PLAIN = {"trainable": "all", "sampling": "original", "loss": CROSS_ENTROPY}  # ordinary fine-tuning
TOP = {"trainable": {"top_layers": 1}, "learning_rate": TOP_RATES, "epochs": TOP_EPOCHS}
ALL = PLAIN | {"learning_rate": ALL_RATES, "epochs": ALL_EPOCHS, "batch_size": BATCH_SIZES, "keep": "last"}

# What both papers share, as far as they state it. Their frozen trunk stays in train mode, dropout and all.
PAPER = {"batch_size": 16, "warmup_fraction": 0.0, "weight_decay": 0.0, "max_grad_norm": 1.0}
PAPER_TOP = PAPER | {"trainable": {"top_layers": 1}, "learning_rate": 1e-4, "epochs": 1, "frozen_dropout": True}
PAPER_ALL = PAPER | PLAIN | {"learning_rate": 1e-5}
MODEL_A = {"name": "bert-base-uncased", "head": {"pooling": "pooler", "kind": "mlp", "hidden": 50, "dropout": 0.0}}
MODEL_B = {"name": "bert-base-uncased", "head": "native"}
# (b) by its ADME column. IMDB and 20 Newsgroups have batch_size 8 and max_length 512; stage two 2 (IMDB) and 5 epochs
# (20 Newsgroups), vanilla 3 and 5.
LENGTH = {"max_length": 128}

METHODS: Final[Mapping[str, Preset]] = {
    # (a) 2022: the top layer first, with a class-balanced loss.
    "two_stage": {
        "stage_one": TOP | {"sampling": "original", "loss": LDAM},
        "stage_two": ALL,
    },
    "two_stage/paper": {
        "data": LENGTH,
        "model": MODEL_A,
        "stage_one": PAPER_TOP | {"sampling": "original", "loss": LDAM},
        "stage_two": PAPER_ALL | {"epochs": 1},
    },
    # (a) 2024: one or more top layers first, on paraphrases that make every class as large as the largest.
    "two_stage_augmented": {
        "data": {"augmentation": {"kind": "eda"}},
        "stage_one": TOP | {"trainable": TOP_LAYERS, "sampling": "augmented", "loss": CROSS_ENTROPY},
        "stage_two": ALL,
    },
    "two_stage_augmented/paper": {
        # ChatGPT's, which data.augmentation.file has: they alone, of every class as many as the largest has examples.
        "data": LENGTH | {"augmentation": {"kind": "paraphrases", "originals": False}},
        "model": MODEL_A,
        "stage_one": PAPER_TOP | {"sampling": "augmented", "loss": CROSS_ENTROPY},
        "stage_two": PAPER_ALL | {"epochs": 1},
    },
    # (b): the top layer first, on rows translated to German or Russian and back; EDA did as well.
    "pre_finetuning": {
        "data": {"augmentation": {"kind": "eda"}},
        "stage_one": TOP | {"sampling": "augmented", "loss": CROSS_ENTROPY},
        "stage_two": ALL,
    },
    "pre_finetuning/paper": {
        "data": LENGTH | {"augmentation": {"kind": "back_translation"}},
        "model": MODEL_B,
        "stage_one": PAPER_TOP | {"sampling": "augmented", "loss": CROSS_ENTROPY},
        "stage_two": PAPER_ALL | {"epochs": 3},
    },
    # Ordinary fine-tuning (Devlin et al. 2019). As the baseline of (a): one epoch; that of (b) has three.
    "vanilla": {"stage_one": SKIPPED, "stage_two": ALL},
    "vanilla/paper": {
        "data": LENGTH,
        "model": MODEL_A,
        "stage_one": SKIPPED,
        "stage_two": PAPER_ALL | {"epochs": 1},
    },
    # A class-balanced loss throughout: cross-entropy by the effective number of samples (Cui et al. 2019, arXiv
    # 1901.05555). As the baseline of (a): the loss that its stage one has.
    "reweighting": {"stage_one": SKIPPED, "stage_two": ALL | {"loss": WEIGHTED}},
    "reweighting/paper": {
        "data": LENGTH,
        "model": MODEL_A,
        "stage_one": SKIPPED,
        "stage_two": PAPER_ALL | {"loss": LDAM, "epochs": 1},
    },
    # Rows of the smaller classes repeated: a baseline of (b).
    "oversampling": {"stage_one": SKIPPED, "stage_two": ALL | {"sampling": "oversampled"}},
    "oversampling/paper": {
        "data": LENGTH,
        "model": MODEL_B,
        "stage_one": SKIPPED,
        "stage_two": PAPER_ALL | {"sampling": "oversampled", "epochs": 3},
    },
    # Linear probing, then fine-tuning (Kumar et al. 2022, arXiv 2202.10054): a baseline of (b), which does not say how
    # long or fast it probes. Taken to be as its own stage one.
    "lp_ft": {
        "stage_one": {"trainable": "head", "sampling": "original", "loss": CROSS_ENTROPY}
        | {"learning_rate": HEAD_RATES, "epochs": TOP_EPOCHS},
        "stage_two": ALL,
    },
    "lp_ft/paper": {
        "data": LENGTH,
        "model": MODEL_B,
        "stage_one": PAPER_TOP | {"trainable": "head", "sampling": "original", "loss": CROSS_ENTROPY},
        "stage_two": PAPER_ALL | {"epochs": 3},
    },
}
