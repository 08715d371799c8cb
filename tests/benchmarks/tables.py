"""What was measured, as Markdown and as JSON, and the part of a page that is written anew with it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from turns import Timing

REFERENCE = "reference habits"
DYNAMIC = "plain dynamic padding"


@dataclass(frozen=True)
class Line:
    """One way of doing the work: the median over the rounds, the lowest and the highest."""

    name: str
    value: float
    low: float
    high: float
    times: Mapping[str, float] = field(default_factory=dict)  # how many times faster than that other way
    at_least: Mapping[str, float] = field(default_factory=dict)  # what `times` is meant to be, at least
    ours: bool = False


@dataclass(frozen=True)
class Table:
    title: str
    unit: str  # of the values
    text: str  # what is inside the time of each side
    lines: Sequence[Line]
    remark: str = ""  # such as what was left out, and why


def rows_per_second(timing: Timing) -> tuple[float, float, float]:
    """Median, lowest and highest."""
    return 1 / timing.median, 1 / max(timing.seconds), 1 / min(timing.seconds)


def seconds_for(rows: int, timing: Timing) -> tuple[float, float, float]:
    """Median, lowest and highest."""
    return rows * timing.median, rows * min(timing.seconds), rows * max(timing.seconds)


def as_markdown(table: Table) -> str:
    others = {name: None for line in table.lines for name in line.times}  # each once, in their order
    compared = sorted(others, key=lambda name: (REFERENCE, DYNAMIC, name).index(name))
    header = ["", table.unit, "lowest to highest", *(f"against {name} (at least)" for name in compared)]
    lines = [f"### {table.title}", "", table.text, "", _row(header), "|---|" + "---:|" * (len(header) - 1)]
    for line in table.lines:
        times = [_times(line, name) for name in compared]
        spread = "" if line.low == line.high else f"{_number(line.low)} to {_number(line.high)}"
        name = f"**{line.name}**" if line.ours else line.name
        lines.append(_row([name, _number(line.value), spread, *times]))
    if table.remark:
        lines += ["", table.remark]
    return "\n".join(lines) + "\n"


def as_json(table: Table) -> dict[str, Any]:
    return asdict(table)


def write_section(page: Path, name: str, text: str) -> None:
    """Put ``text`` between the page's marks for ``name``; at its end where it has none yet."""
    begin, end = f"<!-- begin {name}: written by make bench -->", f"<!-- end {name} -->"
    section = f"{begin}\n{text.strip()}\n{end}\n"
    written = page.read_text(encoding="utf-8")
    before, mark, rest = written.partition(begin)
    if mark:
        _, _, after = rest.partition(f"{end}\n")
        page.write_text(before + section + after, encoding="utf-8")
    else:
        page.write_text(f"{written.rstrip()}\n\n{section}", encoding="utf-8")


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _times(line: Line, name: str) -> str:
    if name not in line.times:
        return ""
    wanted = f" ({line.at_least[name]:g})" if name in line.at_least else ""
    return f"{_number(line.times[name])}x{wanted}"


def _number(value: float) -> str:
    """Three significant digits, no exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 1 else f"{value:.3g}"
