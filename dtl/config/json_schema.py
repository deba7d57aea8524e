"""The JSON schema of a config, so that editors complete and check it."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import Any

from dtl.config import registry
from dtl.config.schema import RunConfig
from dtl.config.schema.plugins import Phase, PluginConfig, StrategyConfig, TaskConfig


def build_json_schema() -> dict[str, Any]:
    """Return the schema of RunConfig as a user may write it: short forms and plugin options too."""
    schema = RunConfig.model_json_schema()
    definitions = schema["$defs"]
    for section in (TaskConfig, StrategyConfig, Phase):
        definitions[section.__name__] = _plugin_schema(section, definitions)
    definitions["Source"] = {"anyOf": [{"type": "string"}, definitions["Source"]]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "dtl config",
    }


def _plugin_schema(section: type[PluginConfig], definitions: dict[str, Any]) -> dict[str, Any]:
    """Return a plugin's name, or a mapping of name and options, for each plugin in the folder."""
    names = registry.list_names(section.folder)
    forms: list[dict[str, Any]] = [{"type": "string", "enum": list(names)}]
    shared = _shared_schema(section)
    for name in names:
        options = deepcopy(_options_schema(section.folder, name))
        definitions.update(options.pop("$defs", {}))
        summary = registry.read_summary(section.folder, name)
        constant = {"name": {"const": name, "description": summary}}
        options["properties"] = constant | options.get("properties", {}) | shared
        options["required"] = ["name", *options.get("required", [])]
        forms.append(options)
    return {"anyOf": forms, "description": section.__doc__}


@cache
def _options_schema(folder: registry.Folder, name: str) -> dict[str, Any]:
    schema: dict[str, Any] = registry.load_options(folder, name).model_json_schema()
    return schema


def _shared_schema(section: type[PluginConfig]) -> dict[str, Any]:
    """Return the keys that every plugin has besides its options."""
    properties = section.model_json_schema(mode="validation")["properties"]
    return {key: properties[key] for key in section.shared_fields() if key != "name"}
