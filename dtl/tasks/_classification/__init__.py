"""Classification and regression of any input: one class, several labels, or numbers."""

from dtl.tasks._classification.base import target_values
from dtl.tasks._classification.options import LabelOptions
from dtl.tasks._classification.task import Classification

__all__ = ["Classification", "LabelOptions", "target_values"]
