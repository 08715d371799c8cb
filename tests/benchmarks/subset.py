"""Sample fewer examples from Parquet files, in the proportions of their classes, for shorter comparisons.

python tests/benchmarks/subset.py train.parquet fewer.parquet --rows 2000
python tests/benchmarks/subset.py train.parquet fewer.parquet --each 182     (the same number of every class)
"""

import argparse
from pathlib import Path

import pandas as pd


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, nargs="+", help="Parquet files with a column label; several are joined")
    parser.add_argument("target", type=Path)
    how_many = parser.add_mutually_exclusive_group(required=True)
    how_many.add_argument("--rows", type=int, help="number of examples of all classes together")
    how_many.add_argument("--each", type=int, help="number of examples of each class")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = pd.concat([pd.read_parquet(path) for path in options.source], ignore_index=True)
    share = 1.0 if options.rows is None else options.rows / len(rows)
    parts = [
        part.sample(n=min(len(part), options.each or max(1, round(share * len(part)))), random_state=options.seed)
        for _, part in rows.groupby("label")
    ]
    fewer = pd.concat(parts).sample(frac=1.0, random_state=options.seed)
    fewer.to_parquet(options.target, index=False)
    print(fewer["label"].value_counts().to_string())


if __name__ == "__main__":
    main()
