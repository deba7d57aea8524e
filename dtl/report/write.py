"""A report of a run or a comparison: one page, with its charts as CSV and PNG beside it."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dtl.compare.records import TABLE
from dtl.core.errors import DtlError
from dtl.report.charts import Chart
from dtl.run.folder import RunFolder

if TYPE_CHECKING:
    from dtl.report.page import Page


@dataclass(frozen=True)
class Written:
    """`page`: the HTML file. `charts`: the folder of the CSV and PNG files. `drawn`: whether there
    are PNG files."""

    page: Path
    charts: Path
    drawn: bool


def write(path: str | Path, *, png: bool | None = None) -> Written:
    """Write report.html into the folder of a run or a comparison, and its charts into report/.

    `png`: whether charts are drawn as PNG too; None: where matplotlib is here. Raises DtlError
    where there is neither, or no matplotlib although PNG is asked for.
    """
    from dtl.report import png_charts as pictures
    from dtl.report.page import render

    folder = Path(path)
    if png:
        pictures.refuse_without()
    page = _page_of(folder)
    charts = folder / "report"
    charts.mkdir(exist_ok=True)
    draws = pictures.can_draw() if png is None else png
    for chart in page.charts:
        _write_csv(chart, charts / f"{chart.key}.csv")
        if draws:
            pictures.draw(chart, charts / f"{chart.key}.png")
    file = folder / "report.html"
    staged = file.with_name(f".{file.name}")  # never half of a page
    staged.write_text(render(page), encoding="utf-8")
    staged.replace(file)
    return Written(file, charts, draws)


def _page_of(folder: Path) -> Page:
    if (folder / TABLE).is_file():
        from dtl.report import comparison_page as comparison

        return comparison.page_of(folder)
    if RunFolder(folder).state == "absent":
        raise DtlError.of(
            str(folder),
            "there is neither a run nor a comparison in this folder",
            f"name a folder with run.json or {TABLE}",
        )
    from dtl.report import run_page as run

    return run.page_of(RunFolder(folder))


def _write_csv(chart: Chart, path: Path) -> None:
    head, rows = chart.table()
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *rows])
