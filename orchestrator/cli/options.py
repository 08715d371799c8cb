"""Arguments of the command line that several of its verbs take."""

import argparse


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add ``--set KEY=VALUE``, which lands in ``overrides``."""
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="set a dotted field, e.g. --set data.train=rows.csv --set stage_two.epochs=2; may be repeated",
    )
