"""Options of the two stages against the stages without them: test macro-F1, with the same seeds, examples and steps.

    python tests/benchmarks/regularizers.py trec=trec nicta=nicta_piboso --seeds 0 1 --results results.jsonl

Each argument is a name and a folder with train.parquet, validation.parquet and test.parquet, and with data.yaml where
`data` has more fields, such as an imbalance. A line is written for
every run as it ends; what the file has already is not run again, so that several processes may share it, one for each
seed. At the end the table of all of its lines is printed. `r_drop` has half the epochs, since its step takes twice as
long. `--precision fp32` is for processors without instructions for bf16.
"""

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tailsweep.orchestrator.config.sweep import deep_merge
from tailsweep.orchestrator.config.yaml_io import parse_yaml
from tailsweep.trainables import report_keys
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.execution.backends import live_execution
from tailsweep.trainables.models.classifier import build_classifier
from tailsweep.trainables.models.hub import resolve
from tailsweep.trainables.preparation import prepare
from tailsweep.trainables.storage.cache import default_cache_dir
from tailsweep.trainables.training.runtime import SingleProcess
from tailsweep.trainables.training.stages import TrialRun, evaluate, run_two_stages

ALL = {"learning_rate": 1e-4, "epochs": 4, "batch_size": 16, "keep": "last"}
LDAM = {"name": "ldam", "max_margin": 0.5, "scale": 1.0, "beta": 0.9999}
TOP = {"trainable": {"top_layers": 1}, "loss": LDAM, "learning_rate": 1e-3, "epochs": 3, "batch_size": 16}
BASES: dict[str, dict[str, Any]] = {
    "vanilla": {"stage_one": {"epochs": 0}, "stage_two": ALL},
    "two_stage": {"stage_one": TOP, "stage_two": ALL},
}
SMOOTHED = {"name": "cross_entropy", "label_smoothing": 0.1}
CONTRAST = {"weight": 0.3, "temperature": 0.1}
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "vanilla": {
        "label_smoothing 0.1": {"stage_two": {"loss": SMOOTHED}},
        "layer_decay 0.8": {"stage_two": {"layer_decay": 0.8}},
        "ema_decay 0.99": {"stage_two": {"ema_decay": 0.99}},
        "r_drop 1": {"stage_two": {"r_drop": 1.0, "epochs": 2}},
        "mixup 0.5": {"stage_two": {"mixup": 0.5}},
        "contrastive 0.3": {"stage_two": {"contrastive": CONTRAST}},
        "class_means": {"model": {"head_init": "class_means"}},
    },
    "two_stage": {
        "mixup 0.5 in stage one": {"stage_one": {"mixup": 0.5}},
        "contrastive 0.3 in stage one": {"stage_one": {"contrastive": CONTRAST}},
        "class_means": {"model": {"head_init": "class_means"}},
    },
}
MODEL = {"name": "sentence-transformers/all-MiniLM-L6-v2", "head": {"pooling": "mean", "kind": "linear"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", help="NAME=FOLDER")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--results", type=Path, default=Path("regularizers.jsonl"))
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        for name, folder in (each.split("=", 1) for each in arguments.sets):
            _run_set(name, Path(folder), seed, arguments)
    print(table(_read(arguments.results)))


def _run_set(name: str, folder: Path, seed: int, arguments: argparse.Namespace) -> None:
    results: Path = arguments.results
    files = {split: folder / f"{split}.parquet" for split in ("train", "validation", "test")}
    fields: Any = {split: str(file) for split, file in files.items() if file.is_file()} | {
        "max_length": arguments.max_length
    }
    if (folder / "data.yaml").is_file():
        fields |= parse_yaml((folder / "data.yaml").read_text(encoding="utf-8"))
    for base, settings in BASES.items():
        for option, change in {"": {}, **OPTIONS[base]}.items():
            key = [name, base, option, seed]
            if key in [line["key"] for line in _read(results)]:
                continue
            tree = {"data": fields, "model": MODEL, "seed": seed} | settings
            precision = {stage: {"precision": arguments.precision} for stage in report_keys.STAGES}
            config = TrialConfig.model_validate(deep_merge(deep_merge(tree, change), precision))
            data = prepare(config.data, resolve(config.model.name), default_cache_dir())
            model = build_classifier(config.model, data.label_names, seed)
            runtime = SingleProcess(torch.device("cpu"))
            began = time.monotonic()
            run_two_stages(TrialRun(config, data, runtime), model)
            seconds = time.monotonic() - began
            execution = live_execution(model, data, runtime.device, "fp32")
            scores = evaluate(execution, data, runtime, report_keys.TEST)
            line = {"key": key, "score": scores["test/macro_f1"], "seconds": round(seconds, 1)}
            print(json.dumps(line), flush=True)
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def table(lines: list[dict[str, Any]]) -> str:
    """Return the means over seeds: of a base its score, of an option the difference to its base with equal seeds."""
    scores = {tuple(line["key"]): line["score"] for line in lines}
    sets = list(dict.fromkeys(key[0] for key in scores))
    differences: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (name, base, option, seed), score in scores.items():
        reference = scores.get((name, base, "", seed)) if option else 0.0
        if reference is not None:
            differences[base, option][name].append(score - reference)
    rows = [f"| macro-F1 | {' | '.join(sets)} |", "|---|" + "---:|" * len(sets)]
    for (base, option), by_set in sorted(differences.items(), key=lambda item: (item[0][0] != "vanilla", item[0])):
        form = "{:+.3f}" if option else "{:.3f}"
        cells = [form.format(np.mean(by_set[name])) if by_set[name] else "" for name in sets]
        rows.append(f"| {base}{', ' if option else ''}{option} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _read(results: Path) -> list[dict[str, Any]]:
    lines = results.read_text(encoding="utf-8").splitlines() if results.is_file() else []
    return [json.loads(line) for line in lines]


if __name__ == "__main__":
    main()
