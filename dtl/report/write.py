"""Writes the report of a run or a comparison: one page, and its charts as CSV and PNG."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dtl.compare.records import COMPARISON_FILE
from dtl.core.csv_files import write_csv
from dtl.core.errors import DtlError
from dtl.core.files import write_text
from dtl.run.folder import RunFolder

if TYPE_CHECKING:
    from dtl.report.page import Page


@dataclass(frozen=True)
class WrittenReport:
    """The files of a report. `page`: the HTML file. `charts_folder`: of the CSV and PNG files."""

    page: Path
    charts_folder: Path
    has_png: bool


def write_report(path: str | Path, *, png: bool | None = None) -> WrittenReport:
    """Write report.html into the folder of a run or a comparison, and its charts into report/.

    `png`: whether to write the charts as PNG; None: if matplotlib is installed. Raises DtlError if
    the folder has neither a run nor a comparison, or if `png` is True without matplotlib.
    """
    from dtl.report import png_charts
    from dtl.report.page import render

    folder = Path(path)
    if png:
        png_charts.check_matplotlib()
    page = _build_page(folder)
    charts = folder / "report"
    charts.mkdir(exist_ok=True)
    has_png = png_charts.has_matplotlib() if png is None else png
    for chart in page.charts:
        write_csv(charts / f"{chart.key}.csv", *chart.table())
        if has_png:
            png_charts.draw_png(chart, charts / f"{chart.key}.png")
    file = folder / "report.html"
    write_text(file, render(page), sync=False)
    return WrittenReport(file, charts, has_png)


def _build_page(folder: Path) -> Page:
    if (folder / COMPARISON_FILE).is_file():
        from dtl.report.comparison_page import build_comparison_page

        return build_comparison_page(folder)
    if RunFolder(folder).state == "absent":
        raise DtlError.of(
            str(folder),
            "contains neither a run nor a comparison",
            f"use a folder with run.json or {COMPARISON_FILE}",
        )
    from dtl.report.run_page import build_run_page

    return build_run_page(RunFolder(folder))
