"""Options of the command line that several commands share."""

import argparse


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add ``--set KEY=VALUE``, which sets ``overrides``."""
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="set a dotted field, e.g. --set data.train=rows.csv --set stage_two.epochs=2; may be repeated",
    )


def add_log_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--verbose``, ``--quiet`` and ``--log-json`` to a parser, or to each of its subcommands."""
    subcommands = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for action in subcommands:
        for subparser in action.choices.values():
            add_log_options(subparser)
    if subcommands:
        return
    group = parser.add_argument_group("messages").add_mutually_exclusive_group()
    group.add_argument("-v", "--verbose", action="store_true", help="print every message, with its level and logger")
    group.add_argument("-q", "--quiet", action="store_true", help="print warnings and errors only")
    parser.add_argument("--log-json", action="store_true", help="print messages as JSON, one object per line")


def add_storage(parser: argparse.ArgumentParser) -> None:
    """Add ``--storage URI``."""
    parser.add_argument("--storage", metavar="URI", help="the folder or pyarrow URI that holds the run directories")


def add_address(parser: argparse.ArgumentParser) -> None:
    """Add ``--address ADDR`` of a Ray cluster."""
    parser.add_argument(
        "--address",
        metavar="ADDR",
        help="a running Ray: `auto`, HOST:PORT or ray://...; default: $RAY_ADDRESS, else a Ray started here",
    )
