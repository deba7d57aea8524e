"""Faults of validation as plain sentences: where, what, and how to fix it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from dtl.config import registry
from dtl.config.choices import Choice
from dtl.config.document import Document, Keys
from dtl.config.record import Record
from dtl.config.schema import RunConfig
from dtl.core.errors import Fault, near

# What other trainers call it -> what it is called here.
_ELSEWHERE = {
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
    "save_total_limit": "train.keep",
    "output_dir": "run.dir",
    "model_name_or_path": "model.path",
    "torch_dtype": "model.dtype",
    "load_in_4bit": "model.quantize",
    "load_in_8bit": "model.quantize",
    "bnb_4bit_use_double_quant": "model.double_quantize",
    "use_double_quant": "model.double_quantize",
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


@dataclass(frozen=True)
class _Wrong:
    """A key that is wrong: pydantic's account of it, and the keys that may stand beside it."""

    keys: Keys
    detail: Mapping[str, Any]
    beside: Mapping[str, FieldInfo]
    of_run: bool = True  # a key of a run's config

    @property
    def value(self) -> str:
        """The value as it may stand in a message."""
        return show(self.detail["input"])

    @property
    def meaning(self) -> str:
        """The key's description in brackets, if it has one."""
        field = self.beside.get(str(self.keys[-1])) if self.keys else None
        return f" ({field.description})" if field and field.description else ""


def explain(error: ValidationError, document: Document, place: str) -> list[Fault]:
    """One fault for each key that is wrong, in the order of the file."""
    by_key: dict[Keys, list[Mapping[str, Any]]] = {}
    for detail in error.errors(include_url=False):
        keys = written_keys(detail, document)
        if not any(keys[:length] in document.unread for length in range(len(keys) + 1)):
            by_key.setdefault(keys, []).append(detail)
    order = {origin.place: number for number, origin in enumerate(document.origins.values())}
    return [
        Fault(_place(keys, document, place), *_sentence(keys, by_key[keys], document))
        for keys in sorted(by_key, key=lambda keys: _rank(keys, document, order))
    ]


def written_keys(detail: Mapping[str, Any], document: Document) -> Keys:
    """The part of pydantic's location that stands in the file, without the arms of a union."""
    keys: Keys = ()
    for key in detail["loc"]:
        if not document.has((*keys, key)):
            if detail["type"] == "missing" and key == detail["loc"][-1]:
                return (*keys, key)
            if key not in _fields(keys, document):
                continue
            if isinstance(document.at(keys), str):  # `lora` stands where `{name: lora}` is meant
                return keys
            return (*keys, key)
        keys = (*keys, key)
    return keys


def _rank(keys: Keys, document: Document, order: Mapping[str, int]) -> float:
    """Where the fault stands among the others: in the order of writing, what is missing last."""
    origin = document.origin(keys)
    return order[origin.place] if origin else float("inf")


def _place(keys: Keys, document: Document, place: str) -> str:
    origin = document.origin(keys)
    dotted = ".".join(str(key) for key in keys)
    return f"{origin.place if origin else place}: {dotted}" if dotted else place


def _sentence(keys: Keys, details: list[Mapping[str, Any]], document: Document) -> tuple[str, str]:
    """Problem and fix. Several details of one key are the arms of a union: the value fits none."""
    beside = _fields(keys[:-1], document)
    wrong = _Wrong(keys, details[0], beside, of_run=document.record is None)
    if len(details) > 1 and {detail["type"] for detail in details} <= _WANTED.keys():
        wanted = " or ".join(dict.fromkeys(_WANTED[detail["type"]] for detail in details))
        return f"{wrong.value} does not fit", f"write {wanted}{wrong.meaning}"
    return _SENTENCES.get(wrong.detail["type"], _other)(wrong)


def _unknown_key(wrong: _Wrong) -> tuple[str, str]:
    name = str(wrong.keys[-1])
    hint = _hint(name, wrong.beside) if wrong.of_run else near(name, wrong.beside)
    return "no such key", hint or f"the keys here are: {', '.join(wrong.beside)}"


def _hint(name: str, beside: Mapping[str, FieldInfo]) -> str:
    """Where the key might belong: a near miss here, another section, another trainer's name."""
    if name in _ELSEWHERE:
        return f"did you mean '{_ELSEWHERE[name]}'?"
    sections = {section: _record_at((section,), RunConfig) for section in RunConfig.model_fields}
    homes = [
        section
        for section, record in sections.items()
        if record and not issubclass(record, Choice) and name in record.model_fields
    ]
    if homes and not near(name, beside):
        return f"did you mean '{homes[0]}.{name}'?"
    return near(name, beside)


def _missing(wrong: _Wrong) -> tuple[str, str]:
    return "this key is missing", f"add it{wrong.meaning}"


def _own_fault(wrong: _Wrong) -> tuple[str, str]:
    return wrong.detail["ctx"]["problem"], wrong.detail["ctx"]["fix"]


def _value_error(wrong: _Wrong) -> tuple[str, str]:
    """A plugin's own check: ValueError("problem; fix")."""
    problem, _, fix = str(wrong.detail["ctx"]["error"]).partition("; ")
    return problem, fix or f"change it{wrong.meaning}"


def _wrong_type(wrong: _Wrong) -> tuple[str, str]:
    wanted = _WANTED[wrong.detail["type"]]
    return f"{wrong.value} is not {wanted}", f"write {wanted}{wrong.meaning}"


def _wrong_word(wrong: _Wrong) -> tuple[str, str]:
    expected = str(wrong.detail["ctx"]["expected"])
    words = expected.replace("'", "").replace(" or ", ", ").split(", ")
    hint = near(str(wrong.detail["input"]), words)
    choose = f"choose one of: {', '.join(words)}"
    return f"{wrong.value} is not possible", f"{hint} ({choose})" if hint else choose


def _out_of_bounds(wrong: _Wrong) -> tuple[str, str]:
    bound, problem, wanted = _BOUNDS[wrong.detail["type"]]
    fix = f"write {wanted.format(wrong.detail['ctx'][bound])}{wrong.meaning}"
    return f"{wrong.value} is {problem}", fix


def _not_finite(wrong: _Wrong) -> tuple[str, str]:
    return f"{wrong.value} is not a finite number", f"write a number{wrong.meaning}"


def _too_short(wrong: _Wrong) -> tuple[str, str]:
    problem = "the value is too short" if wrong.detail["input"] else "the value is empty"
    return problem, f"fill it in{wrong.meaning}"


def _other(wrong: _Wrong) -> tuple[str, str]:
    return f"{wrong.value} does not fit ({wrong.detail['msg']})", f"change it{wrong.meaning}"


_SENTENCES: dict[str, Callable[[_Wrong], tuple[str, str]]] = {
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


def _fields(keys: Keys, document: Document) -> dict[str, FieldInfo]:
    """The keys that may stand in a section; for a choice, its name and the chosen one's options."""
    record = _record_at(keys, document.record or RunConfig)
    if record is None:
        return {}
    if not issubclass(record, Choice):
        return dict(record.model_fields)
    value = document.at(keys) if document.has(keys) else None
    name = value.get("name") if isinstance(value, dict) else value
    known = record.of_all()
    if name in registry.names(record.folder):
        known |= registry.options(record.folder, str(name)).model_fields
    return known


def _record_at(keys: Keys, root: type[Record]) -> type[Record] | None:
    """The record whose keys stand under these keys of `root`, if the schema has one there."""
    annotation: Any = root
    for key in keys:
        if isinstance(key, int):
            annotation = _items_of(annotation)
            continue
        record = next(_records_in(annotation), None)
        if record is None or issubclass(record, Choice) or key not in record.model_fields:
            return None
        annotation = record.model_fields[key].annotation
    return next(_records_in(annotation), None)


def _items_of(annotation: Any) -> Any:
    """What the list that an annotation allows is a list of."""
    if get_origin(annotation) is tuple:
        return get_args(annotation)[0]
    return next(filter(None, map(_items_of, get_args(annotation))), None)


def _records_in(annotation: Any) -> Iterator[type[Record]]:
    if isinstance(annotation, type) and issubclass(annotation, Record):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _records_in(part)
