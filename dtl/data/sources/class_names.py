"""Class names of columns: `datasets` stores class numbers in tables, and their names apart."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from dtl.data.sources.results import Fields

SCHEMA_KEY = b"huggingface"  # of the metadata that `datasets` writes into Parquet and Arrow files
LIST_TYPES = ("List", "LargeList", "Sequence")
Convert = Callable[[Any], Any]


def converters_of_schema(metadata: Mapping[bytes, bytes] | None) -> dict[str, Convert]:
    """Return, for each column of class numbers, the function that gives their names.

    `metadata`: that of an Arrow schema.
    """
    if not metadata or SCHEMA_KEY not in metadata:
        return {}
    try:
        features = json.loads(metadata[SCHEMA_KEY])["info"]["features"]
    except (ValueError, LookupError, TypeError):
        return {}  # written by another program
    return converters_of_features(features or {})


def converters_of_features(features: Mapping[str, Any]) -> dict[str, Convert]:
    """Return the same, of the features of a dataset as JSON values."""
    converters = {name: _convert_feature(feature) for name, feature in features.items()}
    return {name: convert for name, convert in converters.items() if convert is not None}


def _convert_feature(feature: Any) -> Convert | None:
    """Return the function that replaces the class numbers in a value; None: there are none."""
    if isinstance(feature, list):  # how datasets has stored lists before its version 4
        return _list_converter(_convert_feature(feature[0])) if feature else None
    if not isinstance(feature, dict):
        return None
    kind = feature.get("_type")
    if kind == "ClassLabel" and feature.get("names"):
        return partial(class_name, feature["names"])
    if kind in LIST_TYPES:
        return _list_converter(_convert_feature(feature.get("feature")))
    return None


def _list_converter(convert: Convert | None) -> Convert | None:
    return None if convert is None else partial(_convert_list, convert)


def _convert_list(convert: Convert, values: Any) -> Any:
    return values if values is None else [convert(value) for value in values]


def class_name(names: list[str], index: Any) -> Any:
    """Return the name of a class number; -1, which is no class, and other values are unchanged."""
    is_class = isinstance(index, int) and 0 <= index < len(names)
    return names[index] if is_class else index


def convert_fields(converters: Mapping[str, Convert], fields: Fields) -> Fields:
    """Return the fields of a row with class names."""
    if not converters:
        return fields
    return {
        column: converters[column](value) if column in converters else value
        for column, value in fields.items()
    }
