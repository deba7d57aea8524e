"""Write docs/config.md, every config key, from the schema: `python docs/make_config_page.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dtl.config.json_schema import build_json_schema

PAGE = Path(__file__).parent / "config.md"
KINDS = {
    "integer": "integer",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
}
PLUGINS = {"TaskConfig": "task", "StrategyConfig": "strategy"}
RECORDS = {
    "Source": "text, or a mapping (see Source below)",
    "Subsample": "a mapping (see below)",
    "LossSpikeOptions": "a mapping (see below)",
    **dict.fromkeys(PLUGINS, ""),
}
START = """# Every config key

<!-- Made by `python docs/make_config_page.py` from the schema. Do not edit. -->

A config is a YAML file. Each key has one type and one default; a key that dtl does not know is an
error. A key that is not set has its default; where the default is "planned", `dtl plan` says what
was chosen and why.

On the command line, `key=value` after the config changes one key, with dots between the levels:
`train.steps=100`. `key=null` removes a key. Numbers may be written as `2e-4`.

`dtl schema` prints the same as a JSON schema, with which an editor completes and checks your YAML.
"""


def page() -> str:
    """Return the page as Markdown."""
    schema = build_json_schema()
    parts = [START, *_sections(schema)]
    return "\n".join(parts)


def _sections(schema: dict[str, Any]) -> Iterator[str]:
    definitions = schema["$defs"]
    for key, given in schema["properties"].items():
        if given.get("type") == "array":
            yield f"## `{key}`\n"
            yield _table("", {"properties": {key: given}})
            continue
        name = _reference(given.get("oneOf", [given])[0])
        needed = " Required." if key in schema["required"] else ""
        about = _plain(definitions[name]["description"])
        yield f"## `{key}`\n\n{about}{needed}\n"
        if name in PLUGINS:
            yield from _plugins(PLUGINS[name], definitions[name])
        else:
            yield _table(f"{key}.", definitions[name])
        if key == "data":
            source = definitions["Source"]["anyOf"][1]
            yield f"### Source: `data.train` and `data.eval`\n\n{source['description']}\n"
            yield _table("data.train.", source)
            yield f"### `data.subsample`\n\n{definitions['Subsample']['description']}\n"
            yield _table("data.subsample.", definitions["Subsample"])
        if key == "train":
            yield f"### `train.loss_spike`\n\n{definitions['LossSpikeOptions']['description']}\n"
            yield _table("train.loss_spike.", definitions["LossSpikeOptions"])
        if key == "strategy":
            phase = definitions["Phase"]["anyOf"][1]
            own = {name: phase["properties"][name] for name in ("length", "learning_rate")}
            yield f"### A list of phases\n\n{definitions['Phase']['description']}\n"
            yield _table("strategy.0.", {"properties": own})


def _plugins(key: str, choice: dict[str, Any]) -> Iterator[str]:
    """Yield a section for each plugin, with its options."""
    yield (
        f"Write the name alone, `{key}: NAME`, or the name with options, "
        f"`{key}: {{name: NAME, ...}}`.\n"
    )
    for form in choice["anyOf"][1:]:
        properties = dict(form["properties"])
        plugin = properties.pop("name")
        yield f"### `{key}: {plugin['const']}`\n\n{plugin['description']}\n"
        if properties:
            yield _table(f"{key}.", {**form, "properties": properties})
        else:
            yield "It has no options.\n"


def _table(prefix: str, record: dict[str, Any]) -> str:
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, given in record["properties"].items():
        default = "required" if name in record.get("required", []) else _default(given)
        cells = [f"`{prefix}{name}`", _kind(given), default, _plain(given["description"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _default(given: dict[str, Any]) -> str:
    value = given.get("default")
    if value is None:
        return "`null`"
    return f"`{json.dumps(value)}`" if value != {} else "none"


def _kind(given: dict[str, Any]) -> str:
    """Return the type in words, with its limits."""
    if "anyOf" in given:
        kinds = [_kind(form) for form in given["anyOf"] if form.get("type") != "null"]
        return (", or " if "," in "".join(kinds) else " or ").join(kinds)
    if "enum" in given or "const" in given:
        return ", ".join(f"`{value}`" for value in given.get("enum", [given.get("const")]))
    if "$ref" in given:
        return RECORDS[_reference(given)]
    if given["type"] == "array":
        one = given.get("items") or given["prefixItems"][0]
        return f"list of {_kind(one).replace('number', 'numbers')}"
    if given["type"] == "object":
        values = given["additionalProperties"]
        return f"mapping of text to {'any value' if values is True else _kind(values)}"
    return KINDS[given["type"]] + _limits(given)


def _limits(given: dict[str, Any]) -> str:
    words = {
        "minimum": "from",
        "exclusiveMinimum": "above",
        "maximum": "to",
        "exclusiveMaximum": "below",
    }
    limits = [f"{word} {given[name]}" for name, word in words.items() if name in given]
    return f", {' '.join(limits)}" if limits else ""


def _plain(text: str) -> str:
    """Return the text with characters escaped that Markdown would interpret."""
    return text.replace("<", "\\<").replace("|", "\\|")


def _reference(given: dict[str, Any]) -> str:
    return str(given["$ref"]).rpartition("/")[2]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
