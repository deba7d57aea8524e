"""The frozen record of a config section: strict types, no unknown keys, faults at their keys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from annotated_types import Le, Lt
from pydantic import (
    BaseModel,
    ConfigDict,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails, PydanticCustomError

from dtl.core.errors import control_characters
from dtl.core.paths import find_long_part
from dtl.core.units import parse_seconds

MAX_NUMBER = 10**9  # of a value without a bound of its own; larger ones are slips


class Record(BaseModel):
    """A frozen record that accepts no other keys than its own.

    A key set to null counts as not set, unless null is one of its values. A list is accepted for
    a tuple. Types are strict: '5' is not a number and 1 is not a bool.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=()
    )

    @model_validator(mode="before")
    @classmethod
    def _convert_plain_values(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        converted = {}
        for name, value in values.items():
            field = cls.model_fields.get(name)
            types = _plain_types(field.annotation) if field else set()
            if field and value is None and type(None) not in types:
                continue
            is_tuple = isinstance(value, list) and tuple in types
            converted[name] = tuple(value) if is_tuple else value
        return converted

    @field_validator("*", mode="before")
    @classmethod
    def _check_value_makes_sense(cls, value: Any, info: ValidationInfo) -> Any:
        raise_config_faults(_nonsense_faults(value, *_find_accepted(cls, str(info.field_name))))
        return value


@cache
def _find_accepted(record: type[Record], name: str) -> tuple[frozenset[Any], FieldInfo]:
    """Return the types of a field at any depth, and the field."""
    field = record.model_fields[name]
    return frozenset(_all_types(field.annotation)), field


def _nonsense_faults(value: Any, types: frozenset[Any], field: FieldInfo) -> Iterator[ConfigFault]:
    """Yield that a text is empty, as that of a shell variable which is not set, or that a number
    has no sensible size."""
    if isinstance(value, str) and not value and str in types and field.default != "":
        yield ConfigFault(
            problem="the value is empty",
            fix="fill it in, or remove the key; is it a shell variable that is not set?",
        )
    has_bound = any(isinstance(each, Le | Lt) for each in field.metadata)
    if types & {int, float} and not has_bound:
        for number in _numbers(value):
            if abs(number) > MAX_NUMBER:
                yield ConfigFault(
                    problem=f"{number:g} is too large", fix=f"write {MAX_NUMBER:,} or less"
                )


def _numbers(value: Any) -> Iterator[int | float]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _numbers(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item)


def _all_types(annotation: Any) -> set[Any]:
    """Return the types that an annotation names at any depth, without those of its records."""
    parts = get_args(annotation)
    if get_origin(annotation) is Annotated:
        parts = parts[:1]
    return {annotation, *(each for part in parts for each in _all_types(part))}


def _plain_types(annotation: Any) -> set[Any]:
    """Return the plain types of an annotation: tuple[int, ...] | None -> {tuple, NoneType}."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _plain_types(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return set().union(*(_plain_types(part) for part in get_args(annotation)))
    return {origin or annotation}


class ConfigFault:
    """A fault that a record's own check has found; `keys` is the path below that record."""

    def __init__(self, *keys: str, problem: str, fix: str) -> None:
        self.keys, self.problem, self.fix = keys, problem, fix


def raise_config_faults(faults: Iterable[ConfigFault]) -> None:
    """Raise all faults of a record's check at once, each at its own key; do nothing for none."""
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


def check_single_line(text: str | None) -> str | None:
    """Return the text if it has no line break and no other control character, or None; else
    raise."""
    raise_config_faults(control_character_faults(text))
    return text


def control_character_faults(value: Any, *keys: str) -> Iterator[ConfigFault]:
    """Yield a fault for each text within a value that has a control character; `keys`: where."""
    if isinstance(value, str) and (found := control_characters(value)):
        yield ConfigFault(
            *keys,
            problem=f"{value!r} has the control character {found[0]!r}",
            fix="remove it",
        )
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from control_character_faults(str(name), *keys)
            yield from control_character_faults(item, *keys, str(name))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from control_character_faults(item, *keys)


def check_share_or_steps(value: float) -> float:
    """Return the value if it is a share below 1 or an integer number of steps; else raise."""
    if value >= 1 and value != int(value):
        raise_config_faults(
            [
                ConfigFault(
                    problem=f"{value} is neither a share nor a number of steps",
                    fix="write a share below 1, such as 0.03, or a number of steps, such as 100",
                )
            ]
        )
    return value


def check_duration(text: str | None) -> str | None:
    """Return the text if it is a length of time such as 45min, or None; else raise."""
    try:
        if text is not None:
            parse_seconds(text)
    except ValueError as fault:
        raise_config_faults(
            [ConfigFault(problem=str(fault), fix="write it as 45min, 4h or 1-12:00:00")]
        )
    return text


def check_path(path: str) -> str:
    """Return the path unless a name in it is longer than file systems accept."""
    problem = find_long_part(path)
    if problem is not None:
        raise_config_faults([ConfigFault(problem=problem, fix="correct the path")])
    return path


def check_no_url(path: str) -> str:
    """Return the path unless it is a URL: dtl reads none, and a URL may contain a password. Raise
    also where a name in it is too long."""
    scheme, is_url, _ = path.partition("://")
    if is_url:
        raise_config_faults(
            [
                ConfigFault(
                    problem=f"dtl reads no {scheme}:// addresses",
                    fix="download it and set the path of the file or folder, or write a hub id as "
                    "owner/name",
                )
            ]
        )
    return check_path(path)
