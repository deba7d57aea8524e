"""LoRA: low-rank adapters on frozen weights, with DoRA, rsLoRA, LoRA+, PiSSA, OLoRA, EVA, LoftQ."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from dtl.config.schema.base import ConfigFault, raise_config_faults
from dtl.models.peft import loftq
from dtl.models.peft.compatibility import BASE_CHANGING_INITS
from dtl.models.peft.eva import init_eva
from dtl.strategies.base import Adapter, ContinueFrom, ExcludeModules, LayersToTransform

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

INITS_AFTER_LOADING = ("kaiming", "eva", "loftq")  # PEFT first draws A at random and sets B to zero


class Options(LayersToTransform, ExcludeModules, ContinueFrom):
    """Options of `strategy: lora` (Hu et al. 2021, arXiv:2106.09685)."""

    rank: int = Field(16, ge=1, description="Rank of the update.")
    alpha: float = Field(32.0, gt=0, description="Scale: the update is multiplied by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the input of the adapter.")
    bias: Literal["none", "all", "lora_only"] = Field(
        "none",
        description="Biases that are trained as well: none, all, or those of adapted layers.",
    )
    use_rslora: bool = Field(False, description="Scale by alpha / sqrt(rank) (arXiv:2312.03732).")
    use_dora: bool = Field(
        False, description="Train magnitude and direction separately (DoRA, arXiv:2402.09353)."
    )
    loraplus_lr_ratio: float = Field(
        1.0,
        gt=0,
        description="LoRA+ (arXiv:2402.12354): learning rate of B / learning rate of A; the paper "
        "uses 16.",
    )
    init: Literal["kaiming", "gaussian", "orthogonal", "pissa", "olora", "eva", "loftq"] = Field(
        "kaiming",
        description="Initialization of the factors. kaiming and gaussian: A at random, B zero; "
        "orthogonal: both at random, with product zero; pissa (arXiv:2404.02948): the largest "
        "singular values of each weight; olora (arXiv:2406.01775): its QR decomposition; eva "
        "(arXiv:2410.07170): A is set to the principal components of the layer's inputs on "
        "training examples; loftq (arXiv:2310.08659): the low-rank approximation of the weight's "
        "nf4 quantization error.",
    )

    @model_validator(mode="after")
    def _check_init_with_continue_from(self) -> Self:
        if self.continue_from is not None and self.init in ("eva", "loftq"):
            raise_config_faults(
                [
                    ConfigFault(
                        "init",
                        problem=f"{self.init} would overwrite the adapter of continue_from",
                        fix="remove init: the adapter already has values",
                    )
                ]
            )
        return self

    @model_validator(mode="after")
    def _check_orthogonal_rank_is_even(self) -> Self:
        if self.init == "orthogonal" and self.rank % 2:
            raise_config_faults(
                [
                    ConfigFault(
                        "rank",
                        problem=f"init orthogonal needs an even rank (got {self.rank})",
                        fix=f"set rank to {self.rank + 1}",
                    )
                ]
            )
        return self


class Plugin(Adapter):
    """Trains the adapters and a new head."""

    learning_rate = 2e-4
    scales_learning_rate = True
    method = "lora"
    options: Options

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        base_unchanged = options.init not in BASE_CHANGING_INITS
        self.needs_base_weights = options.init == "loftq"
        # Biases are trained in place; with LoftQ, base + adapter is nearer to the unquantized base.
        self.preserves_base = (
            base_unchanged and options.bias == "none" and not self.needs_base_weights
        )
        self.needs_calibration = options.init == "eva"
        # Full weights are decomposed, or used before the engine has partitioned them.
        self.max_zero_stage = 3 if base_unchanged and not self.needs_calibration else 2

    def peft_config_kwargs(self, model: nn.Module) -> dict[str, Any]:
        options = self.options
        return {
            "r": options.rank,
            "lora_alpha": options.alpha,
            "lora_dropout": options.dropout,
            "bias": options.bias,
            "use_rslora": options.use_rslora,
            "use_dora": options.use_dora,
            "init_lora_weights": True if options.init in INITS_AFTER_LOADING else options.init,
        }

    def init_from_data(
        self,
        model: nn.Module,
        *,
        batches: Iterable[dict[str, Tensor]],
        forward: Callable[[nn.Module, dict[str, Tensor]], Any],
    ) -> None:
        init_eva(model, batches=batches, forward=forward)

    def init_from_base_weights(
        self,
        model: nn.Module,
        *,
        original_weights: Mapping[str, Tensor],
        device: torch.device,
        heartbeat: Callable[[], None],
    ) -> None:
        loftq.init_loftq(
            model, original_weights=original_weights, device=device, heartbeat=heartbeat
        )

    def learning_rate_factor(self, name: str) -> float:
        return (
            self.options.loraplus_lr_ratio if ".lora_B." in name or "_embedding_B" in name else 1.0
        )
