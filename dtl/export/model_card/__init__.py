"""The model card of an export (README.md)."""

from dtl.export.model_card.data import ExportedRun, ExportSummary, ModelCardData
from dtl.export.model_card.render import render_model_card, render_run_card

__all__ = [
    "ExportSummary",
    "ExportedRun",
    "ModelCardData",
    "render_model_card",
    "render_run_card",
]
