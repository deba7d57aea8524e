"""Reads a config file with its overrides, and tells all that is wrong with it at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dtl.config.document import Document, Keys, Origin, read_file, read_value
from dtl.config.explain import explain, written_keys
from dtl.config.schema import RunConfig
from dtl.core.errors import DtlError, Fault, near

_SHORT_FORMS: dict[Keys, str] = {
    ("task",): "name",
    ("strategy",): "name",
    ("data", "train"): "path",
    ("data", "mix"): "path",
    ("data", "eval"): "path",
    ("compare", "ood"): "path",
    ("compare", "source"): "path",
}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The config in a YAML file, changed by overrides of the form key=value.

    Raises DtlError with every fault found: its place, the problem and the fix.
    """
    path = Path(path)
    document = _read(path, overrides)
    config = _validate(document, str(path))
    if config.run.name is None:
        run = config.run.model_copy(update={"name": path.stem})
        config = config.model_copy(update={"run": run})
    return config


def placed(error: DtlError, path: str | Path, overrides: Sequence[str] = ()) -> DtlError:
    """The error with its config keys found: `data.train` becomes `x.yaml:5: data.train`.

    For faults that come to light after the config was read.
    """
    document = _read(Path(path), overrides)
    return type(error)(*(_placed(fault, document) for fault in error.faults))


def _placed(fault: Fault, document: Document) -> Fault:
    keys = tuple(fault.location.split("."))
    origin = document.origin(keys) if keys[0] in RunConfig.model_fields else None
    return replace(fault, location=f"{origin.place}: {fault.location}") if origin else fault


def _read(path: Path, overrides: Sequence[str]) -> Document:
    _check_file(path)
    document = read_file(path)
    for override in overrides:
        _apply(override, document)
    return document


def _check_file(path: Path) -> None:
    if path.is_dir():
        files = sorted(file.name for file in path.glob("*.yaml"))
        fix = f"name one of its files: {', '.join(files)}" if files else "name a YAML file"
        raise DtlError.of(str(path), "this is a folder, not a config", fix)
    if path.is_file():
        return
    folder = path.parent
    if folder.is_dir():
        neighbours = [str(folder / file.name) for file in folder.glob("*.y*ml")]
        problem = "there is no such file"
    else:
        neighbours, problem = [], f"there is no such file, nor the folder {folder}"
    fix = near(str(path), neighbours) or "`dtl recipes list` shows configs to start from"
    raise DtlError.of(str(path), problem, fix)


def _apply(override: str, document: Document) -> None:
    """Write one override into the document; a wrong one becomes a fault there."""
    place = f"command line: {override}"
    key, equals, text = override.partition("=")
    keys = _numbered(key.strip().split("."), document)
    if not equals or not all(map(str, keys)):
        fix = "write key=value, such as train.steps=100"
        document.faults.append(Fault(place, "this is not of the form key=value", fix))
        return
    section = _open_section(keys, document, place)
    if section is None:
        return
    document.forget_origins(keys)
    section[keys[-1]] = read_value(text, document, keys=keys, place=place)


def _numbered(words: Sequence[str], document: Document) -> Keys:
    """The keys, with numbers for the places in a list: strategy.0.length."""
    keys: Keys = ()
    for word in words:
        above = document.at(keys) if document.has(keys) else None
        is_place = isinstance(above, list) and word.isdecimal() and int(word) < len(above)
        keys = (*keys, int(word) if is_place else word)
    return keys


def _open_section(keys: Keys, document: Document, place: str) -> Any:
    """The mapping or list that the last key stands in, made where it is missing; None (and a fault)
    if there is something else."""
    section: Any = document.values
    for depth in range(1, len(keys)):
        here, key, below = keys[:depth], keys[depth - 1], keys[depth]
        value = section[key] if isinstance(key, int) else section.get(key)
        short = _SHORT_FORMS.get(tuple(part for part in here if not isinstance(part, int)))
        if value is None:
            document.origins[here] = Origin(place)
            value = {}
        elif isinstance(value, str) and short:
            document.origins[(*here, short)] = document.origins[here]
            value = {short: value}
        if isinstance(value, list) != isinstance(below, int) or not isinstance(value, dict | list):
            document.faults.append(Fault(place, *_no_section(here, value, below)))
            return None
        section[key] = value
        section = value
    return section


def _no_section(keys: Keys, value: Any, below: str | int) -> tuple[str, str]:
    """Problem and fix, where the key `below` cannot stand in a value."""
    dotted = ".".join(map(str, keys))
    if isinstance(value, list):
        return f"{dotted} is a list of {len(value)}, without a place '{below}'", "count from 0"
    return f"{dotted} is a value, so there are no keys below it", f"set {dotted} itself"


def _validate(document: Document, place: str) -> RunConfig:
    """The typed config. A number where text is meant is taken as it was written."""
    for attempt in ("as read", "numbers as text"):
        try:
            config = RunConfig.model_validate(document.values)
            if document.faults:
                raise DtlError(*document.faults)
            return config
        except ValidationError as error:
            if attempt == "as read" and _numbers_to_text(document, error):
                continue
            raise DtlError(*document.faults, *explain(error, document, place)) from None
    raise AssertionError("the second attempt returns or raises")


def _numbers_to_text(document: Document, error: ValidationError) -> bool:
    """Write `name: 2024` as '2024' where text is meant; say whether anything changed."""
    changed = False
    for detail in error.errors(include_url=False, include_context=False):
        keys = written_keys(detail, document)
        origin = document.origins.get(keys)
        if detail["type"] == "string_type" and origin and origin.number_text is not None:
            document.put(keys, origin.number_text)
            changed = True
    return changed


def json_schema() -> dict[str, Any]:
    """The JSON schema of a config file, plugins and their options included."""
    from dtl.config.json_schema import editor_schema

    return editor_schema()
