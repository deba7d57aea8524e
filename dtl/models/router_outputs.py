"""What the routers of a mixture of experts compute, and the losses that its config asks for."""

# N tokens of a batch, E experts, B sequences, T tokens of a sequence

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from dtl.core.errors import DtlError

if TYPE_CHECKING:
    from torch import Tensor, nn

LOCATION = "train.router_aux_loss_coef"
COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef")  # names in configs
TOP_K = ("num_experts_per_tok", "moe_k", "num_experts_per_token", "top_k")
FLAGS = ("output_router_logits", "add_router_probs")  # a config asks for the losses
FIXED_TOP_K = {"switch_transformers": 1, "nllb-moe": 2}  # the config does not hold it
UNSUPPORTED = ("doge",)  # other routers than a softmax over experts
ASKS_FOR_ROUTERS = "_asks_for_routers"  # attribute of a model: its config did before


@dataclass(frozen=True)
class RouterLossSettings:
    """The losses of routers that training adds.

    `balance_coefficient`, `z_coefficient`: what they are multiplied by. `is_per_sequence`: whether
    each sequence is balanced by itself. `top_k`: experts of a token. `reason`: of the coefficients.
    """

    balance_coefficient: float
    z_coefficient: float
    is_per_sequence: bool
    top_k: int
    reason: str


def has_routers(config: Any) -> bool:
    """Return whether a model's config is that of a mixture of experts with a balance loss."""
    return _own_coefficient(config) is not None


def find_router_losses(config: Any, requested: float | None) -> RouterLossSettings | None:
    """Return the losses of routers; None if there are none.

    `requested`: `train.router_aux_loss_coef`; None: the config's, where its `output_router_logits`
    asks for them. Raises DtlError if they are requested of a model that does not have them.
    """
    own, text = _own_coefficient(config), config.get_text_config()
    kind = str(config.model_type)
    if requested is not None and (own is None or kind in UNSUPPORTED):
        raise DtlError.of(
            LOCATION, f"{kind} has no routers whose loss dtl computes", "remove the option"
        )
    asks = any(getattr(text, flag, False) for flag in FLAGS)
    if own is None or (requested is None and not asks):
        return None
    if kind in UNSUPPORTED:
        raise DtlError.of(
            "model.path",
            f"the config of {kind} sets output_router_logits, but dtl does not compute its loss",
            "set output_router_logits to false in config.json",
        )
    is_switch = kind == "switch_transformers"
    settings = RouterLossSettings(
        balance_coefficient=own if requested is None else requested,
        z_coefficient=float(text.router_z_loss_coef) if is_switch and requested != 0 else 0.0,
        is_per_sequence=is_switch,
        top_k=_find_top_k(kind, text),
        reason="output_router_logits of the base" if requested is None else LOCATION,
    )
    return settings if settings.balance_coefficient or settings.z_coefficient else None


def _own_coefficient(config: Any) -> float | None:
    text = config.get_text_config()
    for holder, names in ((text, COEFFICIENTS), (_dbrx_experts(text), ("moe_loss_weight",))):
        for name in names:
            if isinstance(value := getattr(holder, name, None), int | float):
                return float(value)
    return None


def _find_top_k(kind: str, text: Any) -> int:
    if kind in FIXED_TOP_K:
        return FIXED_TOP_K[kind]
    for holder, names in ((text, TOP_K), (_dbrx_experts(text), ("moe_top_k",))):
        for name in names:
            if isinstance(value := getattr(holder, name, None), int):
                return value
    raise DtlError.of(
        LOCATION, f"the config of {kind} does not say how many experts a token gets", "set it to 0"
    )


def _dbrx_experts(text: Any) -> Any:
    return getattr(text, "ffn_config", None)


def disable_router_outputs(model: nn.Module) -> None:
    """Keep the model from computing losses of its own: they are those of one batch on one rank, and
    fail in generation, where the mask is longer than the input."""
    text = model.config.get_text_config()  # type: ignore[union-attr, operator]
    if getattr(text, FLAGS[0], False):
        text.output_router_logits = False
        setattr(model, ASKS_FOR_ROUTERS, True)


def restore_router_outputs(model: nn.Module) -> None:
    """Set the config as it was before `disable_router_outputs`, to save it."""
    if getattr(model, ASKS_FOR_ROUTERS, False):
        model.config.get_text_config().output_router_logits = True  # type: ignore[union-attr, operator]


@dataclass(frozen=True)
class Routing:
    """What the routers of one stack of layers have computed for a batch.

    `logits`: of each layer, (N, E) or (B, T, E), any float dtype. `mask_BT`: 1 for a token, 0 for
    padding. `top_k`: experts of a token.
    """

    logits: tuple[Tensor, ...]
    mask_BT: Tensor
    top_k: int

    @property
    def mask_N(self) -> Tensor:
        """1 for a token and 0 for padding, (N,), fp32."""
        return self.mask_BT.reshape(-1).float()


class RouterRecorder:
    """Records what the routers of a model compute, while `recording` is entered.

    `skips_evaluation`: leave out what runs in evaluation mode, which is the base that a task
    compares the model with.
    """

    def __init__(self, model: nn.Module, *, top_k: int, skips_evaluation: bool) -> None:
        self.top_k, self.skips_evaluation = top_k, skips_evaluation
        self._routings: list[tuple[int, Routing]] | None = None
        self._labels: Tensor | None = None
        self.stacks = _find_stacks(model)
        for stack in self.stacks:
            stack.register_forward_pre_hook(self._request, with_kwargs=True)
        for number, stack in enumerate(self.stacks):
            stack.register_forward_hook(partial(self._record, number), with_kwargs=True)
        outermost = next(module for module in model.modules() if _is_pretrained(module))
        outermost.register_forward_pre_hook(self._note_labels, with_kwargs=True)

    @contextmanager
    def recording(self) -> Iterator[list[tuple[int, Routing]]]:
        """Yield a list that gets the number of a stack and its routing for each forward pass."""
        routings: list[tuple[int, Routing]] = []
        self._routings = routings
        try:
            yield routings
        finally:
            self._routings = None

    def _note_labels(self, _: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self._labels = kwargs.get("labels")

    def _request(self, _: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        wants = self._routings is not None
        return (args, {**kwargs, "output_router_logits": True}) if wants else None

    def _record(
        self, number: int, stack: nn.Module, args: Any, kwargs: dict[str, Any], output: Any
    ) -> None:
        if self._routings is None or (self.skips_evaluation and not stack.training):
            return
        logits = tuple(output.router_logits)
        if logits:
            shape = output.last_hidden_state.shape[:2]
            mask_BT = self._find_mask(kwargs.get("attention_mask"), shape, logits[0])
            self._routings.append((number, Routing(logits, mask_BT, self.top_k)))

    def _find_mask(self, mask: Tensor | None, shape: Any, like: Tensor) -> Tensor:
        """Return 1 for tokens and 0 for padding (B, T). A decoder has no mask, but labels."""
        if mask is not None and mask.shape == shape:
            return mask
        if self._labels is not None and self._labels.shape == shape:
            return self._labels >= 0
        return like.new_ones(shape)


def _is_pretrained(module: nn.Module) -> bool:
    from transformers import PreTrainedModel

    return isinstance(module, PreTrainedModel)


def _find_stacks(model: nn.Module) -> list[nn.Module]:
    """Return the innermost transformers models that record router logits: an encoder, a decoder."""
    recording = [
        module
        for module in model.modules()
        if _is_pretrained(module)
        and "router_logits" in (getattr(module, "_can_record_outputs", None) or {})
    ]
    return [
        stack
        for stack in recording
        if not any(other is not stack and other in recording for other in stack.modules())
    ]
