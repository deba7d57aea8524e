"""Merge an adapter into the weights of its base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtl.core.errors import DtlError
from dtl.models.peft.base import ADAPTER_NAME, is_on_meta_device
from dtl.models.peft.save_load import load_adapter_tensors
from dtl.models.quantization.quantize import dequantize_base, suppress_peft_warnings

if TYPE_CHECKING:
    from torch import nn


def merge_into_base(network: nn.Module, folder: Path) -> tuple[nn.Module, frozenset[str]]:
    """A model with a written adapter in its weights, and the names of what it brought whole, such
    as a head; a head for something else is left out. A weightless model stays as it is.

    Raises DtlError where the adapter is none that merges, or belongs to another base.
    """
    import torch
    from peft import PeftConfig, get_peft_model, set_peft_model_state_dict

    config, tensors = PeftConfig.from_pretrained(str(folder)), load_adapter_tensors(folder)
    if config.is_prompt_learning:
        raise DtlError.of(
            "model.adapters",
            f"{folder} holds virtual tokens, which no weight of the model can take in",
            "take an adapter that has been learnt by lora",
        )
    own = dict(network.named_parameters())
    inner = {name.removeprefix("base_model.model."): name for name in tensors}
    whole = {name: tensors.pop(inner[name]) for name in set(inner) & set(own)}
    heads = tuple(f"{name}." for name in config.modules_to_save or ())
    for name in [name for name in inner if name.startswith(heads) and name not in whole]:
        del tensors[inner[name]]  # of another head
    brought = {name for name, value in whole.items() if value.shape == own[name].shape}
    strange = [name for name in set(whole) - brought if not name.startswith(heads)]
    strange += [
        name for name in inner if inner[name] in tensors and not _has_target_layer(network, name)
    ]
    if not is_on_meta_device(network) and not strange:
        with torch.no_grad():
            for name in brought:
                own[name].copy_(whole[name])
        config.modules_to_save = config.task_type = None  # a plain wrapping, that adds no head
        config.inference_mode = True
        try:
            with suppress_peft_warnings():
                adapted = get_peft_model(network, config)
            strange += set_peft_model_state_dict(adapted, tensors).unexpected_keys
        except (RuntimeError, ValueError) as fault:
            strange.append(str(fault).splitlines()[0])
        else:
            network = merge_adapter(adapted).requires_grad_(True)
    if strange:
        raise DtlError.of(
            "model.adapters",
            f"{folder} does not belong to this base ({strange[0]})",
            f"name the base that it was learnt over: {config.base_model_name_or_path}",
        )
    return network, frozenset(brought)


def _has_target_layer(network: nn.Module, name: str) -> bool:
    """Whether the layer is there that a tensor of an adapter goes beside."""
    layer, beside, _ = name.rsplit(".", 2) if name.count(".") > 1 else ("", name, "")
    modules = dict(network.named_modules())
    shared = name.startswith("base_model.vera_")
    return shared or layer in modules or f"{layer}.{beside}" in modules


def merge_adapter(adapted: Any) -> nn.Module:
    """The plain model, with the adapter in its weights."""
    from peft.utils import ModulesToSaveWrapper

    adapted = dequantize_base(adapted)
    for name, module in list(adapted.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):  # PEFT 0.21 fails on a head of several layers
            adapted.set_submodule(name, module.modules_to_save[ADAPTER_NAME])
    model: nn.Module = adapted.merge_and_unload(safe_merge=True)
    return model
