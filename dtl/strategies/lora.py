"""LoRA: low-rank adapters beside frozen weights, with DoRA, rsLoRA, LoRA+, PiSSA, LoftQ."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from dtl.config.record import ConfigFault, refuse
from dtl.models.peft import adapters, loftq
from dtl.models.peft.adapters import TAKES_FROM_BASE
from dtl.strategies.base import Adapter, Excluding, GoingOn, OfBlocks

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

BEGUN_LATER = ("kaiming", "eva", "loftq")  # PEFT draws A, and B is zero


class Options(OfBlocks, Excluding, GoingOn):
    """Options of `strategy: lora` (Hu et al. 2021, arXiv:2106.09685)."""

    rank: int = Field(16, ge=1, description="Rank of the update.")
    alpha: float = Field(32.0, gt=0, description="Scale: the update is multiplied by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the adapter.")
    bias: Literal["none", "all", "lora_only"] = Field("none", description="Which biases learn too.")
    rslora: bool = Field(False, description="Scale by alpha / sqrt(rank) (arXiv:2312.03732).")
    dora: bool = Field(False, description="Learn magnitude and direction apart (arXiv:2402.09353).")
    loraplus: float = Field(
        1.0,
        gt=0,
        description="LoRA+ (arXiv:2402.12354): how many times A's learning rate B has; 16 there.",
    )
    init: Literal["kaiming", "gaussian", "orthogonal", "pissa", "olora", "eva", "loftq"] = Field(
        "kaiming",
        description="How the factors begin. kaiming and gaussian: A at random, B zero; orthogonal: "
        "both at random, with product zero; pissa (arXiv:2404.02948): the largest singular values "
        "of each weight; olora (arXiv:2406.01775): its QR decomposition; eva (arXiv:2410.07170): A "
        "along what varies most in what the layer reads of the training examples; loftq "
        "(arXiv:2310.08659): the best of its rank to make good what a weight loses in nf4.",
    )

    @model_validator(mode="after")
    def _an_adapter_that_goes_on_has_begun(self) -> Self:
        if self.continue_from is not None and self.init in ("eva", "loftq"):
            refuse(
                [
                    ConfigFault(
                        "init",
                        problem=f"{self.init} would write over the adapter of continue_from",
                        fix="leave init out: the adapter brings its own beginning",
                    )
                ]
            )
        return self

    @model_validator(mode="after")
    def _orthogonal_factors_come_in_pairs(self) -> Self:
        if self.init == "orthogonal" and self.rank % 2:
            refuse(
                [
                    ConfigFault(
                        "rank",
                        problem=f"init orthogonal halves the rank, and {self.rank} is odd",
                        fix=f"set rank to {self.rank + 1}",
                    )
                ]
            )
        return self


class Plugin(Adapter):
    """The adapters move, and a new head."""

    learning_rate = 2e-4
    method = "lora"
    options: Options

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        whole_base = options.init not in TAKES_FROM_BASE
        self.needs_base_weights = options.init == "loftq"
        # Biases learn in the base's place; with LoftQ a run begins nearer to the base than it is.
        self.keeps_base = whole_base and options.bias == "none" and not self.needs_base_weights
        self.needs_calibration = options.init == "eva"
        # Whole weights are taken apart, or used before the engine has them.
        self.max_zero_stage = 3 if whole_base and not self.needs_calibration else 2

    def settings(self, model: nn.Module) -> dict[str, Any]:
        options = self.options
        return {
            "r": options.rank,
            "lora_alpha": options.alpha,
            "lora_dropout": options.dropout,
            "bias": options.bias,
            "use_rslora": options.rslora,
            "use_dora": options.dora,
            "init_lora_weights": True if options.init in BEGUN_LATER else options.init,
        }

    def init_from_data(
        self,
        model: nn.Module,
        *,
        batches: Iterable[dict[str, Tensor]],
        show: Callable[[nn.Module, dict[str, Tensor]], Any],
    ) -> None:
        adapters.begin_along_inputs(model, batches=batches, show=show)

    def init_from_base_weights(
        self,
        model: nn.Module,
        *,
        whole: Mapping[str, Tensor],
        device: torch.device,
        beat: Callable[[], None],
    ) -> None:
        loftq.make_good(model, whole=whole, device=device, beat=beat)

    def rate_factor(self, name: str) -> float:
        return self.options.loraplus if ".lora_B." in name or "_embedding_B" in name else 1.0
