"""Classification and regression of any input: one class, several labels, or numbers."""

from dtl.tasks._classification.base import target_values
from dtl.tasks._classification.options import MULTI_LABEL, LabelNames, LabelOptions
from dtl.tasks._classification.ranking import QUERY_IDS, query_id
from dtl.tasks._classification.task import Classification

__all__ = [
    "MULTI_LABEL",
    "QUERY_IDS",
    "Classification",
    "LabelNames",
    "LabelOptions",
    "query_id",
    "target_values",
]
