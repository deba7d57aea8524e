"""A data set of the hub, or of its cache on this disk."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from socket import getaddrinfo
from typing import Any
from urllib.parse import urlsplit

from dtl.config.schema import Source
from dtl.core.errors import DtlError, near
from dtl.data.sources.formats import first_line
from dtl.data.sources.naming import names_in


def load_from_hub(source: Source, place: str) -> Any:
    """One split as a `datasets.Dataset`. Raises DtlError where the hub does not give it."""
    found = _splits(source, place)
    if not isinstance(found, dict):
        return _undecoded(found)
    if len(found) > 1:
        splits = " or ".join(f"'{name}'" for name in found)
        raise DtlError.of(f"{place}.split", f"'{source.path}' has several splits", f"name {splits}")
    return _undecoded(next(iter(found.values())))


def _undecoded(table: Any) -> Any:
    """Sounds and pictures as the bytes that they are, which dtl itself reads."""
    from datasets import Audio, Image

    for name, feature in (getattr(table, "features", None) or {}).items():
        if isinstance(feature, (Audio, Image)):
            table = table.cast_column(name, type(feature)(decode=False))
    return table


def names_for_numbers(table: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What gives the classes of a row, which the hub keeps as numbers, their names back."""
    from datasets import ClassLabel, List

    names: dict[str, Callable[[Any], Any]] = {}
    for column, feature in (getattr(table, "features", None) or {}).items():
        if isinstance(feature, ClassLabel):
            names[column] = partial(_named, feature.names)
        elif isinstance(feature, List) and isinstance(feature.feature, ClassLabel):
            names[column] = partial(_all_named, feature.feature.names)
    return lambda row: {
        column: names[column](value) if column in names else value for column, value in row.items()
    }


def _named(names: list[str], number: Any) -> Any:
    return names[number] if isinstance(number, int) and number >= 0 else number


def _all_named(names: list[str], numbers: Any) -> Any:
    return numbers if numbers is None else [_named(names, number) for number in numbers]


def _splits(source: Source, place: str) -> Any:
    import datasets
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES as readers

    if source.path in readers:  # it would read whatever lies in the current folder
        raise DtlError.of(
            f"{place}.path", f"'{source.path}' is a format, not data", "name a file or folder"
        )
    if not _has_an_address():
        datasets.config.HF_HUB_OFFLINE = True  # else it asks in vain for half a minute
    try:
        return datasets.load_dataset(source.path, source.name, split=source.split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as fault:
        raise DtlError.of(
            f"{place}.path",
            f"'{source.path}' is no file here, and the hub did not give it ({first_line(fault)})",
            near(source.path, names_in(Path()))
            or "correct the path, or fetch the data set once where there is a network",
        ) from fault


def _has_an_address() -> bool:
    """Whether the hub's name can be looked up; behind a proxy only the proxy can tell."""
    from huggingface_hub.constants import ENDPOINT

    address = urlsplit(ENDPOINT)
    from urllib.request import getproxies  # takes its time, and most commands ask no hub

    if getproxies().get(address.scheme):
        return True
    try:
        getaddrinfo(address.hostname, None)
    except OSError:
        return False
    return True
