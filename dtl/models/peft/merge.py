"""Merge an adapter into the weights of its base."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtl.core.errors import DtlError
from dtl.models.import_bitsandbytes import import_bitsandbytes
from dtl.models.peft.base import ADAPTER_NAME, is_on_meta_device
from dtl.models.peft.save_load import load_adapter_tensors
from dtl.models.peft.token_rows import check_token_rows
from dtl.models.quantization.quantize import dequantize_base, suppress_peft_warnings

if TYPE_CHECKING:
    from torch import nn


def merge_into_base(network: nn.Module, folder: Path) -> tuple[nn.Module, frozenset[str]]:
    """Return the model with an adapter merged into its weights, and the names of the parameters
    that the adapter replaces, such as those of a head.

    A head for other labels is dropped. A model on the meta device does not change. Raises DtlError
    if the adapter cannot be merged or belongs to another base.
    """
    import_bitsandbytes()
    import torch
    from peft import PeftConfig, get_peft_model, set_peft_model_state_dict

    config, tensors = PeftConfig.from_pretrained(str(folder)), load_adapter_tensors(folder)
    if config.is_prompt_learning:
        raise DtlError.of(
            "model.adapters",
            f"{folder} holds virtual tokens, which cannot be merged into the model's weights",
            "take an adapter of another method, such as lora",
        )
    check_token_rows(
        network, getattr(config, "trainable_token_indices", None), location="model.adapters"
    )
    parameters = dict(network.named_parameters())
    frozen = {name for name, value in parameters.items() if not value.requires_grad}
    inner = {name.removeprefix("base_model.model."): name for name in tensors}
    saved = {name: tensors.pop(inner[name]) for name in set(inner) & set(parameters)}
    heads = tuple(f"{name}." for name in config.modules_to_save or ())
    for name in [name for name in inner if name.startswith(heads) and name not in saved]:
        del tensors[inner[name]]  # of another head
    replaced = {name for name, value in saved.items() if value.shape == parameters[name].shape}
    unmatched = [name for name in set(saved) - replaced if not name.startswith(heads)]
    unmatched += [
        name for name in inner if inner[name] in tensors and not _has_target_layer(network, name)
    ]
    if not is_on_meta_device(network) and not unmatched:
        with torch.no_grad():
            for name in replaced:
                parameters[name].copy_(saved[name])
        config.modules_to_save = config.task_type = None  # PEFT must not add a head
        config.inference_mode = True
        try:
            with suppress_peft_warnings():
                adapted = get_peft_model(network, config)
            unmatched += set_peft_model_state_dict(adapted, tensors).unexpected_keys
        except (RuntimeError, ValueError) as fault:
            unmatched.append(str(fault).splitlines()[0])
        else:
            network = merge_adapter(adapted)
            for name, parameter in network.named_parameters():
                parameter.requires_grad_(name not in frozen)
    if unmatched:
        raise DtlError.of(
            "model.adapters",
            f"{folder} does not belong to this base ({unmatched[0]})",
            f"use the base that it was trained over: {config.base_model_name_or_path}",
        )
    return network, frozenset(replaced)


def _has_target_layer(network: nn.Module, name: str) -> bool:
    """Return whether the model has the layer that a tensor of an adapter belongs to."""
    layer, part, _ = name.rsplit(".", 2) if name.count(".") > 1 else ("", name, "")
    modules = dict(network.named_modules())
    is_shared = name.startswith("base_model.vera_")
    return is_shared or layer in modules or f"{layer}.{part}" in modules


def merge_adapter(adapted: Any) -> nn.Module:
    """Return the plain model, with the adapter merged into its weights."""
    from peft.utils import ModulesToSaveWrapper

    adapted = dequantize_base(adapted)
    for name, module in list(adapted.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):  # PEFT 0.21 fails on a head of several layers
            adapted.set_submodule(name, module.modules_to_save[ADAPTER_NAME])
    ties = getattr(adapted.get_base_model().config, "tie_word_embeddings", None)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied")
        model: nn.Module = adapted.merge_and_unload(safe_merge=True)
    if ties and _is_output_shared(model):  # PEFT 0.21 looks only at the embedding of an encoder
        model.config.tie_word_embeddings = ties  # type: ignore[union-attr]
    return model


def _is_output_shared(model: nn.Module) -> bool:
    """Return whether the output layer has the weight of another module."""
    output = model.get_output_embeddings()  # type: ignore[operator]
    named = model.named_parameters(remove_duplicate=False)
    return output is not None and sum(value is output.weight for _, value in named) > 1
