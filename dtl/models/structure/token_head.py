"""The head of a language model, apart from what the model's forward does before and after it."""

# B batch, T tokens, N positions, W width, V vocabulary

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from dtl.models.structure.wrappers import find_transformers_model, unwrap

if TYPE_CHECKING:
    from torch import Tensor, nn

PROBED_POSITIONS = 3
SHIFT_LABELS = "prepare_decoder_input_ids_from_labels"  # into the input of a decoder


@dataclass(frozen=True)
class TokenHead:
    """The layer of a model that computes logits, and the model's code around it.

    `model`: of transformers, inside any wrapper. `name`: of the layer, a child of the model.
    `changes_logits`: whether the model changes logits after the layer: a scale, a soft cap, a bias.
    """

    model: nn.Module
    name: str
    changes_logits: bool

    @property
    def layer(self) -> nn.Module:
        """The layer, also where PEFT has wrapped it."""
        layer: nn.Module = getattr(self.model, self.name)
        return layer

    def hidden_states(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return what the layer reads (B, T, W) when the model's forward gets these arguments."""
        read: list[Tensor] = []
        vocabulary = int(self.layer.out_features)  # type: ignore[arg-type]

        def layer(states: Tensor, *_: Any, **__: Any) -> Tensor:
            read.append(states)
            return states.new_empty((len(states), 0, vocabulary))

        _forward(self.model, {self.name: _Replacement(layer, self.layer)}, *args, **kwargs)
        assert len(read) == 1, "find_token_head has checked that the layer is called once"
        return read[0]

    def final_logits(self, logits_NV: Tensor) -> Tensor:
        """Return the layer's logits as the model's forward returns them (N, V)."""
        return _final_logits(self.model, self.name, logits_NV) if self.changes_logits else logits_NV


# Of each model that was looked at: whether it changes its logits, or why that is not known.
_CHANGES_LOGITS: WeakKeyDictionary[Any, bool | str] = WeakKeyDictionary()


def find_token_head(model: nn.Module, *, shifts_labels: bool = False) -> TokenHead | str:
    """Return the head of a language model, also of one on the meta device; or why its losses need
    all of the model's logits.

    `shifts_labels`: the model gets labels, which it shifts into the input of its decoder itself.
    The model's forward runs without its other layers to see what it does around the head.
    """
    inner: Any = find_transformers_model(unwrap(model))[1]
    kind = type(inner).__name__
    layer = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    name = next((name for name, child in inner.named_children() if child is layer), None)
    if layer is None or name is None:
        return f"{kind} has no output layer of its own"
    if not hasattr(layer, "out_features"):
        return f"the output layer of {kind} is a {type(layer).__name__}"
    if shifts_labels and not hasattr(inner, SHIFT_LABELS):
        return f"{kind} has no {SHIFT_LABELS}"
    changes_logits = _CHANGES_LOGITS.get(inner)
    if changes_logits is None:
        changes_logits = _CHANGES_LOGITS[inner] = _changes_logits(inner, name)
    return (
        changes_logits
        if isinstance(changes_logits, str)
        else TokenHead(inner, name, changes_logits)
    )


def _changes_logits(model: Any, name: str) -> bool | str:
    """Return whether the forward changes the logits of the layer; or why the logits of a token are
    not those of its hidden state."""
    import torch

    kind = type(model).__name__
    own = (*model.buffers(recurse=False), *model.parameters(recurse=False))
    shape = (PROBED_POSITIONS, int(getattr(model, name).out_features))
    logits_NV = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    logits_NV = logits_NV.to(own[0].device if own else "cpu")
    try:
        with torch.no_grad():
            final_NV = _final_logits(model, name, logits_NV)
            first_1V = _final_logits(model, name, logits_NV[:1])
    except Exception as error:  # of code of any model, which does not expect to run like this
        return f"the forward of {kind} does not run without its base: {error}"
    is_by_position = final_NV.shape == shape and (
        logits_NV.is_meta or torch.allclose(final_NV[:1], first_1V, rtol=1e-6, atol=1e-6)
    )
    if not is_by_position:
        return f"{kind} does not compute the logits of a token from its hidden state alone"
    return bool(own) or not torch.equal(final_NV, logits_NV)


def _final_logits(model: Any, name: str, logits_NV: Tensor) -> Tensor:
    """Run the model's forward with all layers replaced, the one of this name by its result."""
    import torch

    calls = 0

    def layer(states: Tensor, *_: Any, **__: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return logits_NV[None]

    width = model.config.get_text_config().hidden_size
    tokens_BT = torch.zeros(1, len(logits_NV), dtype=torch.long, device=logits_NV.device)
    states_BTW = torch.zeros(1, len(logits_NV), width, device=logits_NV.device)
    inputs: dict[str, Any] = {model.main_input_name: tokens_BT}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens_BT
    others = {
        child_name: _Replacement(lambda *_, **__: _Output(states_BTW), child)
        for child_name, child in model.named_children()
    }
    replaced = {**others, name: _Replacement(layer, getattr(model, name))}
    final_BTV: Tensor = _forward(model, replaced, **inputs, use_cache=False).logits
    if calls != 1:
        raise ValueError(f"it calls {name} {calls} times")
    return final_BTV[0]


class _Output:
    """The output of any base: one tensor of hidden states, and nothing else."""

    def __init__(self, states_BTW: Tensor) -> None:
        self.last_hidden_state = states_BTW

    def __getattr__(self, name: str) -> None:
        return None

    def __getitem__(self, index: Any) -> Any:
        return (self.last_hidden_state,)[index]

    def __len__(self) -> int:
        return 1


class _Replacement:
    """A function that is called in place of a module, whose other attributes it has."""

    def __init__(self, function: Callable[..., Any], module: nn.Module) -> None:
        self._function, self._module = function, module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _forward(model: Any, replaced: dict[str, _Replacement], *args: Any, **kwargs: Any) -> Any:
    """Run the forward of a model with some of its children replaced; the model stays as it is.

    The other children are the model's own modules, whose hooks run.
    """
    view = object.__new__(type(model))
    view.__dict__.update(vars(model), **replaced)
    view.__dict__.pop("forward", None)
    return view.forward(*args, **kwargs)


@contextmanager
def replace_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Run this function when the module is called; its hooks run as before."""
    original = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if original is None:
            del module.forward
        else:
            module.forward = original
