"""Faults of validation as plain sentences: where, what, and how to mend it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from dtl import registry
from dtl.config.document import Document, Keys
from dtl.config.schema import Choice, Record, RunConfig
from dtl.errors import Fault, near

# What other trainers call it -> what it is called here.
_ELSEWHERE = {
    "lr": "optim.learning_rate",
    "max_grad_norm": "optim.gradient_clip",
    "warmup_steps": "optim.warmup",
    "warmup_ratio": "optim.warmup",
    "lr_scheduler_type": "optim.schedule",
    "batch_size": "train.global_batch",
    "per_device_train_batch_size": "layout.micro_batch",
    "gradient_checkpointing": "layout.activation_checkpointing",
    "max_steps": "train.steps",
    "num_train_epochs": "train.epochs",
    "eval_steps": "train.evaluate_every",
    "save_steps": "train.save_every",
    "save_total_limit": "train.keep",
    "output_dir": "run.dir",
    "model_name_or_path": "model.path",
    "torch_dtype": "model.dtype",
    "num_processes": "layout.processes",
    "gpus": "layout.processes",
    "zero_stage": "layout.zero",
    "attn_implementation": "model.attention",
}
_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
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


def explain(error: ValidationError, document: Document, place: str) -> list[Fault]:
    """One fault for each key that is wrong, in the order of the file."""
    by_key: dict[Keys, list[Mapping[str, Any]]] = {}
    for detail in error.errors(include_url=False):
        by_key.setdefault(written_keys(detail, document), []).append(detail)
    order = {origin.place: number for number, origin in enumerate(document.origins.values())}
    return [
        Fault(_place(keys, document, place), *_sentence(keys, by_key[keys]))
        for keys in sorted(by_key, key=lambda keys: _rank(keys, document, order))
    ]


def _rank(keys: Keys, document: Document, order: Mapping[str, int]) -> float:
    """Where the fault stands among the others: in the order of writing, what is missing last."""
    origin = document.origin(keys)
    return order[origin.place] if origin else float("inf")


def written_keys(detail: Mapping[str, Any], document: Document) -> Keys:
    """The part of pydantic's location that stands in the file, without the arms of a union."""
    keys: Keys = ()
    for key in detail["loc"]:
        try:
            document.at((*keys, key))
        except (KeyError, IndexError):
            if detail["type"] == "missing" and key == detail["loc"][-1]:
                return (*keys, key)
            if _record_at((*keys, key)) or key in _fields(_record_at(keys)):
                return keys if _is_short_form(document, keys) else (*keys, key)
            continue
        keys = (*keys, key)
    return keys


def _is_short_form(document: Document, keys: Keys) -> bool:
    """Whether `lora` stands where `{name: lora}` is meant."""
    try:
        return isinstance(document.at(keys), str)
    except (KeyError, IndexError):
        return False


def _place(keys: Keys, document: Document, place: str) -> str:
    origin = document.origin(keys)
    dotted = ".".join(str(key) for key in keys)
    parts = [origin.place if origin else place, dotted]
    return ": ".join(part for part in parts if part)


def _sentence(keys: Keys, details: list[Mapping[str, Any]]) -> tuple[str, str]:
    """Problem and mend. Several details of one key are the arms of a union: the value fits none."""
    kinds = {detail["type"] for detail in details}
    if len(details) > 1 and kinds <= _WANTED.keys():
        wanted = " or ".join(dict.fromkeys(_WANTED[detail["type"]] for detail in details))
        return f"{show(details[0]['input'])} does not fit", f"write {wanted}{_meaning(keys)}"
    return _SENTENCES.get(details[0]["type"], _other)(keys, details[0])


def _unknown_key(keys: Keys, detail: Mapping[str, Any]) -> tuple[str, str]:
    known = _fields(_record_at(keys[:-1]))
    return "no such key", _hint(str(keys[-1]), known) or f"the keys here are {', '.join(known)}"


def _hint(name: str, known: Mapping[str, Any]) -> str:
    """Where the key might belong: a near miss here, another section, another trainer's name."""
    if name in _ELSEWHERE:
        return f"did you mean '{_ELSEWHERE[name]}'?"
    homes = [
        f"{section}.{name}"
        for section in RunConfig.model_fields
        if name in _fields(_record_at((section,)))
    ]
    if homes and not near(name, known):
        return f"did you mean '{homes[0]}'?"
    return near(name, known)


def _missing(keys: Keys, detail: Mapping[str, Any]) -> tuple[str, str]:
    return "this key is missing", f"add it{_meaning(keys)}"


def _own_fault(keys: Keys, detail: Mapping[str, Any]) -> tuple[str, str]:
    return detail["ctx"]["problem"], detail["ctx"]["mend"]


def _value_error(keys: Keys, detail: Mapping[str, Any]) -> tuple[str, str]:
    """A plugin's own check: ValueError("problem; mend")."""
    problem, _, mend = str(detail["ctx"]["error"]).partition("; ")
    return problem, mend or f"change it{_meaning(keys)}"


def _wrong_type(keys: Keys, detail: Mapping[str, Any]) -> tuple[str, str]:
    wanted = _WANTED[detail["type"]]
    return f"{show(detail['input'])} is not {wanted}", f"write {wanted}{_meaning(keys)}"


def _wrong_word(keys: Keys, detail: Mapping[str, Any]) -> tuple[str, str]:
    expected = str(detail["ctx"]["expected"])
    words = expected.replace("'", "").replace(" or ", ", ").split(", ")
    hint = near(str(detail["input"]), words)
    choose = f"choose one of: {', '.join(words)}"
    return f"{show(detail['input'])} is not possible", f"{hint} ({choose})" if hint else choose


def _out_of_bounds(keys: Keys, detail: Mapping[str, Any]) -> tuple[str, str]:
    bound, problem, wanted = _BOUNDS[detail["type"]]
    mend = f"write {wanted.format(detail['ctx'][bound])}{_meaning(keys)}"
    return f"{show(detail['input'])} is {problem}", mend


def _not_finite(keys: Keys, detail: Mapping[str, Any]) -> tuple[str, str]:
    return f"{detail['input']} is not a finite number", f"write a number{_meaning(keys)}"


def _too_short(keys: Keys, detail: Mapping[str, Any]) -> tuple[str, str]:
    return "the value is empty" if not detail["input"] else "the value is too short", (
        f"fill it in{_meaning(keys)}"
    )


def _other(keys: Keys, detail: Mapping[str, Any]) -> tuple[str, str]:
    return f"{show(detail['input'])} does not fit ({detail['msg']})", f"change it{_meaning(keys)}"


_SENTENCES: dict[str, Callable[[Keys, Mapping[str, Any]], tuple[str, str]]] = {
    "extra_forbidden": _unknown_key,
    "missing": _missing,
    "dtl_fault": _own_fault,
    "value_error": _value_error,
    "literal_error": _wrong_word,
    "finite_number": _not_finite,
    "string_too_short": _too_short,
    "too_short": _too_short,
    **dict.fromkeys(_WANTED, _wrong_type),
    **dict.fromkeys(_BOUNDS, _out_of_bounds),
}


def show(value: Any) -> str:
    """A value as it may stand in a message: short, and in the words of the file."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "a section of keys"
    if isinstance(value, list | tuple):
        return "a list"
    text = str(value)
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return f"'{text}'" if isinstance(value, str) else text


def _meaning(keys: Keys) -> str:
    """The key's description in brackets, if it has one."""
    field = _fields(_record_at(keys[:-1])).get(str(keys[-1])) if keys else None
    return f" ({field.description})" if field is not None and field.description else ""


def _fields(record: type[Record] | None) -> dict[str, Any]:
    """The keys that may stand in a section; a choice shows its name and every option there is."""
    if record is None:
        return {}
    if not issubclass(record, Choice):
        return dict(record.model_fields)
    known: dict[str, Any] = {"name": record.model_fields["name"]}
    for name in registry.names(record.folder):
        known |= registry.options(record.folder, name).model_fields
    return known


def _record_at(keys: Keys) -> type[Record] | None:
    """The record whose keys stand under these keys, if the schema has one there."""
    record: type[Record] = RunConfig
    for key in keys:
        field = None if issubclass(record, Choice) else record.model_fields.get(str(key))
        below = next(_records_in(field.annotation), None) if field else None
        if below is None:
            return None
        record = below
    return record


def _records_in(annotation: Any) -> Iterator[type[Record]]:
    if isinstance(annotation, type) and issubclass(annotation, Record):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _records_in(part)
