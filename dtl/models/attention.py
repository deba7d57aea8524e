"""Attention implementations: which ones need a GPU, and whether this machine can run one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dtl.config.schema import Model
from dtl.config.schema.model import KERNEL_OWNER
from dtl.core.errors import DtlError, shorten_message
from dtl.models.pretrained_config import HeadConfig, get_auto_class, load_changed_config

if TYPE_CHECKING:
    from torch import nn

LOCATION = "model.attention"
FLASH_PREFIX = "flash_attention_"


def needs_gpu(attention: str | None) -> bool:
    """Return whether transformers builds a model with this attention only where there is a GPU."""
    return attention is not None and attention.startswith((FLASH_PREFIX, KERNEL_OWNER))


def attention_on_meta_device(model: Model) -> str | None:
    """Return the attention with which the planner builds the model, on a machine with or without a
    GPU; parameters do not depend on it. None: the model's default."""
    return None if needs_gpu(model.attention) else model.attention


def check_attention_is_supported(network: nn.Module, model: Model) -> None:
    """Raise DtlError where the architecture does not support `model.attention`. Needs no GPU."""
    attention = model.attention or ""
    if attention.startswith(FLASH_PREFIX) and not getattr(network, "_supports_flash_attn", False):
        raise DtlError.of(
            LOCATION,
            f"{type(network).__name__} does not support {attention}",
            "set it to sdpa or eager, or leave it out",
        )


def check_attention_runs_here(model: Model, head: HeadConfig) -> None:
    """Raise DtlError where this machine lacks what `model.attention` needs: a GPU that supports it,
    its library, or its kernel from the hub. Reads no weights."""
    if not needs_gpu(model.attention):
        return
    import torch

    config, auto_class = load_changed_config(model, head), get_auto_class(model, head)
    try:
        with torch.device("meta"):
            auto_class.from_config(
                config, attn_implementation=model.attention, dtype=torch.bfloat16
            )
    except (ImportError, ValueError, OSError, RuntimeError) as fault:
        reason = shorten_message(fault)
        raise DtlError.of(
            LOCATION,
            f"{model.attention} cannot run here ({reason})",
            "install what it needs, or set it to sdpa, which needs nothing",
        ) from fault
