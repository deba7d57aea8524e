"""The report page of a comparison: its charts, its tables and the page."""

from dtl.report.comparison_page.page import build_comparison_page

__all__ = ["build_comparison_page"]
