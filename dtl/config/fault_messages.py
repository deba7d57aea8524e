"""Messages for faults of validation: location, problem and fix."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from dtl.config import registry
from dtl.config.schema import PluginConfig, Record, RunConfig
from dtl.config.yaml_document import Document, Keys
from dtl.core.errors import Fault, near

# The key of another trainer -> the key of dtl.
_OTHER_TRAINERS = {
    "lr": "optim.learning_rate",
    "max_grad_norm": "optim.gradient_clip",
    "warmup_steps": "optim.warmup",
    "warmup_ratio": "optim.warmup",
    "lr_scheduler_type": "optim.schedule",
    "batch_size": "train.global_batch",
    "per_device_train_batch_size": "layout.micro_batch",
    "train_sampling_strategy": "train.group_by_length",
    "gradient_checkpointing": "layout.activation_checkpointing",
    "max_steps": "train.steps",
    "num_train_epochs": "train.epochs",
    "eval_steps": "train.evaluate_every",
    "save_steps": "train.save_every",
    "save_total_limit": "train.keep_last",
    "output_dir": "run.dir",
    "model_name_or_path": "model.path",
    "torch_dtype": "model.dtype",
    "load_in_4bit": "model.quantize",
    "load_in_8bit": "model.quantize",
    "bnb_4bit_use_double_quant": "model.double_quantize",
    "use_double_quant": "model.double_quantize",
    "num_processes": "layout.processes_per_node",
    "gpus": "layout.processes_per_node",
    "zero_stage": "layout.zero_stage",
    "attn_implementation": "model.attention",
}
_EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list in [ ]",
    "tuple_type": "a list in [ ]",
    "dict_type": "a section of keys",
    "model_type": "a section of keys",
    "model_attributes_type": "a section of keys",
    "none_required": "null",
}
_BOUNDS = {
    "greater_than": ("gt", "too small", "a number above {:g}"),
    "greater_than_equal": ("ge", "too small", "{:g} or more"),
    "less_than": ("lt", "too large", "a number below {:g}"),
    "less_than_equal": ("le", "too large", "{:g} or less"),
}


@dataclass(frozen=True)
class _InvalidKey:
    """An invalid key: pydantic's error, and the keys that its section may have."""

    keys: Keys
    detail: Mapping[str, Any]
    siblings: Mapping[str, FieldInfo]
    in_run_config: bool = True

    @property
    def value(self) -> str:
        """The value as a message shows it."""
        return format_value(self.detail["input"])

    @property
    def meaning(self) -> str:
        """The key's description in parentheses, if it has one."""
        field = self.siblings.get(str(self.keys[-1])) if self.keys else None
        return f" ({field.description})" if field and field.description else ""


def describe_faults(error: ValidationError, document: Document, location: str) -> list[Fault]:
    """Return one fault for each invalid key, in the order of the file; `location` of the file."""
    by_key: dict[Keys, list[Mapping[str, Any]]] = {}
    for detail in error.errors(include_url=False):
        keys = written_keys(detail, document)
        if not any(keys[:length] in document.invalid_keys for length in range(len(keys) + 1)):
            by_key.setdefault(keys, []).append(detail)
    order = {origin.location: number for number, origin in enumerate(document.origins.values())}
    return [
        Fault(_locate(keys, document, location), *_describe(keys, by_key[keys], document))
        for keys in sorted(by_key, key=lambda keys: _rank(keys, document, order))
    ]


def written_keys(detail: Mapping[str, Any], document: Document) -> Keys:
    """Return the part of pydantic's location that is in the file, without members of a union."""
    keys: Keys = ()
    for key in detail["loc"]:
        if not document.has_value((*keys, key)):
            if detail["type"] == "missing" and key == detail["loc"][-1]:
                return (*keys, key)
            if key not in _fields(keys, document):
                continue
            if isinstance(document.get_value(keys), str):  # `lora` is short for `{name: lora}`
                return keys
            return (*keys, key)
        keys = (*keys, key)
    return keys


def _rank(keys: Keys, document: Document, order: Mapping[str, int]) -> float:
    """Return the sort key of a fault: the order of the file, missing keys last."""
    origin = document.find_origin(keys)
    return order[origin.location] if origin else float("inf")


def _locate(keys: Keys, document: Document, location: str) -> str:
    origin = document.find_origin(keys)
    dotted = ".".join(str(key) for key in keys)
    return f"{origin.location if origin else location}: {dotted}" if dotted else location


def _describe(keys: Keys, details: list[Mapping[str, Any]], document: Document) -> tuple[str, str]:
    """Return problem and fix; several details of one key are the members of a union."""
    siblings = _fields(keys[:-1], document)
    key = _InvalidKey(keys, details[0], siblings, in_run_config=document.record is None)
    if len(details) > 1 and {detail["type"] for detail in details} <= _EXPECTED.keys():
        expected = " or ".join(dict.fromkeys(_EXPECTED[detail["type"]] for detail in details))
        return f"{key.value} does not fit", f"write {expected}{key.meaning}"
    return _DESCRIBERS.get(key.detail["type"], _describe_other)(key)


def _describe_unknown(key: _InvalidKey) -> tuple[str, str]:
    name = str(key.keys[-1])
    hint = _hint(name, key.siblings) if key.in_run_config else near(name, key.siblings)
    return "no such key", hint or f"the keys here are: {', '.join(key.siblings)}"


def _hint(name: str, siblings: Mapping[str, FieldInfo]) -> str:
    """Return a hint: a similar key here, the key in another section, another trainer's key."""
    if name in _OTHER_TRAINERS:
        return f"did you mean '{_OTHER_TRAINERS[name]}'?"
    sections = {section: _record_at((section,), RunConfig) for section in RunConfig.model_fields}
    containing = [
        section
        for section, record in sections.items()
        if record and not issubclass(record, PluginConfig) and name in record.model_fields
    ]
    if containing and not near(name, siblings):
        return f"did you mean '{containing[0]}.{name}'?"
    return near(name, siblings)


def _describe_missing(key: _InvalidKey) -> tuple[str, str]:
    return "this key is missing", f"add it{key.meaning}"


def _describe_own_fault(key: _InvalidKey) -> tuple[str, str]:
    return key.detail["ctx"]["problem"], key.detail["ctx"]["fix"]


def _describe_value_error(key: _InvalidKey) -> tuple[str, str]:
    """Return problem and fix of a plugin's own check: ValueError("problem; fix")."""
    problem, _, fix = str(key.detail["ctx"]["error"]).partition("; ")
    return problem, fix or f"change it{key.meaning}"


def _describe_type(key: _InvalidKey) -> tuple[str, str]:
    expected = _EXPECTED[key.detail["type"]]
    return f"{key.value} is not {expected}", f"write {expected}{key.meaning}"


def _describe_literal(key: _InvalidKey) -> tuple[str, str]:
    expected = str(key.detail["ctx"]["expected"])
    words = expected.replace("'", "").replace(" or ", ", ").split(", ")
    hint = near(str(key.detail["input"]), words)
    choices = f"choose one of: {', '.join(words)}"
    return f"{key.value} is not possible", f"{hint} ({choices})" if hint else choices


def _describe_bound(key: _InvalidKey) -> tuple[str, str]:
    bound, problem, expected = _BOUNDS[key.detail["type"]]
    fix = f"write {expected.format(key.detail['ctx'][bound])}{key.meaning}"
    return f"{key.value} is {problem}", fix


def _describe_not_finite(key: _InvalidKey) -> tuple[str, str]:
    return f"{key.value} is not a finite number", f"write a number{key.meaning}"


def _describe_too_short(key: _InvalidKey) -> tuple[str, str]:
    problem = "the value is too short" if key.detail["input"] else "the value is empty"
    return problem, f"fill it in{key.meaning}"


def _describe_other(key: _InvalidKey) -> tuple[str, str]:
    return f"{key.value} does not fit ({key.detail['msg']})", f"change it{key.meaning}"


_DESCRIBERS: dict[str, Callable[[_InvalidKey], tuple[str, str]]] = {
    "extra_forbidden": _describe_unknown,
    "missing": _describe_missing,
    "dtl_fault": _describe_own_fault,
    "value_error": _describe_value_error,
    "literal_error": _describe_literal,
    "finite_number": _describe_not_finite,
    "string_too_short": _describe_too_short,
    "too_short": _describe_too_short,
    **dict.fromkeys(_EXPECTED, _describe_type),
    **dict.fromkeys(_BOUNDS, _describe_bound),
}


def format_value(value: Any) -> str:
    """Return a value as a message shows it: short, and as YAML writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "a section of keys"
    if isinstance(value, list | tuple):
        return "a list"
    text = str(value)
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return f"'{text}'" if isinstance(value, str) else text


def _fields(keys: Keys, document: Document) -> dict[str, FieldInfo]:
    """Return the keys that a section may have; of a plugin, its name and options."""
    record = _record_at(keys, document.record or RunConfig)
    if record is None:
        return {}
    if not issubclass(record, PluginConfig):
        return dict(record.model_fields)
    value = document.get_value(keys) if document.has_value(keys) else None
    name = value.get("name") if isinstance(value, dict) else value
    known = record.shared_fields()
    if name in registry.list_names(record.folder):
        known |= registry.load_options(record.folder, str(name)).model_fields
    return known


def _record_at(keys: Keys, root: type[Record]) -> type[Record] | None:
    """Return the record at these keys of `root`, if the schema has one there."""
    annotation: Any = root
    for key in keys:
        if isinstance(key, int):
            annotation = _item_type(annotation)
            continue
        record = next(_records_in(annotation), None)
        if record is None or issubclass(record, PluginConfig) or key not in record.model_fields:
            return None
        annotation = record.model_fields[key].annotation
    return next(_records_in(annotation), None)


def _item_type(annotation: Any) -> Any:
    """Return the type of the items of the list that an annotation allows."""
    if get_origin(annotation) is tuple:
        return get_args(annotation)[0]
    return next(filter(None, map(_item_type, get_args(annotation))), None)


def _records_in(annotation: Any) -> Iterator[type[Record]]:
    if isinstance(annotation, type) and issubclass(annotation, Record):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _records_in(part)
