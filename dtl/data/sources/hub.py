"""Datasets of the Hugging Face Hub, or of its local cache."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from dtl.config.schema import Source
from dtl.core.errors import DtlError, near
from dtl.core.hub import hub_is_reachable
from dtl.data.sources.class_names import convert_fields, converters_of_features
from dtl.data.sources.naming import list_names
from dtl.data.sources.results import first_error_line


def load_hub_dataset(source: Source, location: str) -> Any:
    """Load one split as a `datasets.Dataset`. Raises DtlError if it cannot be loaded, or if there
    are several splits and none is set."""
    dataset = _load_splits(source, location)
    if not isinstance(dataset, dict):
        return _keep_media_encoded(dataset)
    if len(dataset) > 1:
        splits = " or ".join(f"'{name}'" for name in dataset)
        raise DtlError.of(
            f"{location}.split", f"'{source.path}' has several splits", f"set it to {splits}"
        )
    return _keep_media_encoded(next(iter(dataset.values())))


def _keep_media_encoded(table: Any) -> Any:
    """Return the dataset with audio and images as encoded bytes, which dtl decodes itself."""
    from datasets import Audio, Image

    for name, feature in (getattr(table, "features", None) or {}).items():
        if isinstance(feature, (Audio, Image)):
            table = table.cast_column(name, type(feature)(decode=False))
    return table


def class_name_mapper(table: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return a function that replaces the class indices of a row by class names."""
    features = getattr(table, "features", None)
    return partial(convert_fields, converters_of_features(features.to_dict() if features else {}))


def _load_splits(source: Source, location: str) -> Any:
    import datasets
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES as readers

    if source.path in readers:  # load_dataset would read the files of the current folder
        raise DtlError.of(
            f"{location}.path",
            f"'{source.path}' is a file format, not a dataset",
            "use a file or folder",
        )
    if not hub_is_reachable():
        datasets.config.HF_HUB_OFFLINE = True  # without it, loading retries for half a minute
    try:
        return datasets.load_dataset(source.path, source.name, split=source.split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DtlError.of(
            f"{location}.path",
            f"'{source.path}' is not a local file and cannot be loaded from the hub "
            f"({first_error_line(error)})",
            near(source.path, list_names(Path()))
            or "correct the path, or download the dataset once with network access",
        ) from error
