"""Measure and report the speed without Ray: `make bench`, or `python tests/benchmarks/run.py`. See BENCHMARKS.md.

The tables give the time of a stage's computation in one process, next to two other implementations.
"""

import argparse
import datetime
import json
import platform
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from benchmark_rows import BenchmarkRows, make_rows, read_rows
from kernel_tables import (
    HEAD_ONLY_MEAN,
    MEAN,
    TOP_LAYER,
    Bench,
    Head,
    building_the_cache,
    first_queries,
    growth,
    stacked_heads,
    stage_one_epoch,
    stage_two_step,
)
from machine import as_list, describe_cpu
from tables import Table, as_json, as_markdown, write_section
from tailsweep.trainables.config.trial import ModelConfig
from tailsweep.trainables.execution.allocator import keep_freed_memory
from tailsweep.trainables.models.classifier import PooledClassifier, build_classifier
from tailsweep.trainables.models.hub import PACKAGED_MODEL, resolve
from torch import nn

PAGE = Path(__file__).parents[2] / "BENCHMARKS.md"
BERT_BASE = "bert-base"  # of random weights
EPOCH_ROWS = 2_000
QUICK: dict[str, Any] = {"cache_rows": 100, "rounds": 1, "turn_seconds": 0.05, "growth": (100, 200)}
QUICK_EPOCH_ROWS = 128


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as this project's workers do on a CPU; it helps every side
    bench, make = prepare(options)
    machine = describe(options, bench)
    heading = "\n".join([f"## Without Ray: {shape(options)} on {machine['device']}", "", as_list(machine)])
    print(heading, flush=True)
    tables, written = [], [heading]
    for table in measure(bench, make):
        tables.append(table)
        written.append(as_markdown(table))
        print(f"\n{written[-1]}", flush=True)
    result = {"machine": machine, "tables": [as_json(table) for table in tables]}
    options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if options.write:
        write_section(PAGE, f"kernels, {shape(options)}, {bench.device.type}", "\n".join(written))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run: its numbers mean little")
    parser.add_argument("--write", action="store_true", help="write the tables into BENCHMARKS.md")
    parser.add_argument("--json", type=Path, default=Path("bench.json"), help="file to write (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch on the CPU (default: %(default)s)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--model", default=PACKAGED_MODEL, help="folder or hub name (default: %(default)s)")
    model.add_argument("--shape", choices=[BERT_BASE], help="a model of this shape, of random weights, instead")
    parser.add_argument(
        "--rows", type=Path, help="Parquet file with the columns text and label, instead of generated examples"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the rows (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.quick and options.write:
        parser.error("--write is not for the numbers of --quick")
    return options


def prepare(options: argparse.Namespace) -> tuple[Bench, Any]:
    """Return the benchmark and a function that generates examples for it."""
    device = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = transformers.AutoTokenizer.from_pretrained(resolve(options.model))
    if options.rows is None:
        make = partial(make_rows, tokenizer=tokenizer, seed=options.seed)
    else:
        make = partial(read_rows, options.rows, tokenizer=tokenizer, seed=options.seed)
    rows = make(QUICK_EPOCH_ROWS if options.quick else EPOCH_ROWS)
    build = (
        partial(random_classifier, vocabulary=len(tokenizer)) if options.shape else partial(pretrained, options.model)
    )
    return Bench(rows, build, torch.device(device), **(QUICK if options.quick else {})), make


def measure(bench: Bench, make: Any) -> Iterator[Table]:
    yield building_the_cache(bench)
    yield stage_one_epoch(bench, "top layer, pooler and head", "native", TOP_LAYER, at_least=4.0)
    yield stage_one_epoch(bench, HEAD_ONLY_MEAN, MEAN, "head", at_least=100.0)
    yield stage_one_epoch(bench, "head only (native, pooler's vectors)", "native", "head", at_least=100.0)
    yield first_queries(bench)
    yield stacked_heads(bench)
    yield stage_two_step(bench)
    yield from growth(bench, make)


def pretrained(name: str, head: Head) -> nn.Module:
    return build_classifier(ModelConfig(name=name, head=head), ("common", "rare"), seed=0)


def random_classifier(head: Head, vocabulary: int) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=vocabulary, num_labels=2)  # the defaults are bert-base's
    if head == "native":
        return cast(nn.Module, transformers.AutoModelForSequenceClassification.from_config(config))
    return PooledClassifier(transformers.AutoModel.from_config(config), head, 2)


def describe(options: argparse.Namespace, bench: Bench) -> dict[str, str]:
    rows: BenchmarkRows = bench.rows
    lengths = rows.data.train.lengths
    cuda = bench.device.type == "cuda"
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": " ".join(["python tests/benchmarks/run.py", *sys.argv[1:]]),
        "device": torch.cuda.get_device_name(bench.device) if cuda else "a CPU",
        "CPU": describe_cpu(),
        "threads": str(torch.get_num_threads()),
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"Python {platform.python_version()}",
        "rows": f"{rows.origin}; {lengths.mean():.1f} tokens each, standard deviation {lengths.std():.1f}, "
        f"{lengths.min()} to {lengths.max()}; {rows.data.class_counts.tolist()} of each class",
        "measured": f"{bench.rounds} rounds, turns of about {bench.turn_seconds:g} s",
    }


def shape(options: argparse.Namespace) -> str:
    return options.shape or Path(options.model).name


if __name__ == "__main__":
    main()
