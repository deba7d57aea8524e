"""Classification and regression of any input: one class, several labels, or numbers."""

from dtl.tasks._classification.base import target_values
from dtl.tasks._classification.options import LabelNames, LabelOptions
from dtl.tasks._classification.task import Classification

__all__ = ["Classification", "LabelNames", "LabelOptions", "target_values"]
