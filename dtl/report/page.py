"""A report as one HTML page without scripts and without external resources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dtl.report.charts import Chart
from dtl.report.svg_charts import draw_svg

Item = TypeVar("Item")
MAX_TABLE_ROWS = 20  # of the data table under a chart


@dataclass(frozen=True)
class Tile:
    """A key figure at the top of the page."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Charts:
    """Charts in a grid."""

    kind: ClassVar[str] = "charts"
    charts: tuple[Chart, ...]


@dataclass(frozen=True)
class Table:
    """A table. `is_collapsed`: the reader opens it with a click."""

    kind: ClassVar[str] = "table"
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    is_collapsed: bool = False


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str
    is_strong: bool = False


@dataclass(frozen=True)
class Code:
    """Preformatted text, which the reader opens with a click."""

    kind: ClassVar[str] = "code"
    caption: str
    text: str


@dataclass(frozen=True)
class ExampleCard:
    """A held-out example. `audio_uri` and `image_uri`: data URIs. `note`: why there is none."""

    row: int
    loss: str
    expected: str | None
    predicted: str | None
    numbers: tuple[tuple[str, str], ...]
    fields: tuple[tuple[str, str], ...]
    audio_uri: str | None = None
    image_uri: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Examples:
    """Held-out examples in a grid."""

    kind: ClassVar[str] = "examples"
    examples: tuple[ExampleCard, ...]


Block = Charts | Table | Text | Code | Examples


@dataclass(frozen=True)
class Section:
    """A heading and its blocks."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Page:
    """The content of a report. `state`: finished, running, stopped early or unfinished."""

    title: str
    state: str
    subtitle: str
    tiles: tuple[Tile, ...]
    sections: tuple[Section, ...]
    footer: str

    @property
    def charts(self) -> list[Chart]:
        """All charts of the page, in order."""
        blocks = [block for section in self.sections for block in section.blocks]
        return [chart for block in blocks if isinstance(block, Charts) for chart in block.charts]


@dataclass(frozen=True)
class _DataTable:
    """The data table under a chart: a sample of its rows."""

    header: list[str]
    rows: list[list[str]]
    total_rows: int


def render(page: Page) -> str:
    """Return the page as HTML. All text is escaped, so text of the data is never markup."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("page.html")
    return template.render(page=page, draw_svg=draw_svg, data_table=_data_table)


def _data_table(chart: Chart) -> _DataTable:
    header, rows = chart.table()
    sampled = sample_evenly(rows, max_items=MAX_TABLE_ROWS)
    return _DataTable(header, [chart.format_row(row) for row in sampled], len(rows))


def sample_evenly(items: Sequence[Item], *, max_items: int) -> list[Item]:
    """Return at most `max_items` items at even distances, with the first and the last."""
    if len(items) <= max_items:
        return list(items)
    last = len(items) - 1
    return [items[round(index * last / (max_items - 1))] for index in range(max_items)]
