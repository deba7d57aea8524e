"""The report page of a run: one module per section."""

from dtl.report.run_page.page import build_run_page

__all__ = ["build_run_page"]
