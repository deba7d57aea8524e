"""Write an adapter as plain PEFT reads it, and load it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtl.core.errors import DtlError
from dtl.models.peft.base import ADAPTER_NAME, ADAPTER_WEIGHTS, INITIAL_FACTORS, vera_matrices
from dtl.models.peft.virtual_tokens import drop_virtual_token_logits
from dtl.models.quantization.quantize import suppress_peft_warnings
from dtl.models.trust import ADAPTER_CONFIG

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import Tensor, nn


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter as plain PEFT opens it over the plain base."""

    config: PeftConfig
    tensors: dict[str, Tensor]

    def save(self, folder: Path, *, base: nn.Module) -> None:
        from safetensors.torch import save_file

        folder.mkdir(parents=True)
        save_file(self.tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        kind = type(base)  # PEFT asks for it where the task does not tell
        mapping = {"base_model_class": kind.__name__, "parent_library": kind.__module__}
        self.config.save_pretrained(
            str(folder), auto_mapping_dict=None if self.config.task_type else mapping
        )


def build_adapter_files(adapted: Any, trained: dict[str, Tensor]) -> AdapterFiles:
    """What a file must hold, from the whole learning parameters on the CPU: the model's own may be
    partitioned, or be those of another step."""
    from peft import get_peft_model_state_dict

    learning = adapted.peft_config[ADAPTER_NAME]
    lets_go = learning.peft_type == "ADALORA"
    if lets_go:
        present, kept = learning.rank_pattern, find_active_ranks(trained)
        learning.rank_pattern = None if all(map(all, kept.values())) else kept
    learning.inference_mode = True  # then PEFT does not run the model for its virtual tokens
    try:
        config = copy.deepcopy(learning)
        # Drawn anew, what is shared could differ elsewhere: it is in the file.
        shared = {
            name: value.detach().to("cpu", copy=True).float()
            for name, value in vera_matrices(adapted).items()
        }
        tensors = get_peft_model_state_dict(
            adapted, state_dict=shared | trained, save_embedding_layers=False
        )
        if lets_go:
            config.rank_pattern = learning.rank_pattern  # by the names in the file
    finally:
        learning.inference_mode = False
        if lets_go:
            learning.rank_pattern = present
    if config.is_prompt_learning:
        tensors["prompt_embeddings"] = _encode_virtual_tokens(adapted, trained)
    if hasattr(adapted, INITIAL_FACTORS):
        config, tensors = _convert_to_plain_lora(config, tensors, getattr(adapted, INITIAL_FACTORS))
    return AdapterFiles(config, {name: value.contiguous() for name, value in tensors.items()})


def find_active_ranks(trained: dict[str, Tensor]) -> dict[str, list[bool]]:
    """Which ranks of each layer AdaLoRA has in use, by PEFT's names: a singular value that was let
    go of is zero."""
    return {
        name.removeprefix("base_model.model."): (value != 0).view(-1).tolist()
        for name, value in trained.items()
        if ".lora_E." in name
    }


def _encode_virtual_tokens(adapted: Any, trained: dict[str, Tensor]) -> Tensor:
    """What the base is given, without the network that it was learnt through."""
    import torch

    prefix = f"prompt_encoder.{ADAPTER_NAME}."
    inner = {
        name.removeprefix(prefix): value
        for name, value in trained.items()
        if name.startswith(prefix)
    }
    if set(inner) == {"embedding.weight"}:
        return inner["embedding.weight"]
    config = adapted.peft_config[ADAPTER_NAME]
    encoder = type(adapted.prompt_encoder[ADAPTER_NAME])(config).eval()
    encoder.load_state_dict(inner)
    tokens = adapted.prompt_tokens[ADAPTER_NAME][None]
    if config.peft_type == "PREFIX_TUNING":
        tokens = tokens[:, : config.num_virtual_tokens]
    with torch.no_grad():
        made: Tensor = encoder(tokens)[0]
    return made


def _convert_to_plain_lora(
    config: Any, tensors: dict[str, Tensor], start: dict[str, Tensor]
) -> tuple[PeftConfig, dict[str, Tensor]]:
    """LoRA that began from a part of the base, which the base in use then lacked: the difference to
    that beginning, of twice the rank, is LoRA over the base as its files have it."""
    import torch

    config.init_lora_weights = True
    config.r *= 2
    config.lora_alpha *= 2**0.5 if config.use_rslora else 2
    joined = dict(tensors)
    for name, value in start.items():
        if ".lora_A." in name:
            joined[name] = torch.cat([tensors[name], value])
        else:
            joined[name] = torch.cat([tensors[name], -value], dim=1)
    return config, joined


def check_adapter_folder(folder: Path, location: str) -> None:
    """Raise DtlError where a folder that a config names at `place` is not one of an adapter."""
    if not (folder / ADAPTER_WEIGHTS).is_file() or not (folder / ADAPTER_CONFIG).is_file():
        raise DtlError.of(
            location,
            f"{folder} holds no adapter ({ADAPTER_CONFIG} and {ADAPTER_WEIGHTS})",
            "name the export of a run, or a folder that PEFT has saved",
        )


def load_adapter_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a written adapter."""
    from peft.utils import load_peft_weights

    return dict(load_peft_weights(str(folder), device="cpu"))


def load_adapter(base: nn.Module, folder: Path) -> nn.Module:
    """A written adapter over its base."""
    from peft import PeftModel

    with suppress_peft_warnings():
        opened = PeftModel.from_pretrained(base, str(folder))
    if (
        opened.peft_config[ADAPTER_NAME].peft_type == "ADALORA"
    ):  # PEFT forgets it where nothing learns, and
        opened.base_model.trainable_adapter_name = (
            ADAPTER_NAME  # asks for it where there are labels
        )
    return drop_virtual_token_logits(opened)
