"""Reject model files that could run code, before a library opens them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from dtl.config.schema import Model
from dtl.core.errors import DtlError

LOCATION = "model.path"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
WEIGHT_INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"


def check_no_remote_code(where: str, model: Model) -> None:
    """Raise DtlError if the config files of a model lead a library to code or to a pickle.

    `where`: its folder or hub id. Other pickles are never opened, so they are no fault.
    """
    if _find_file(where, model, ADAPTER_CONFIG) is not None:
        raise DtlError.of(
            LOCATION,
            f"{model.path} is an adapter ({ADAPTER_CONFIG}), not a full model",
            f"set its base here, and this folder in model.adapters: [{model.path}]",
        )
    _check_weight_files(where, model)
    settings = _read_json(where, model, "config.json")
    _check_attention_kernels(settings, model)
    if model.trust_remote_code:
        _check_code_is_local(settings, model, "config.json")
        tokenizer = _read_json(where, model, "tokenizer_config.json")
        _check_code_is_local(tokenizer, model, "tokenizer_config.json")


def check_safetensors(where: str) -> None:
    """Raise DtlError if a folder has no weights in safetensors."""
    folder = Path(where)
    if not folder.is_dir() or list(folder.glob("*.safetensors")):
        return
    pickles = sorted(entry.name for entry in folder.iterdir() if entry.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise DtlError.of(
            LOCATION,
            f"{folder} has its weights in a pickle ({pickles[0]}), which can run code",
            "convert it to safetensors: load it where you trust it and call save_pretrained",
        )
    raise DtlError.of(
        LOCATION,
        f"{folder} has no weights (*.safetensors)",
        "take strategy scratch, or add the weights",
    )


def _check_weight_files(where: str, model: Model) -> None:
    """Raise DtlError unless all weight files are safetensors files in the model's folder."""
    named = _read_json(where, model, "config.json").get("transformers_weights")
    if isinstance(named, str) and not _is_plain_file_name(
        named, (".safetensors", ".safetensors.index.json")
    ):
        raise _weight_file_fault(model, "config.json", named)
    shards = _read_json(where, model, WEIGHT_INDEX).get("weight_map")
    for name in shards.values() if isinstance(shards, dict) else ():
        if not _is_plain_file_name(str(name), (".safetensors",)):
            raise _weight_file_fault(model, WEIGHT_INDEX, str(name))


def _is_plain_file_name(name: str, endings: tuple[str, ...]) -> bool:
    return PurePosixPath(name).name == name and "\\" not in name and name.endswith(endings)


def _weight_file_fault(model: Model, file: str, name: str) -> DtlError:
    return DtlError.of(
        LOCATION,
        f"{file} of {model.path} names the weights '{name}', which is no safetensors file in its "
        "folder",
        "save the model again with save_pretrained, where you trust it",
    )


def _check_attention_kernels(settings: dict[str, Any], model: Model) -> None:
    """Raise DtlError for an attention implementation with a slash: code of the hub."""
    for key in ("attn_implementation", "_attn_implementation"):
        if "/" in json.dumps(settings.get(key)):
            raise DtlError.of(
                LOCATION,
                f"config.json of {model.path} requests code of the hub ({key})",
                "remove the key from config.json, and set model.attention",
            )


def _check_code_is_local(notes: dict[str, Any], model: Model, file: str) -> None:
    """Raise DtlError for `owner/name--module.Class`: code of another repository, of any version."""
    for name in _iter_strings(notes.get("auto_map")):
        if "--" in name:
            raise DtlError.of(
                LOCATION,
                f"{file} of {model.path} takes code of no pinned version from another repository "
                f"('{name}')",
                "copy that code into the model's folder and specify it in auto_map",
            )


def _iter_strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _iter_strings(part)


def _read_json(where: str, model: Model, name: str) -> dict[str, Any]:
    """Return a JSON object of a model; empty if there is none that a library can read."""
    file = _find_file(where, model, name)
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _find_file(where: str, model: Model, name: str) -> Path | None:
    """Return a file of a model folder, or of a hub model in the cache; None if there is none."""
    if Path(where).is_dir():
        file = Path(where) / name
        return file if file.is_file() else None
    from transformers.utils import cached_file

    file_name = cached_file(
        where,
        name,
        revision=model.revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return Path(file_name) if file_name else None
