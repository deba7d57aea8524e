"""A report of a run: one page, with its charts as CSV and PNG beside it."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from dtl.report.charts import Chart
from dtl.run_folder import RunFolder


@dataclass(frozen=True)
class Written:
    """`page`: the HTML file. `charts`: the folder of the CSV and PNG files. `pictures`: how many
    PNG files there are."""

    page: Path
    charts: Path
    pictures: int


def write(path: str | Path, *, png: bool | None = None) -> Written:
    """Write report.html into a run's folder, and its charts into report/.

    `png`: whether charts are drawn as PNG too; None: where matplotlib is here. Raises DtlError
    where there is no run, or no matplotlib although PNG is asked for.
    """
    from dtl.report import pictures
    from dtl.report.page import render
    from dtl.report.run import page_of

    folder = RunFolder.open(path)
    if png:
        pictures.refuse_without()
    page = page_of(folder)
    charts = folder.path / "report"
    charts.mkdir(exist_ok=True)
    draws = pictures.can_draw() if png is None else png
    for chart in page.charts:
        _write_csv(chart, charts / f"{chart.key}.csv")
        if draws:
            pictures.draw(chart, charts / f"{chart.key}.png")
    file = folder.path / "report.html"
    staged = file.with_name(f".{file.name}")  # never half of a page
    staged.write_text(render(page), encoding="utf-8")
    staged.replace(file)
    return Written(file, charts, len(page.charts) if draws else 0)


def _write_csv(chart: Chart, path: Path) -> None:
    head, rows = chart.table()
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *rows])
