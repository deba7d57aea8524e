"""A report as one HTML page that loads nothing: no script, no font, no picture from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dtl.report.charts import Chart
from dtl.report.svg_charts import draw

Item = TypeVar("Item")
ROWS_SHOWN = 20  # of the table under a chart


@dataclass(frozen=True)
class Tile:
    """One number that is seen first."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Charts:
    """Charts beside one another, where there is room."""

    kind: ClassVar[str] = "charts"
    charts: tuple[Chart, ...]


@dataclass(frozen=True)
class Table:
    """`folded`: shown when it is asked for."""

    kind: ClassVar[str] = "table"
    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    folded: bool = False


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str
    strong: bool = False


@dataclass(frozen=True)
class Code:
    """Text as it stands in a file, shown when it is asked for."""

    kind: ClassVar[str] = "code"
    caption: str
    text: str


@dataclass(frozen=True)
class Shown:
    """One held-out example. `sound` and `picture`: data URIs. `note`: why there is none."""

    row: int
    loss: str
    expected: str | None
    said: str | None
    numbers: tuple[tuple[str, str], ...]
    fields: tuple[tuple[str, str], ...]
    sound: str | None = None
    picture: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Examples:
    """Held-out examples, one beside the other."""

    kind: ClassVar[str] = "examples"
    examples: tuple[Shown, ...]


Block = Charts | Table | Text | Code | Examples


@dataclass(frozen=True)
class Section:
    """A part of the page under its own heading."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Page:
    """`state`: finished, running or stopped. `about`: one line on what it is."""

    title: str
    state: str
    about: str
    tiles: tuple[Tile, ...]
    sections: tuple[Section, ...]
    made: str

    @property
    def charts(self) -> list[Chart]:
        """All of them, in their order."""
        blocks = [block for section in self.sections for block in section.blocks]
        return [chart for block in blocks if isinstance(block, Charts) for chart in block.charts]


@dataclass(frozen=True)
class _Numbers:
    """The table under a chart: so many of its rows, evenly picked."""

    head: list[str]
    rows: list[list[str]]
    of: int


def render(page: Page) -> str:
    """The HTML. Text is escaped wherever it comes from: what is in the data is never markup."""
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return pages.get_template("page.html").render(page=page, draw=draw, numbers=_numbers)


def _numbers(chart: Chart) -> _Numbers:
    head, rows = chart.table()
    return _Numbers(head, [chart.texts(row) for row in picked(rows, most=ROWS_SHOWN)], len(rows))


def picked(items: Sequence[Item], *, most: int) -> list[Item]:
    """So many of them, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]
