"""A frozen record of a config: strict types, no unknown keys, and faults of its own checks."""

from __future__ import annotations

from collections.abc import Iterable
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError


class Record(BaseModel):
    """A frozen record with no other keys than its own.

    A key set to null counts as left out, unless null is one of its values. A list is taken where
    a tuple is meant. Types are strict: '5' is no number and 1 is no bool.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=()
    )

    @model_validator(mode="before")
    @classmethod
    def _read_plain_values(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        read = {}
        for name, value in values.items():
            field = cls.model_fields.get(name)
            kinds = _kinds(field.annotation) if field else set()
            if field and value is None and type(None) not in kinds:
                continue
            read[name] = tuple(value) if isinstance(value, list) and tuple in kinds else value
        return read


def _kinds(annotation: Any) -> set[Any]:
    """The plain types that an annotation allows: tuple[int, ...] | None -> {tuple, NoneType}."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _kinds(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return set().union(*(_kinds(part) for part in get_args(annotation)))
    return {origin or annotation}


class ConfigFault:
    """A fault found by a record's own checks; `keys` is the path below that record."""

    def __init__(self, *keys: str, problem: str, fix: str) -> None:
        self.keys, self.problem, self.fix = keys, problem, fix


def refuse(faults: Iterable[ConfigFault]) -> None:
    """Raise all faults of a record's check at once, each at its own key; none: do nothing."""
    details = [
        InitErrorDetails(
            type=PydanticCustomError(
                "dtl_fault",
                "{problem}; {fix}",
                {"problem": fault.problem, "fix": fault.fix},
            ),
            loc=fault.keys,
            input=None,
        )
        for fault in faults
    ]
    if details:
        raise ValidationError.from_exception_data("config", details)


def share_or_steps(value: float) -> float:
    """The value, if it is a share below 1 or a whole number of steps."""
    if value >= 1 and value != int(value):
        refuse(
            [
                ConfigFault(
                    problem=f"{value} is neither a share nor a number of steps",
                    fix="write a share below 1, such as 0.03, or whole steps, such as 100",
                )
            ]
        )
    return value
