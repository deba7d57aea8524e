"""Write an adapter as plain PEFT reads it, and load it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtl.core.checksums import DamagedFolder, verify_if_sealed
from dtl.core.errors import DtlError
from dtl.models.import_bitsandbytes import import_bitsandbytes
from dtl.models.peft.base import ADAPTER_NAME, ADAPTER_WEIGHTS, INITIAL_FACTORS, vera_matrices
from dtl.models.peft.virtual_tokens import drop_virtual_token_logits
from dtl.models.quantization.quantize import suppress_peft_warnings
from dtl.models.trust import ADAPTER_CONFIG

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import Tensor, nn


@dataclass(frozen=True)
class AdapterFiles:
    """The config and tensors of an adapter, as plain PEFT loads them over the plain base."""

    config: PeftConfig
    tensors: dict[str, Tensor]

    def save(self, folder: Path, *, base: nn.Module) -> None:
        from safetensors.torch import save_file

        folder.mkdir(parents=True)
        save_file(self.tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        cls = type(base)  # PEFT needs it if there is no task type
        mapping = {"base_model_class": cls.__name__, "parent_library": cls.__module__}
        config, base_path = copy.copy(self.config), self.config.base_model_name_or_path
        if base_path and Path(base_path).is_dir():  # so that PEFT finds it from every folder
            config.base_model_name_or_path = str(Path(base_path).absolute())
        config.save_pretrained(str(folder), auto_mapping_dict=None if config.task_type else mapping)


def build_adapter_files(adapted: Any, trained: dict[str, Tensor]) -> AdapterFiles:
    """Return the files of an adapter from the trained parameters.

    `trained`: full tensors on the CPU, by their names in the model. The model's own parameters may
    be partitioned, or be those of another step.
    """
    from peft import get_peft_model_state_dict

    model_config = adapted.peft_config[ADAPTER_NAME]
    prunes_ranks = model_config.peft_type == "ADALORA"
    if prunes_ranks:
        pattern_before, active = model_config.rank_pattern, find_active_ranks(trained)
        model_config.rank_pattern = None if all(map(all, active.values())) else active
    model_config.inference_mode = True  # then PEFT does not run the model for its virtual tokens
    try:
        config = copy.deepcopy(model_config)
        # The file contains the shared matrices: another machine could draw others.
        shared = {
            name: value.detach().to("cpu", copy=True).float()
            for name, value in vera_matrices(adapted).items()
        }
        tensors = get_peft_model_state_dict(
            adapted, state_dict=shared | trained, save_embedding_layers=False
        )
        if prunes_ranks:
            config.rank_pattern = model_config.rank_pattern  # by the names in the file
    finally:
        model_config.inference_mode = False
        if prunes_ranks:
            model_config.rank_pattern = pattern_before
    if config.is_prompt_learning:
        tensors["prompt_embeddings"] = _encode_virtual_tokens(adapted, trained)
    if hasattr(adapted, INITIAL_FACTORS):
        config, tensors = _convert_to_plain_lora(config, tensors, getattr(adapted, INITIAL_FACTORS))
    return AdapterFiles(config, {name: value.contiguous() for name, value in tensors.items()})


def find_active_ranks(trained: dict[str, Tensor]) -> dict[str, list[bool]]:
    """Return which ranks of each layer AdaLoRA uses, by PEFT's names. The singular value of a
    pruned rank is zero."""
    return {
        name.removeprefix("base_model.model."): (value != 0).view(-1).tolist()
        for name, value in trained.items()
        if ".lora_E." in name
    }


def _encode_virtual_tokens(adapted: Any, trained: dict[str, Tensor]) -> Tensor:
    """Return the virtual tokens (tokens, D) that the base reads, computed by their network if they
    have one."""
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
        encoded: Tensor = encoder(tokens)[0]
    return encoded


def _convert_to_plain_lora(
    config: Any, tensors: dict[str, Tensor], start: dict[str, Tensor]
) -> tuple[PeftConfig, dict[str, Tensor]]:
    """Return LoRA over the original base, for LoRA whose initial factors were subtracted from it.

    It is the difference between the trained and the initial factors `start`, of twice the rank.
    """
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
    """Raise DtlError if a folder that the config names at `location` has no adapter, or a damaged
    export of one."""
    if not (folder / ADAPTER_WEIGHTS).is_file() or not (folder / ADAPTER_CONFIG).is_file():
        raise DtlError.of(
            location,
            f"{folder} has no adapter ({ADAPTER_CONFIG} and {ADAPTER_WEIGHTS})",
            "use the export of a run, or a folder that PEFT has saved",
        )
    verify_export(folder)


def verify_export(folder: Path) -> None:
    """Raise DtlError where a file of an export is not what was written. A folder without
    checksums.json, of another program, is not verified."""
    run = folder.absolute().parent
    command = f"`dtl export {run if (run / 'run.json').is_file() else 'RUN'} --to {folder}`"
    try:
        verify_if_sealed(folder, fix=f"remove it, and make it again from the checkpoint: {command}")
    except DamagedFolder as damage:
        raise DtlError(*damage.faults) from damage


def load_adapter_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a saved adapter, on the CPU, by their names in the file."""
    import_bitsandbytes()
    from peft.utils import load_peft_weights

    return dict(load_peft_weights(str(folder), device="cpu"))


def load_adapter(base: nn.Module, folder: Path) -> nn.Module:
    """Return the base with a saved adapter."""
    from peft import PeftModel

    with suppress_peft_warnings():
        model = PeftModel.from_pretrained(base, str(folder))
    if model.peft_config[ADAPTER_NAME].peft_type == "ADALORA":
        # PEFT does not set it for inference, and reads it if the batch has labels.
        model.base_model.trainable_adapter_name = ADAPTER_NAME
    return drop_virtual_token_logits(model)
