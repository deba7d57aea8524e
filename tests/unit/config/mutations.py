"""Mutations of config files: every key of every shipped config, changed in every way that users and
shells do."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

CONFIGS = Path(__file__).parents[3] / "configs"
REPLACED: dict[str, Any] = {
    "wrong type": [True, "many"],  # the one that the value is not
    "null": None,
    "-1": -1,
    "1e99": 1e99,
    "list": [1, "two"],
    "mapping": {"one": 1},
    "emoji": "🦊 🦊",
    "very long": "x" * 5_000,
    "empty": "",
}
KINDS = ("dropped", "doubled", "misspelt", *REPLACED)

Keys = tuple[str | int, ...]


@dataclass(frozen=True)
class Mutation:
    """One changed key of one shipped config."""

    config: Path
    keys: Keys
    kind: str

    def __str__(self) -> str:
        config = self.config.relative_to(CONFIGS).with_suffix("")
        return f"{config}-{'.'.join(map(str, self.keys))}-{self.kind}"

    def text(self) -> str:
        """Return the changed file."""
        values = read(self.config)
        if self.kind == "doubled":
            return _double(values, self.keys)
        return dump(_change(values, self.keys, self.kind))


def read(path: Path) -> dict[str, Any]:
    """Return the values of a config, with `1e-4` as a number."""
    from dtl.config.yaml_document import read_yaml

    return read_yaml(path).values


def dump(values: Any) -> str:
    """Return values as block-style YAML, one key a line."""
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100_000)


@cache
def list_mutations() -> tuple[Mutation, ...]:
    """Return each change of each key of each shipped config."""
    return tuple(_iter_mutations())


def _iter_mutations() -> Iterator[Mutation]:
    for config in sorted(CONFIGS.glob("*/*.yaml")):
        for keys in _iter_keys(read(config)):
            for kind in KINDS:
                yield Mutation(config, keys, kind)


def key_lines(text: str) -> dict[Keys, int]:
    """Return the line of each key of a YAML text, from 1."""
    return dict(_iter_lines(yaml.compose(text), ()))


def _iter_lines(node: Any, keys: Keys) -> Iterator[tuple[Keys, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*keys, key.value), key.start_mark.line + 1
            yield from _iter_lines(value, (*keys, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*keys, index), value.start_mark.line + 1
            yield from _iter_lines(value, (*keys, index))


def _iter_keys(values: Any, keys: Keys = ()) -> Iterator[Keys]:
    items = values.items() if isinstance(values, dict) else ()
    if isinstance(values, list):
        items = [(index, each) for index, each in enumerate(values) if isinstance(each, dict)]
    for key, value in items:
        if not isinstance(key, int):
            yield (*keys, key)
        yield from _iter_keys(value, (*keys, key))


def _change(values: dict[str, Any], keys: Keys, kind: str) -> dict[str, Any]:
    changed = copy.deepcopy(values)
    section: Any = changed
    for key in keys[:-1]:
        section = section[key]
    key = keys[-1]
    if kind == "dropped":
        del section[key]
    elif kind == "misspelt":
        items = [(f"{name}x" if name == key else name, value) for name, value in section.items()]
        section.clear()
        section.update(items)
    elif kind == "wrong type":
        section[key] = REPLACED[kind][isinstance(section[key], bool | int | float)]
    else:
        section[key] = REPLACED[kind]
    return changed


def _double(values: dict[str, Any], keys: Keys) -> str:
    """Return the text with the lines of a key twice."""
    text = dump(values)
    lines, line = text.splitlines(), key_lines(text)[keys]
    own = lines[line - 1]
    indent = len(own) - len(own.lstrip(" -"))
    end = line
    while end < len(lines) and (
        len(lines[end]) - len(lines[end].lstrip(" ")) > indent
        or lines[end].startswith(" " * indent + "- ")
    ):
        end += 1
    block = lines[line - 1 : end]
    block = [" " * indent + block[0][indent:], *block[1:]]
    return "\n".join([*lines[:end], *block, *lines[end:]]) + "\n"
