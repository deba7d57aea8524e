"""The config's JSON schema, so that editors complete and check it."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import Any

from dtl.config import registry
from dtl.config.choices import Choice, Phase, StrategyChoice, TaskChoice
from dtl.config.schema import RunConfig


def editor_schema() -> dict[str, Any]:
    """The schema of RunConfig as a user may write it: short forms and plugin options included."""
    schema = RunConfig.model_json_schema()
    definitions = schema["$defs"]
    for choice in (TaskChoice, StrategyChoice, Phase):
        definitions[choice.__name__] = _choice_schema(choice, definitions)
    definitions["Source"] = {"anyOf": [{"type": "string"}, definitions["Source"]]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "dtl config",
    }


def _choice_schema(choice: type[Choice], definitions: dict[str, Any]) -> dict[str, Any]:
    """A plugin's name, or a mapping of its name and options, for each plugin in the folder."""
    names = registry.names(choice.folder)
    forms: list[dict[str, Any]] = [{"type": "string", "enum": list(names)}]
    shared = _shared_schema(choice)
    for name in names:
        options = deepcopy(_options_schema(choice.folder, name))
        definitions.update(options.pop("$defs", {}))
        named = {"name": {"const": name, "description": registry.summary(choice.folder, name)}}
        options["properties"] = named | options.get("properties", {}) | shared
        options["required"] = ["name", *options.get("required", [])]
        forms.append(options)
    return {"anyOf": forms, "description": choice.__doc__}


@cache
def _options_schema(folder: registry.Folder, name: str) -> dict[str, Any]:
    return registry.options(folder, name).model_json_schema()


def _shared_schema(choice: type[Choice]) -> dict[str, Any]:
    """The keys that stand beside the options of every plugin."""
    properties = choice.model_json_schema(mode="validation")["properties"]
    return {key: properties[key] for key in choice.of_all() if key != "name"}
