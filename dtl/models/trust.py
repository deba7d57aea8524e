"""Refuses model files that could run code, before a library opens them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from dtl.config.schema import Model
from dtl.core.errors import DtlError

PLACE = "model.path"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
SHARDS = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"


def refuse_code(where: str, model: Model) -> None:
    """Raise DtlError where the notes of a model lead a library to code or to a pickle.

    `where`: its folder or hub id. Pickles that nothing leads to are never opened, and no fault.
    """
    if _file(where, model, ADAPTER) is not None:
        raise DtlError.of(
            PLACE,
            f"{model.path} holds an adapter ({ADAPTER}), not a whole model",
            f"name its base, and this folder in model.adapters: [{model.path}]",
        )
    _refuse_foreign_weights(where, model)
    settings = _notes(where, model, "config.json")
    _refuse_kernels(settings, model)
    if model.trust_remote_code:
        _refuse_unpinned_code(settings, model, "config.json")
        tokenizer = _notes(where, model, "tokenizer_config.json")
        _refuse_unpinned_code(tokenizer, model, "tokenizer_config.json")


def refuse_pickled_weights(where: str) -> None:
    """Raise DtlError for a folder without weights in safetensors."""
    folder = Path(where)
    if not folder.is_dir() or list(folder.glob("*.safetensors")):
        return
    pickles = sorted(entry.name for entry in folder.iterdir() if entry.suffix in PICKLED)
    if pickles:
        raise DtlError.of(
            PLACE,
            f"{folder} holds its weights as a pickle ({pickles[0]}), which can run code",
            "convert it to safetensors: open it where you trust it and call save_pretrained",
        )
    raise DtlError.of(
        PLACE,
        f"{folder} holds no weights (*.safetensors)",
        "take strategy scratch, or add the weights",
    )


def _refuse_foreign_weights(where: str, model: Model) -> None:
    """Weights lie beside their index, in safetensors."""
    named = _notes(where, model, "config.json").get("transformers_weights")
    if isinstance(named, str) and not _is_beside(
        named, (".safetensors", ".safetensors.index.json")
    ):
        raise _foreign(model, "config.json", named)
    shards = _notes(where, model, SHARDS).get("weight_map")
    for name in shards.values() if isinstance(shards, dict) else ():
        if not _is_beside(str(name), (".safetensors",)):
            raise _foreign(model, SHARDS, str(name))


def _is_beside(name: str, endings: tuple[str, ...]) -> bool:
    return PurePosixPath(name).name == name and "\\" not in name and name.endswith(endings)


def _foreign(model: Model, file: str, name: str) -> DtlError:
    return DtlError.of(
        PLACE,
        f"{file} of {model.path} names the weights '{name}', no safetensors file beside it",
        "save the model again with save_pretrained, where you trust it",
    )


def _refuse_kernels(settings: dict[str, Any], model: Model) -> None:
    """An attention implementation with a slash is code that is fetched from the hub."""
    for key in ("attn_implementation", "_attn_implementation"):
        if "/" in json.dumps(settings.get(key)):
            raise DtlError.of(
                PLACE,
                f"config.json of {model.path} asks for code of the hub ({key})",
                "remove the key from it, and set model.attention",
            )


def _refuse_unpinned_code(notes: dict[str, Any], model: Model, file: str) -> None:
    """`owner/name--module.Class` is code of another repository, in whatever version it has."""
    for name in _texts(notes.get("auto_map")):
        if "--" in name:
            raise DtlError.of(
                PLACE,
                f"{file} of {model.path} takes code of no pinned version from elsewhere ('{name}')",
                "copy that code into the model's folder and name it in auto_map",
            )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def _notes(where: str, model: Model, name: str) -> dict[str, Any]:
    """A JSON file of a model; empty where there is none that a library could read."""
    file = _file(where, model, name)
    try:
        read = json.loads(file.read_text(encoding="utf-8")) if file else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}


def _file(where: str, model: Model, name: str) -> Path | None:
    """A file of a model folder, or of a hub model as its cache has it."""
    if Path(where).is_dir():
        file = Path(where) / name
        return file if file.is_file() else None
    from transformers.utils import cached_file

    found = cached_file(
        where,
        name,
        revision=model.revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return Path(found) if found else None
