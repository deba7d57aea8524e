"""Load a config file with its overrides, and report all of its faults at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dtl.config.fault_messages import describe_faults, written_keys
from dtl.config.schema import RunConfig
from dtl.config.yaml_document import Document, Keys, Origin, read_override, read_yaml
from dtl.core.errors import DtlError, Fault, near

SHORT_FORMS: dict[Keys, str] = {
    ("task",): "name",
    ("strategy",): "name",
    ("data", "train"): "path",
    ("data", "mix"): "path",
    ("data", "eval"): "path",
    ("compare", "ood_data"): "path",
    ("compare", "source_data"): "path",
}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the config of a YAML file, changed by overrides of the form key=value.

    Raises DtlError with every fault: location, problem and fix.
    """
    path = Path(path)
    document = _read(path, overrides)
    config = _validate(document, str(path))
    if config.run.name is None:
        run = config.run.model_copy(update={"name": path.stem})
        config = config.model_copy(update={"run": run})
    return config


def add_locations(error: DtlError, path: str | Path, overrides: Sequence[str] = ()) -> DtlError:
    """Return the error with config keys located: `data.train` becomes `x.yaml:5: data.train`.

    For faults that are found after the config was read.
    """
    document = _read(Path(path), overrides)
    return type(error)(*(_add_location(fault, document) for fault in error.faults))


def _add_location(fault: Fault, document: Document) -> Fault:
    keys = tuple(fault.location.split("."))
    origin = document.find_origin(keys) if keys[0] in RunConfig.model_fields else None
    return replace(fault, location=f"{origin.location}: {fault.location}") if origin else fault


def _read(path: Path, overrides: Sequence[str]) -> Document:
    _check_file(path)
    document = read_yaml(path)
    for override in overrides:
        _apply_override(override, document)
    return document


def _check_file(path: Path) -> None:
    if path.is_dir():
        files = sorted(file.name for file in path.glob("*.yaml"))
        fix = f"use one of its files: {', '.join(files)}" if files else "use a YAML file"
        raise DtlError.of(str(path), "this is a folder, not a config", fix)
    if path.is_file():
        return
    folder = path.parent
    if folder.is_dir():
        similar_files = [str(folder / file.name) for file in folder.glob("*.y*ml")]
        problem = "there is no such file"
    else:
        similar_files, problem = [], f"there is no such file, nor the folder {folder}"
    fix = near(str(path), similar_files) or "`dtl recipes list` shows configs to start from"
    raise DtlError.of(str(path), problem, fix)


def _apply_override(override: str, document: Document) -> None:
    """Write one override into the document; an invalid one becomes a fault there."""
    location = f"command line: {override}"
    key, equals, text = override.partition("=")
    keys = _parse_keys(key.strip().split("."), document)
    if not equals or not all(map(str, keys)):
        fix = "write key=value, such as train.steps=100"
        document.faults.append(Fault(location, "this is not of the form key=value", fix))
        return
    if not text.strip():
        fix = f"write {key}=VALUE, or {key}=null for the default; is a shell variable not set?"
        document.faults.append(Fault(location, "there is no value after '='", fix))
        document.invalid_keys.add(keys)
        return
    section = _open_section(keys, document, location)
    if section is None:
        return
    document.remove_origins(keys)
    section[keys[-1]] = read_override(text, document, keys=keys, location=location)


def _parse_keys(words: Sequence[str], document: Document) -> Keys:
    """Return the keys, with numbers for list positions: strategy.0.length."""
    keys: Keys = ()
    for word in words:
        above = document.get_value(keys) if document.has_value(keys) else None
        is_position = isinstance(above, list) and word.isdecimal() and int(word) < len(above)
        keys = (*keys, int(word) if is_position else word)
    return keys


def _open_section(keys: Keys, document: Document, location: str) -> Any:
    """Return the mapping or list that contains the last key, created if it is missing.

    Returns None, and adds a fault, if there is another value.
    """
    section: Any = document.values
    for depth in range(1, len(keys)):
        here, key, below = keys[:depth], keys[depth - 1], keys[depth]
        value = section[key] if isinstance(key, int) else section.get(key)
        short = SHORT_FORMS.get(tuple(part for part in here if not isinstance(part, int)))
        if value is None:
            document.origins[here] = Origin(location)
            value = {}
        elif isinstance(value, str) and short:
            document.origins[(*here, short)] = document.origins[here]
            value = {short: value}
        if isinstance(value, list) != isinstance(below, int) or not isinstance(value, dict | list):
            document.faults.append(Fault(location, *_describe_no_section(here, value, below)))
            return None
        section[key] = value
        section = value
    return section


def _describe_no_section(keys: Keys, value: Any, below: str | int) -> tuple[str, str]:
    """Return problem and fix for a value that cannot contain the key `below`."""
    dotted = ".".join(map(str, keys))
    if isinstance(value, list):
        return f"{dotted} is a list of {len(value)}, without an item '{below}'", "count from 0"
    return f"{dotted} is a value, so there are no keys below it", f"set {dotted} itself"


def _validate(document: Document, location: str) -> RunConfig:
    """Return the typed config; a number where text is expected is read as it was written."""
    for attempt in ("as read", "numbers as text"):
        try:
            config = RunConfig.model_validate(document.values)
            if document.faults:
                raise DtlError(*document.faults)
            return config
        except ValidationError as error:
            if attempt == "as read" and _convert_numbers_to_text(document, error):
                continue
            raise DtlError(*document.faults, *describe_faults(error, document, location)) from None
    raise AssertionError("the second attempt returns or raises")


def _convert_numbers_to_text(document: Document, error: ValidationError) -> bool:
    """Convert `name: 2024` to '2024' where text is expected; return whether anything changed."""
    changed = False
    for detail in error.errors(include_url=False, include_context=False):
        keys = written_keys(detail, document)
        origin = document.origins.get(keys)
        if detail["type"] == "string_type" and origin and origin.number_text is not None:
            document.set_value(keys, origin.number_text)
            changed = True
    return changed
