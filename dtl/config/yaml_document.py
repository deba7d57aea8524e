"""A YAML file as plain values, each with the file and line it was written at."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dtl.core.errors import DtlError, Fault

Keys = tuple[str | int, ...]

_PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null")}
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*)$")
_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?$|[-+]?\.(?:inf|nan)$",
    re.IGNORECASE,
)
_BOOL = re.compile(r"(?:true|false)$", re.IGNORECASE)
_NULL = re.compile(r"(?:~|null|)$", re.IGNORECASE)
MAX_BYTES, MAX_DEPTH, MAX_VALUES = 1 << 20, 50, 20_000
_FIXES = {
    "tab": "indent with spaces, not tabs",
    "colon": "put a value that contains ': ' in quotes",
    "other": "fix the line, or compare it with a recipe of `dtl recipes list`",
}


@dataclass(frozen=True)
class Origin:
    """Where a value was written (file and line), and its text if it is a plain number."""

    location: str
    number_text: str | None = None


@dataclass
class Document:
    """Plain values, the origin of every key, and the faults of the YAML itself."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[Keys, Origin] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    invalid_keys: set[Keys] = field(default_factory=set)  # keys whose fault is already in `faults`
    record: Any = None  # the record whose keys these are; None: RunConfig

    def find_origin(self, keys: Keys) -> Origin | None:
        """Return the origin of the key, or of the nearest section around it."""
        for length in range(len(keys), 0, -1):
            if keys[:length] in self.origins:
                return self.origins[keys[:length]]
        return None

    def get_value(self, keys: Keys) -> Any:
        """Return the value at the keys. Raises KeyError if there is none."""
        value: Any = self.values
        for key in keys:
            if isinstance(value, dict) or (isinstance(value, list) and isinstance(key, int)):
                value = value[key]  # type: ignore[index]
            else:
                raise KeyError(key)
        return value

    def has_value(self, keys: Keys) -> bool:
        """Return whether there is a value at the keys."""
        try:
            self.get_value(keys)
        except (KeyError, IndexError):
            return False
        return True

    def set_value(self, keys: Keys, value: Any) -> None:
        """Set a value; the sections around it must exist."""
        self.get_value(keys[:-1])[keys[-1]] = value

    def remove_origins(self, keys: Keys) -> None:
        """Remove the origins of a value that is about to be replaced."""
        for replaced in [other for other in self.origins if other[: len(keys)] == keys]:
            del self.origins[replaced]


class _Loader(yaml.SafeLoader):
    """A YAML loader that reads `1e-4` as a number, and only true and false as bools (YAML 1.2)."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


for _kind, _pattern in (("int", _INT), ("float", _FLOAT), ("bool", _BOOL), ("null", _NULL)):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", _pattern, None)


def read_yaml(path: Path, *, record: Any = None) -> Document:
    """Return a YAML file as a document; `record`: the record whose keys it has, if not RunConfig.

    Raises DtlError if it is not YAML at all.
    """
    text = _read_text(path)
    try:
        node = _compose(text)
    except yaml.YAMLError as error:
        raise DtlError(_describe_syntax_error(error, str(path))) from None
    if node is None:
        raise DtlError.of(str(path), "the file is empty", "write a config, or copy a recipe")
    if not isinstance(node, yaml.MappingNode):
        location = f"{path}:{node.start_mark.line + 1}"
        raise DtlError.of(location, "a config is a mapping of sections", "begin with `model:`")
    document = Document(record=record)
    reader = _NodeReader(document, location=str(path), one_line=False)
    document.values = reader.read_node(node, (), open_nodes=())
    return document


def read_override(text: str, document: Document, *, keys: Keys, location: str) -> Any:
    """Return the value of an override: a word, a number, a quoted text, a [list] or a {mapping}."""
    reader = _NodeReader(document, location=location, one_line=True)
    text = text.strip()
    try:
        if text[:1] in ("[", "{", "'", '"'):
            node = _compose(text) or yaml.ScalarNode("", "")
        else:
            tag = _Loader("").resolve(yaml.ScalarNode, text, (True, False))
            node = yaml.ScalarNode(tag, text, style=None)
    except yaml.YAMLError as error:
        document.faults.append(_describe_syntax_error(error, location))
        document.invalid_keys.add(keys)
        return None
    document.origins[keys] = Origin(location, reader.number_text(node))
    return reader.read_node(node, keys, open_nodes=())


def _compose(text: str) -> yaml.Node | None:
    """Return the YAML nodes of a text. Raises YAMLError where it is no YAML, or is larger in any
    way than a config can be: a short text with aliases may stand for gigabytes."""
    size, sizes = 0, dict[str | None, int]()
    open_anchors: list[tuple[str | None, int]] = []
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            size += sizes.get(event.anchor, 0)
        elif isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
            size += 1
            sizes |= {event.anchor: 1} if event.anchor else {}
        if isinstance(event, yaml.CollectionStartEvent):
            open_anchors.append((event.anchor, size - 1))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_anchors.pop()
            sizes |= {anchor: size - before} if anchor else {}
        if (depth := len(open_anchors)) > MAX_DEPTH or size > MAX_VALUES:
            problem = (
                f"nested more than {MAX_DEPTH} deep"
                if depth > MAX_DEPTH
                else f"more than {MAX_VALUES} values, aliases included"
            )
            line = event.start_mark.line if event.start_mark else 0
            mark = yaml.error.Mark("", 0, line, 0, None, 0)
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
    return yaml.compose(text, Loader=_Loader)


def _read_text(path: Path) -> str:
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise DtlError.of(
                str(path), f"a config of {size} bytes (at most {MAX_BYTES})", "check the file"
            )
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DtlError.of(
            f"{path}:{line}", "the file is not UTF-8 text", "save it as UTF-8"
        ) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise DtlError.of(str(path), f"the file cannot be read ({reason})", "check it") from None


def _describe_syntax_error(error: yaml.YAMLError, location: str) -> Fault:
    if not isinstance(error, yaml.MarkedYAMLError):
        return Fault(
            location, "the file contains a character that YAML does not allow", "remove it"
        )
    mark = error.problem_mark or error.context_mark
    problem = error.problem or "cannot be read"
    kind = "tab" if r"\t" in problem else "colon" if "mapping values" in problem else "other"
    if mark is not None and not location.startswith("command line"):
        location = f"{location}:{mark.line + 1}"
    return Fault(location, f"this is not YAML ({problem})", _FIXES[kind])


@dataclass(frozen=True)
class _NodeReader:
    """Converts YAML nodes to plain values; writes origins and faults into the document."""

    document: Document
    location: str
    one_line: bool

    def read_node(self, node: yaml.Node, keys: Keys, *, open_nodes: tuple[yaml.Node, ...]) -> Any:
        if node in open_nodes:
            return self.add_invalid(
                node, keys, "the value contains itself", "write it out without the alias"
            )
        if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return dict(self.read_mapping(node, keys, open_nodes=(*open_nodes, node)))
        if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            return self.read_list(node, keys, open_nodes=(*open_nodes, node))
        if isinstance(node, yaml.ScalarNode) and node.tag in _PLAIN_TAGS:
            return self.read_scalar(node, keys)
        problem = f"YAML tags such as {_shorten_tag(node.tag)} are not accepted"
        return self.add_invalid(node, keys, problem, "remove the tag")

    def read_mapping(
        self, node: yaml.MappingNode, keys: Keys, *, open_nodes: tuple[yaml.Node, ...]
    ) -> Iterator[tuple[str, Any]]:
        first_lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.add_fault(key_node, "a key must be a plain word", "write it as a word")
                continue
            key = str(key_node.value)
            line = 0 if self.one_line else key_node.start_mark.line + 1
            if key in first_lines:
                first = "" if self.one_line else f" (first on line {first_lines[key]})"
                self.add_fault(key_node, f"'{key}' is given twice{first}", "keep one of the two")
                continue
            first_lines[key] = line
            self.set_origin((*keys, key), key_node, value_node)
            yield key, self.read_node(value_node, (*keys, key), open_nodes=open_nodes)

    def read_list(
        self, node: yaml.SequenceNode, keys: Keys, *, open_nodes: tuple[yaml.Node, ...]
    ) -> list[Any]:
        for index, item in enumerate(node.value):
            self.set_origin((*keys, index), item, item)
        return [
            self.read_node(item, (*keys, index), open_nodes=open_nodes)
            for index, item in enumerate(node.value)
        ]

    def read_scalar(self, node: yaml.ScalarNode, keys: Keys) -> Any:
        kind = node.tag.rpartition(":")[2]
        text = str(node.value)
        try:
            if kind == "int":
                return int(text.replace("_", ""))
            if kind == "float":
                return float(re.sub(r"\.(?=inf|nan)", "", text.lower().replace("_", "")))
        except ValueError:
            return self.add_invalid(node, keys, f"'{text}' is not a number", "write a number")
        if kind == "bool":
            return text.lower() == "true"
        return None if kind == "null" else text

    def set_origin(self, keys: Keys, key: yaml.Node, value: yaml.Node) -> None:
        self.document.origins[keys] = Origin(self.locate(key), self.number_text(value))

    def number_text(self, node: yaml.Node) -> str | None:
        is_number = node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
        return str(node.value) if is_number else None

    def locate(self, node: yaml.Node) -> str:
        return self.location if self.one_line else f"{self.location}:{node.start_mark.line + 1}"

    def add_invalid(self, node: yaml.Node, keys: Keys, problem: str, fix: str) -> None:
        """Add a fault of a value, whose place null takes; its key gets no second fault."""
        self.document.invalid_keys.add(keys)
        self.add_fault(node, problem, fix)

    def add_fault(self, node: yaml.Node, problem: str, fix: str) -> None:
        self.document.faults.append(Fault(self.locate(node), problem, fix))


def _shorten_tag(tag: str) -> str:
    return "!!" + tag.removeprefix("tag:yaml.org,2002:") if "yaml.org" in tag else tag
