"""What PEFT puts beside a model: what goes with which model, put on, written, read back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dtl.core.errors import DtlError
from dtl.models.anatomy import head_module_names
from dtl.models.quantization.quantize import dequantize_base, suppress_peft_warnings
from dtl.models.trust import ADAPTER_CONFIG

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import Tensor, nn

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_NAME = "default"  # PEFT's name for a model's only adapter; it stands in no file
INITIAL_FACTORS = "_start_of_adapter"  # where a model keeps what was taken out of its base
MAX_EVA_BATCHES = 100  # that EVA looks at
BASE_CHANGING_INITS = (
    "pissa",
    "olora",
)  # what such an adapter begins with is no longer in the base

ModelKind = Literal[
    "decoder",
    "classifier on a decoder",
    "encoder",
    "encoder-decoder",
    "classifier on an encoder-decoder",
    "sound",
    "pictures",
    "convolutions",
]
MODEL_KIND_EXAMPLES: dict[ModelKind, str] = {
    "decoder": "Llama, Qwen, GPT, going on with a text",
    "classifier on a decoder": "the same, with a label for a text",
    "encoder": "BERT, RoBERTa; labels for tokens on any model",
    "encoder-decoder": "T5, BART, turning a text into another",
    "classifier on an encoder-decoder": "the same, with a label for a text",
    "sound": "wav2vec2, HuBERT, Whisper",
    "pictures": "ViT, Swin, ConvNeXt",
    "convolutions": "ResNet, with `target` naming its convolutions",
}
LINEAR_KINDS: tuple[ModelKind, ...] = tuple(
    kind for kind in MODEL_KIND_EXAMPLES if kind != "convolutions"
)
TEXT_KINDS: tuple[ModelKind, ...] = ("decoder", "encoder", "encoder-decoder")


@dataclass(frozen=True)
class Compatibility:
    """What a method goes with. `zero`: the highest ZeRO stage. `merges`: whether it can become part
    of the weights. `recomputes`: whether activations may be recomputed. `instead`: the nearest
    method for the other kinds of model."""

    kinds: tuple[ModelKind, ...]
    max_zero_stage: int = 3
    can_merge: bool = True
    supports_gradient_checkpointing: bool = True
    alternative: str = "lora"


COMPATIBILITY: dict[str, Compatibility] = {
    "lora": Compatibility((*LINEAR_KINDS, "convolutions")),
    "adalora": Compatibility((*LINEAR_KINDS, "convolutions"), max_zero_stage=0),
    "ia3": Compatibility((*LINEAR_KINDS, "convolutions")),
    "loha": Compatibility((*LINEAR_KINDS, "convolutions"), max_zero_stage=2),
    "lokr": Compatibility((*LINEAR_KINDS, "convolutions"), max_zero_stage=2),
    "oft": Compatibility(LINEAR_KINDS),
    "vera": Compatibility(LINEAR_KINDS),
    "prompt_tuning": Compatibility(TEXT_KINDS, can_merge=False),
    "p_tuning": Compatibility(TEXT_KINDS, can_merge=False),
    "prefix_tuning": Compatibility(
        (*TEXT_KINDS, "classifier on a decoder"),
        can_merge=False,
        supports_gradient_checkpointing=False,
    ),
}


def find_model_kind(model: nn.Module) -> ModelKind:
    """What a method must know of a model: how it reads, and what it makes of it."""
    reads = getattr(model, "main_input_name", "input_ids")
    if reads in ("input_values", "input_features"):
        return "sound"
    if reads == "pixel_values":
        return "pictures" if _has_linear_layers(model) else "convolutions"
    task, both = find_task_type(model), getattr(model.config, "is_encoder_decoder", False)
    if task == "SEQ_CLS" and both:
        return "classifier on an encoder-decoder"
    if task == "SEQ_CLS" and hasattr(model, "score"):  # it reads the label at the last token
        return "classifier on a decoder"
    if task == "CAUSAL_LM":
        return "decoder"
    return "encoder-decoder" if task == "SEQ_2_SEQ_LM" else "encoder"


def _has_linear_layers(model: nn.Module) -> bool:
    from torch import nn

    heads = head_module_names(model)
    return any(
        isinstance(module, nn.Linear) and name.partition(".")[0] not in heads
        for name, module in model.named_modules()
    )


def find_task_type(model: nn.Module) -> str | None:
    """PEFT wants to know which forward it wraps; None serves any model."""
    name = type(model).__name__
    if name.endswith("ForSequenceClassification"):
        return "SEQ_CLS"
    if name.endswith("ForTokenClassification"):
        return "TOKEN_CLS"
    if name.endswith("ForCausalLM") or name.endswith("LMHeadModel"):
        return "CAUSAL_LM"
    # Whisper too has a decoder beside an encoder, but reads sounds: PEFT would give it input_ids.
    reads_text = getattr(model, "main_input_name", None) == "input_ids"
    generates = name.endswith(("ForConditionalGeneration", "MTModel"))
    if reads_text and generates and getattr(model.config, "is_encoder_decoder", False):
        return "SEQ_2_SEQ_LM"
    return None


def is_on_meta_device(model: nn.Module) -> bool:
    """Whether there are only shapes, as where the planner counts."""
    return any(parameter.is_meta for parameter in model.parameters())


def check_compatibility(method: str, model: nn.Module) -> None:
    """Raise DtlError where the method does nothing right with this kind of model."""
    entry, kind = COMPATIBILITY[method], find_model_kind(model)
    if kind not in entry.kinds:
        raise DtlError.of(
            "strategy",
            f"{method} does not go with {type(model).__name__} ({kind})",
            f"take strategy {entry.alternative}"
            + (", with target naming its convolutions" if kind == "convolutions" else ""),
        )


def attach_adapter(
    model: nn.Module, method: str, settings: dict[str, Any], *, new_parameters: frozenset[str]
) -> nn.Module:
    """The model with what PEFT adds. `new`: parameters that the base did not bring; they learn.

    Raises ValueError as PEFT does, where the settings find no place in the model.
    """
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType, get_peft_model

    task = find_task_type(model)
    also = collect_modules_to_save(
        model, task, new_parameters, settings.pop("modules_to_save", None)
    )
    init = settings.get("init_lora_weights")
    if init is not None and is_on_meta_device(model):
        settings["init_lora_weights"] = True  # there are no values to begin from
    config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[method.upper()]](
        **settings, task_type=task, modules_to_save=also
    )
    adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if ".ranknum." in name:  # AdaLoRA's scale, which PEFT forgets to freeze without weights
            parameter.requires_grad_(False)
    if init in BASE_CHANGING_INITS:
        start = _copy_lora_factors(adapted)
        _check_rank(start, init, settings["r"])
        setattr(adapted, INITIAL_FACTORS, start)
    return _drop_virtual_token_logits(adapted)


def collect_modules_to_save(
    model: nn.Module,
    task: str | None,
    new_parameters: frozenset[str],
    requested: Iterable[str] | None,
) -> list[str] | None:
    """Modules that learn whole: those asked for, the head, and whatever holds new parameters."""
    # PEFT makes the head of a tagger learn whole, and would give it an adapter as well.
    heads = head_module_names(model) if new_parameters or task == "TOKEN_CLS" else ()
    return (
        sorted({*(requested or ()), *heads, *_modules_with_new_parameters(new_parameters, heads)})
        or None
    )


def _check_rank(start: dict[str, Tensor], init: str, rank: int) -> None:
    """A weight cannot be taken apart into more than its rank. Raises DtlError."""
    for name, value in start.items():
        narrowest = value.shape[1] if ".lora_A." in name else value.shape[0]
        if rank > narrowest:
            layer = name.removeprefix("base_model.model.").partition(".lora_")[0]
            raise DtlError.of(
                "strategy.rank",
                f"init {init} takes a rank of {rank} out of {layer}, whose rank is {narrowest}",
                f"set strategy.rank to {narrowest} or less, or leave it out by strategy.exclude",
            )


def _modules_with_new_parameters(new: frozenset[str], heads: tuple[str, ...]) -> set[str]:
    """Modules inside the base that hold new parameters, such as a pooler the base did not bring."""
    return {name.rpartition(".")[0] for name in new if name.partition(".")[0] not in heads}


def _drop_virtual_token_logits(adapted: Any) -> nn.Module:
    """PEFT leaves the scores of virtual tokens before those of the real ones: cut them off."""
    config = adapted.peft_config[ADAPTER_NAME]
    if config.is_prompt_learning and config.task_type in ("CAUSAL_LM", "TOKEN_CLS"):
        adapted.register_forward_hook(_slice_logits, with_kwargs=True)
    return adapted


def _slice_logits(_: nn.Module, given: Any, named: dict[str, Any], output: Any) -> Any:
    output.logits = output.logits[:, -named["input_ids"].shape[1] :]
    return output


def _copy_lora_factors(adapted: nn.Module) -> dict[str, Tensor]:
    """LoRA's factors as they are, in fp32, by their names in a file."""
    from peft import get_peft_model_state_dict

    return {
        name: value.detach().float().clone()
        for name, value in get_peft_model_state_dict(adapted, save_embedding_layers=False).items()
        if ".lora_A." in name or ".lora_B." in name
    }


def init_eva(
    adapted: Any,
    *,
    batches: Iterable[dict[str, Tensor]],
    forward: Callable[[nn.Module, dict[str, Tensor]], Any],
) -> None:
    """Point LoRA's A along the directions in which its layer's inputs vary most (EVA), until these
    stay; B is zero. Raises DtlError where they do not within so many batches, or A stays as it is.
    """
    import torch
    from peft import EvaConfig
    from peft.tuners.lora.eva import get_eva_state_dict

    config = copy.deepcopy(adapted.peft_config[ADAPTER_NAME])
    config.eva_config = EvaConfig(rho=1.0)  # the same rank everywhere, as it was planned
    with torch.no_grad():
        found = get_eva_state_dict(
            adapted,
            _LimitedBatches(iter(batches)),
            config,
            forward_fn=forward,
            prepare_model_inputs_fn=lambda batch, _: batch.get("attention_mask"),
            prepare_layer_inputs_fn=_select_layer_inputs,
            gather_distributed_inputs=False,  # each rank has seen them all
            show_progress_bar=False,
        )
        for name, module in adapted.named_modules():
            if hasattr(module, "lora_A") and name not in found:
                raise DtlError.of(
                    "strategy.init",
                    f"eva knows nothing of {name}, a {type(module.get_base_layer()).__name__}",
                    "name linear layers in strategy.target, or take another init",
                )
            if name in found:
                module.lora_A[ADAPTER_NAME].weight.copy_(found[name])


@dataclass(frozen=True)
class _LimitedBatches:
    """PEFT reads the first batch twice, and goes on until the directions stay; here it ends."""

    source: Iterator[dict[str, Tensor]]
    read: list[dict[str, Tensor]] = field(default_factory=list)

    def __len__(self) -> int:
        return MAX_EVA_BATCHES

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for place in range(MAX_EVA_BATCHES):
            if place == len(self.read):
                self.read.append(next(self.source))
            yield self.read[place]
        raise DtlError.of(
            "strategy.init",
            f"eva has found no steady directions in {MAX_EVA_BATCHES} batches of training examples",
            "take a lower strategy.rank, more examples, or init kaiming",
        )


def _select_layer_inputs(given: Any, mask: Tensor | None, _: str) -> Tensor:
    """What a layer reads (N, D), in fp32, without padding."""
    read: Tensor = given[0] if isinstance(given, tuple) else given
    if mask is not None and read.ndim == 3 and read.shape[:2] == mask.shape:
        return read[mask.to(read.device).bool()].float()
    return read.flatten(0, -2).float()


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


def vera_matrices(model: nn.Module) -> dict[str, Tensor]:
    """What the layers of VeRA share and do not learn; nothing with other methods."""
    return {
        name: value
        for name, value in model.named_buffers(remove_duplicate=False)
        if name.startswith("base_model.vera_")
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
    return _drop_virtual_token_logits(opened)


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


def count_virtual_tokens(model: nn.Module) -> int:
    """How many positions an opened adapter takes; none where there is no adapter."""
    config = getattr(model, "peft_config", {}).get(ADAPTER_NAME)
    return getattr(config, "num_virtual_tokens", None) or 0


def reserve_virtual_tokens(settings: Any, virtual_tokens: int) -> Any:
    """A model's config with as many positions as virtual tokens leave to a text.

    Batches are padded to a multiple of 8, and RoBERTa counts its positions from 2.
    """
    positions = getattr(settings, "max_position_embeddings", None)
    if not positions or not virtual_tokens:
        return settings
    left = (positions - virtual_tokens - 2) // 8 * 8
    if left < 8:
        raise DtlError.of(
            "strategy.tokens",
            f"{virtual_tokens} virtual tokens leave no room in the model's {positions} positions",
            f"set strategy.tokens to {max(positions - 10, 1)} or less",
        )
    narrowed = copy.copy(settings)
    narrowed.max_position_embeddings = left
    return narrowed
