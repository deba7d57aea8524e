"""The options that every classification task has: what the labels are, and how they count."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from dtl.config.schema.base import ConfigFault, Record, raise_config_faults
from dtl.data.label_values import label_text

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
SINGLE_LABEL: ProblemType = "single_label_classification"
MULTI_LABEL: ProblemType = "multi_label_classification"
REGRESSION: ProblemType = "regression"


def _to_names(value: Any) -> Any:
    """Return the names of labels as rows are compared with them; an integer is a name as well."""
    if not isinstance(value, list | tuple):
        return value
    return tuple(
        label_text(name) if isinstance(name, str) or type(name) is int else name for name in value
    )


LabelNames = Annotated[tuple[str, ...], BeforeValidator(_to_names)]


class LabelOptions(Record):
    """What is predicted of an input. Names are those of transformers."""

    problem_type: ProblemType = Field(
        SINGLE_LABEL,
        description="What a row's `label` is: one class, any number of labels, or a number "
        "(several numbers as a list).",
    )
    labels: LabelNames | None = Field(
        None,
        description="The labels in order, to which class numbers in the data refer; for regression "
        "the names of the numbers. Default: the labels of the training rows, numbers by value.",
    )
    label_columns: tuple[str, ...] | None = Field(
        None,
        description="Columns to read instead of `label`: for several labels, one for each, with 0 "
        "or 1; for regression, one for each number.",
    )
    label_separator: str | None = Field(
        None,
        min_length=1,
        description="What separates several labels in one text, such as `|`.",
    )
    class_weights: Literal["balanced"] | dict[str, Annotated[float, Field(gt=0)]] | None = Field(
        None,
        description="Factors of the loss by label, 1 where none is given; of several labels, those "
        "of the rows that have the label. balanced: inverse to the frequency.",
    )
    focal_gamma: float = Field(
        0.0, ge=0, description="Exponent of the focal loss, such as 2; 0: cross-entropy."
    )
    threshold: (
        Annotated[float, Field(ge=0, le=1)] | dict[str, Annotated[float, Field(ge=0, le=1)]]
    ) = Field(
        0.5,
        description="Of several labels, the probability above which a label is predicted; one for "
        "all, or by label (0.5 where none is given).",
    )

    @model_validator(mode="after")
    def _check_labels(self) -> Self:
        raise_config_faults([*self._name_faults(), *self._type_faults()])
        return self

    def _name_faults(self) -> Iterator[ConfigFault]:
        for key in ("labels", "label_columns"):
            names = getattr(self, key)
            if names is not None and (len(set(names)) < len(names) or not names):
                yield ConfigFault(
                    key, problem="a name is repeated or there is none", fix="write each name once"
                )
        if self.labels and self.label_columns and len(self.labels) != len(self.label_columns):
            yield ConfigFault(
                "labels",
                problem=f"{len(self.labels)} names are given for {len(self.label_columns)} columns",
                fix="write one name for each of task.label_columns, or remove the key",
            )
        for key in ("class_weights", "threshold"):
            values = getattr(self, key)
            for name in values if isinstance(values, dict) and self.names else ():
                if name not in (self.names or ()):
                    yield ConfigFault(
                        key,
                        problem=f"{name!r} is not a label",
                        fix=f"use the names {', '.join(self.names or ())}",
                    )

    def _type_faults(self) -> Iterator[ConfigFault]:
        """An option that the problem type does not use is a mistake."""
        used_by = {
            "label_columns": (MULTI_LABEL, REGRESSION),
            "label_separator": (MULTI_LABEL,),
            "class_weights": (SINGLE_LABEL, MULTI_LABEL),
            "focal_gamma": (SINGLE_LABEL, MULTI_LABEL),
            "threshold": (MULTI_LABEL,),
        }
        for key, types in used_by.items():
            default = type(self).model_fields[key].default
            if getattr(self, key) != default and self.problem_type not in types:
                yield ConfigFault(
                    key,
                    problem=f"problem_type {self.problem_type} does not use it",
                    fix=f"remove it, or set task.problem_type to {' or '.join(types)}",
                )

    @property
    def names(self) -> tuple[str, ...] | None:
        """The names that the config gives: task.labels, else task.label_columns."""
        return self.labels or self.label_columns
