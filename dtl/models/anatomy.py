"""The parts of any transformers model: embeddings, ordered blocks, head."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dtl.core.errors import DtlError
from dtl.models.forward_order import children_in_forward_order
from dtl.models.full_shape import full_shape

if TYPE_CHECKING:
    from torch import nn

    Part = nn.Module | nn.Parameter

BATCH_NORM_STATISTICS = ("running_mean", "running_var")
MAX_STAGE_MATRICES = (
    2  # most matrices that a stage has beside its blocks: they bring it to another width
)
LAYER_COUNT_KEYS = (
    "num_hidden_layers",
    "encoder_layers",
    "decoder_layers",
)  # how often a config says


@dataclass(frozen=True)
class Anatomy:
    """Names of modules. `embeddings`: all that comes before the blocks. `blocks`: in the order of
    forward, an encoder's before a decoder's. `head`: what was put on the base."""

    embeddings: tuple[str, ...]
    blocks: tuple[str, ...]
    head: tuple[str, ...]


def find_anatomy(model: nn.Module) -> Anatomy:
    """Found in how the model is built, also where PEFT has wrapped it or its weights are elsewhere.

    Raises DtlError where there are no blocks that run one after another.
    """
    outer, inner = _find_transformers_model(model)
    blocks = _find_blocks(inner)
    heads = head_module_names(inner)
    lowest = {place for place, depth in _depths_by_id(inner, blocks).items() if depth == 0}
    stem = [
        name for name in _iter_modules_within(inner, lowest) if name.partition(".")[0] not in heads
    ]
    parts = ([outer + name for name in names] for names in (stem, blocks, heads))
    return Anatomy(*map(tuple, parts))


def parameter_depths(model: nn.Module) -> dict[str, int]:
    """How high each parameter stands: 0 in the embeddings, 1 to n in the blocks, n + 1 above them.

    What leads from one stage to the next goes with the block that it feeds; a norm after an encoder
    with the encoder's last block; a decoder's embeddings are embeddings, and so are prompts. What
    is tied has one name, and its lowest place. Raises DtlError as `anatomy` does.
    """
    _, inner = _find_transformers_model(model)
    found = _depths_by_id(inner, _find_blocks(inner))
    return {name: found.get(id(value), 0) for name, value in model.named_parameters()}


def num_dimensions(parameter: nn.Parameter) -> int:
    """Also of a parameter that ZeRO-3 has partitioned and emptied."""
    return len(full_shape(parameter))


def _find_transformers_model(model: nn.Module) -> tuple[str, nn.Module]:
    """The model inside of what PEFT puts around it, and the start of its names there."""
    from transformers import PreTrainedModel

    for name, module in model.named_modules():
        if isinstance(module, PreTrainedModel):
            return f"{name}." if name else "", module
    return "", model


def _find_blocks(model: nn.Module) -> dict[str, str]:
    """Names of blocks in the order of forward, each with the name of its outermost list."""
    blocks = dict(_iter_blocks(model, "", "", matrices=2)) or dict(
        _iter_blocks(model, "", "", matrices=1)
    )
    lists = dict.fromkeys(blocks.values())
    owners = Counter(name.rpartition(".")[0] for name in lists)
    told = [getattr(getattr(model, "config", None), name, None) for name in LAYER_COUNT_KEYS]
    least = min((number for number in told if isinstance(number, int)), default=0)
    problem = ""
    if not blocks:
        problem = "has no list of blocks"
    elif max(owners.values()) > 1:
        problem = f"keeps the parts of its blocks in several lists ({', '.join(lists)})"
    elif len(blocks) < least:
        problem = f"runs {least} layers over the weights of {len(blocks)}"
    if problem:
        raise DtlError.of(
            "model.path",
            f"{type(model).__name__} {problem}: its blocks cannot be told apart",
            "take a strategy that names no blocks, such as full or lora",
        )
    return blocks


def _iter_blocks(
    module: nn.Module, name: str, outermost: str, *, matrices: int
) -> Iterator[tuple[str, str]]:
    """A block is a member of a list of repeated classes and holds at least so many matrices: one
    alone is a convolution with its norm. A member that is hardly more than a list is a stage."""
    if not _is_list_of_blocks(module, matrices):
        for child in children_in_forward_order(module):
            if (part := module._modules.get(child)) is not None:
                yield from _iter_blocks(part, _join(name, child), outermost, matrices=matrices)
        return
    for number, member in module.named_children():
        path, outermost = _join(name, number), outermost or name
        inside = list(_iter_blocks(member, path, outermost, matrices=matrices))
        held = sum(
            _count_matrices(member.get_submodule(_relative_path(path, block)))
            for block, _ in inside
        )
        if inside and _count_matrices(member) - held <= MAX_STAGE_MATRICES:
            yield from inside
        else:
            yield path, outermost


def _is_list_of_blocks(module: nn.Module, matrices: int) -> bool:
    from torch import nn

    members = list(module.children())
    if not members or not isinstance(module, (nn.ModuleList, nn.Sequential)):
        return False
    repeated = len(members) == 1 or len({type(member) for member in members}) < len(members)
    return repeated and all(_count_matrices(member) >= matrices for member in members)


def _count_matrices(module: nn.Module) -> int:
    """How many weights of two dimensions or more it holds, without what PEFT put beside them."""
    base = getattr(module, "base_layer", None)
    if base is not None:
        return _count_matrices(base)
    own = sum(num_dimensions(parameter) > 1 for parameter in module.parameters(recurse=False))
    return own + sum(_count_matrices(child) for child in module.children())


def _depths_by_id(model: nn.Module, blocks: dict[str, str]) -> dict[int, int]:
    """The depth of each parameter, by its id."""
    depth: dict[int, int] = {}
    for part, place in _iter_parts_with_depth(model, blocks):
        for parameter in _list_parameters(part):
            depth[id(parameter)] = min(place, depth.get(id(parameter), place))
    return depth


def _iter_parts_with_depth(model: nn.Module, blocks: dict[str, str]) -> Iterator[tuple[Part, int]]:
    """Blocks and all that is outside of them, each with its depth."""
    names, passed = list(blocks), 0
    for path, part in _iter_parts(model, "", blocks):
        if path in blocks:
            passed += 1
            yield part, passed
        elif passed in (0, len(names)):
            yield part, passed and passed + 1
        else:
            before, after = blocks[names[passed - 1]], blocks[names[passed]]
            if before == after:
                yield part, passed + 1
            else:
                yield part, 0 if path.startswith(after.rpartition(".")[0] + ".") else passed


def _iter_parts(module: nn.Module, name: str, blocks: dict[str, str]) -> Iterator[tuple[str, Part]]:
    """Blocks, and modules and single parameters that hold none, in the order of forward."""
    for child in children_in_forward_order(module):
        path = _join(name, child)
        parameter, part = module._parameters.get(child), module._modules.get(child)
        if parameter is not None:
            yield path, parameter
        elif part is not None and path not in blocks and _contains_block(path, blocks):
            yield from _iter_parts(part, path, blocks)
        elif part is not None:
            yield path, part


def _contains_block(path: str, blocks: dict[str, str]) -> bool:
    return any(block.startswith(f"{path}.") for block in blocks)


def _list_parameters(part: Part) -> list[nn.Parameter]:
    from torch import nn

    return list(part.parameters()) if isinstance(part, nn.Module) else [part]


def _iter_modules_within(module: nn.Module, parameters: set[int], name: str = "") -> Iterator[str]:
    """The largest modules that hold none but these parameters."""
    for child, part in module.named_children():
        held = {id(parameter) for parameter in part.parameters()}
        if held and held <= parameters:
            yield _join(name, child)
        elif held & parameters:
            yield from _iter_modules_within(part, parameters, _join(name, child))


def _join(name: str, child: str) -> str:
    return f"{name}.{child}" if name else child


def _relative_path(name: str, path: str) -> str:
    return path[len(name) + 1 :]


def unwrap(model: nn.Module) -> nn.Module:
    """The model itself: what spreads it over processes holds it as `module`."""
    inner: nn.Module = getattr(model, "module", model)
    return inner


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """Modules that keep running statistics of what they see."""
    import torch

    return [
        module
        for module in model.modules()
        if isinstance(getattr(module, BATCH_NORM_STATISTICS[0], None), torch.Tensor)
    ]


def adapted_layers(model: nn.Module) -> list[Any]:
    """Layers that PEFT has put an adapter beside."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def set_training_from_depth(model: nn.Module, depth: int) -> None:
    """Training mode for what works at this depth or above, evaluation mode for the rest: also for
    what holds blocks, as it drops out, masks and leaves out layers from the bottom on."""
    from torch import nn

    model.train(depth == 0)
    _, inner = _find_transformers_model(model)
    for part, place in _iter_parts_with_depth(inner, _find_blocks(inner)):
        if isinstance(part, nn.Module):
            part.train(place >= depth)


def norm_parameters(model: nn.Module) -> frozenset[str]:
    """Scales and shifts of normalisation layers, whatever their class: one dimension each."""
    return frozenset(
        _join(path, name)
        for path, module in norm_modules(model)
        for name, parameter in module.named_parameters(recurse=False)
        if num_dimensions(parameter) == 1
    )


def norm_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Names and modules of the normalisation layers, whatever their class."""
    return [
        (path, module)
        for path, module in model.named_modules()
        if "norm" in type(module).__name__.lower()
    ]


def convolution_kernels(model: nn.Module) -> list[nn.Parameter]:
    """Kernels of convolutions: weights of three dimensions or more."""
    return [parameter for parameter in model.parameters() if num_dimensions(parameter) > 2]


def head_module_names(model: nn.Module) -> tuple[str, ...]:
    """Top-level modules beside the base: `score`, `classifier`, `lm_head` ... that hold weights.

    T5 keeps its base in several modules; there the head is what makes the output. Whisper's
    classifier keeps it in one of another name; there the head is what is no model of its own.
    """
    from transformers import PreTrainedModel

    base = getattr(model, "base_model_prefix", "")
    children = {
        name: module
        for name, module in model.named_children()
        if name != base and any(True for _ in module.parameters())
    }
    if hasattr(model, base) or not hasattr(model, "get_output_embeddings"):
        return tuple(children)
    output = model.get_output_embeddings()  # type: ignore[operator]
    if output is None and "For" in type(model).__name__:
        return tuple(n for n, module in children.items() if not isinstance(module, PreTrainedModel))
    return tuple(name for name, module in children.items() if module is output)


def head_modules(model: nn.Module) -> list[nn.Module]:
    """The head itself, wherever an adapter or an engine has wrapped it."""
    children = dict(model.named_children())
    return [children[name] for name in head_module_names(model)]


def head_parameters(model: nn.Module) -> frozenset[str]:
    """Names of the head's own parameters; what is tied to the base is the base's."""
    heads = head_module_names(model)
    every = dict(model.named_parameters(remove_duplicate=False))
    in_base = {id(value) for name, value in every.items() if name.partition(".")[0] not in heads}
    return frozenset(name for name, value in every.items() if id(value) not in in_base)
