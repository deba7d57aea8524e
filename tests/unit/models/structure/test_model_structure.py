"""The parts that are found in a model are those that run, in the order in which they run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import nn

from dtl.core.errors import DtlError
from dtl.engine.deepspeed import read_full_shape
from dtl.models.full_shape import register_shape_reader
from dtl.models.structure.forward_order import children_in_forward_order
from dtl.models.structure.model_structure import ModelStructure, find_structure, parameter_depths
from tests.architectures import ARCHITECTURES, IMAGE, TEXT

NAMED = {architecture.name: architecture for architecture in ARCHITECTURES}
BETWEEN_BLOCKS = "deberta.encoder.conv."  # counts as embeddings, and runs after the first block


@cache
def built(name: str) -> Any:
    torch.manual_seed(0)
    return NAMED[name].build()


@dataclass(frozen=True)
class Ran:
    """What was found in a model, and what then happened in it. `started`: modules in the order in
    which they began; `gradient`: whether the gradient comes to what a block gives, where only
    depths above `cut` learn."""

    parts: ModelStructure
    depth: dict[str, int]
    frozen_depth: int
    started: list[str]
    gradient: dict[str, bool]


@cache
def ran(name: str) -> Ran:
    model = built(name)
    parts, depth = find_structure(model), parameter_depths(model)
    frozen_depth = len(parts.blocks) // 2
    started: list[str] = []
    gradient: dict[str, bool] = {}

    def end(module: nn.Module, given: Any, output: Any, *, name: str) -> None:
        first = output if isinstance(output, torch.Tensor) else output[0]
        gradient[name] = first.requires_grad

    for path, parameter in model.named_parameters():
        parameter.requires_grad_(depth[path] > frozen_depth)
    hooks = [
        module.register_forward_pre_hook(lambda *given, path=path: started.append(path))
        for path, module in model.named_modules()
    ]
    for block in parts.blocks:
        hooks.append(model.get_submodule(block).register_forward_hook(partial(end, name=block)))
    model(**NAMED[name].batch())
    for hook in hooks:
        hook.remove()
    model.requires_grad_(True)
    return Ran(parts, depth, frozen_depth, started, gradient)


@pytest.fixture(params=NAMED)
def name(request: Any) -> str:
    return request.param


# Every architecture -----------------------------------------------------------------------------


def test_there_are_many_architectures_of_every_kind() -> None:
    assert len(NAMED) >= 30
    assert {"text", "pairs of texts", "sound", "image"} <= {each.shows for each in ARCHITECTURES}


def test_blocks_run_once_each_in_the_reported_order(name: str) -> None:
    blocks = ran(name).parts.blocks
    assert len(blocks) == NAMED[name].blocks
    assert [module for module in ran(name).started if module in blocks] == list(blocks)


def test_every_parameter_has_one_depth_that_agrees_with_forward(name: str) -> None:
    """What is in the n-th block has depth n, and nothing else runs there; depth 0 runs before the
    first block, of an encoder or of a decoder, and what is above them after the last."""
    blocks, depth = ran(name).parts.blocks, ran(name).depth
    assert list(depth) == [path for path, _ in built(name).named_parameters()]
    for place, block in enumerate(blocks, start=1):
        inside = {depth[path] for path in depth if path.startswith(f"{block}.")}
        assert inside == {place}
    passed, at_start = 0, {}
    for module in ran(name).started:
        passed += module in blocks
        at_start.setdefault(module, passed)
    beginnings = (0, sum("encoder" in block for block in blocks))
    for path, place in depth.items():
        owner = path.rpartition(".")[0]
        in_block = path.startswith(tuple(f"{block}." for block in blocks))
        if owner in at_start and not in_block and not path.startswith(BETWEEN_BLOCKS):
            expected = beginnings if place == 0 else (place - 1, place)
            assert at_start[owner] in expected, path
        assert 0 <= place <= len(blocks) + 1


def test_no_gradient_below_the_lowest_trained_depth(name: str) -> None:
    found = ran(name)
    assert [found.gradient[block] for block in found.parts.blocks] == [
        place > found.frozen_depth for place in range(1, len(found.parts.blocks) + 1)
    ]


def test_embeddings_have_the_lowest_depth_and_the_head_the_highest(name: str) -> None:
    parts, depth = ran(name).parts, ran(name).depth
    model, top = built(name), len(ran(name).parts.blocks) + 1
    place = {id(value): depth[path] for path, value in model.named_parameters()}
    assert parts.head
    for module in parts.embeddings:
        assert {place[id(value)] for value in model.get_submodule(module).parameters()} == {0}
    every = model.named_parameters(remove_duplicate=False)
    tied = {id(value) for path, value in every if path.partition(".")[0] not in parts.head}
    for module in parts.head:
        for value in model.get_submodule(module).parameters():
            assert place[id(value)] == (0 if id(value) in tied else top), module


def test_model_on_meta_device_has_the_same_structure(name: str) -> None:
    with torch.device("meta"):
        on_meta = NAMED[name].build()
    assert find_structure(on_meta) == ran(name).parts
    assert parameter_depths(on_meta) == ran(name).depth


# Wrapped and partitioned ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("LlamaForSequenceClassification", "all-linear"),
        ("BartForConditionalGeneration", "all-linear"),
        ("Wav2Vec2ForCTC", ["conv_layers.0.conv", "conv_layers.1.conv", "q_proj"]),
        ("ResNetForImageClassification", ["convolution"]),
        ("SwinForImageClassification", "all-linear"),
    ],
)
def test_peft_changes_only_names(name: str, targets: Any) -> None:
    from peft import LoraConfig, get_peft_model

    plain = NAMED[name].build()
    expected, depth = find_structure(plain), parameter_depths(plain)
    wrapped = get_peft_model(plain, LoraConfig(r=2, target_modules=targets, bias="all"))
    found, inside = find_structure(wrapped), "base_model.model."
    for part in ("embeddings", "blocks", "head"):
        assert getattr(found, part) == tuple(inside + name for name in getattr(expected, part))
    for path, place in parameter_depths(wrapped).items():
        owner = path.removeprefix(inside).partition(".lora_")[0].replace(".base_layer", "")
        assert {depth[name] for name in depth if name.startswith(owner)} == {place}, path


def test_prompts_have_the_depth_of_embeddings() -> None:
    from peft import PromptTuningConfig, get_peft_model

    model = NAMED["LlamaForCausalLM"].build()
    prompted = get_peft_model(
        model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )
    depth = parameter_depths(prompted)
    assert [depth[name] for name in depth if "prompt" in name] == [0]
    assert max(depth.values()) == 4


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "ResNetForImageClassification"])
def test_partitioned_weights_have_the_same_structure(name: str) -> None:
    """ZeRO-3 leaves a parameter flat and empty, and stores its shape."""
    model = NAMED[name].build()
    expected, depth = find_structure(model), parameter_depths(model)
    register_shape_reader(read_full_shape)
    for parameter in model.parameters():
        parameter.ds_shape = parameter.shape
        parameter.data = torch.empty(0)
    assert find_structure(model) == expected
    assert parameter_depths(model) == depth


def test_base_without_head_has_no_head_modules() -> None:
    from transformers import LlamaConfig, LlamaModel

    found = find_structure(LlamaModel(LlamaConfig(**TEXT)))
    assert found.head == ()
    assert found.blocks == ("layers.0", "layers.1", "layers.2")
    assert found.embeddings == ("embed_tokens",)


# Forward's own order ----------------------------------------------------------------------------


class Unordered(nn.Module):
    """Registers its children in another order than it uses them."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(2, 2)
        self.unnamed = nn.Linear(2, 2)
        self.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))
        self.between = nn.Linear(2, 2)
        self.inner = nn.Linear(2, 2)
        self.outer = nn.Linear(2, 2)
        self.start = nn.Parameter(torch.zeros(2))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(inputs)
        for block in self.blocks:
            hidden = block(hidden) + self.between(hidden)
        return self.last(hidden)

    def embed(self, inputs: torch.Tensor) -> torch.Tensor:
        """Its source has a line
        that is not indented."""
        return self.outer(self.inner(inputs + self.start))


def test_order_is_that_of_the_source_of_forward() -> None:
    assert children_in_forward_order(Unordered()) == [
        *("start", "inner", "outer"),
        *("between", "blocks", "last", "unnamed"),
    ]


def test_class_without_source_has_the_order_of_registration() -> None:
    made: dict[str, Any] = {"nn": nn}
    exec(
        "class Made(nn.Module):\n    def forward(self, x): return self.a(self.b(x))\n",
        made,
    )
    module = made["Made"]()
    module.a, module.b = nn.Linear(2, 2), nn.Linear(2, 2)
    assert children_in_forward_order(module) == ["a", "b"]


# Models without ordered blocks ------------------------------------------------------------------


def albert() -> Any:
    from transformers import AlbertConfig, AlbertForSequenceClassification

    return AlbertForSequenceClassification(AlbertConfig(**{**TEXT, "embedding_size": 8}))


def xlm() -> Any:
    from transformers import XLMConfig, XLMForSequenceClassification

    return XLMForSequenceClassification(XLMConfig(vocab_size=48, emb_dim=16, n_layers=2, n_heads=2))


def same_block_again() -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    model = ViTForImageClassification(ViTConfig(**IMAGE))
    model.vit.layers = nn.ModuleList([model.vit.layers[0]] * 3)
    return model


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (albert, "runs 3 layers with the weights of 1"),
        (xlm, r"has the parts of its blocks in several lists \(transformer.attentions, "),
        (same_block_again, "runs 3 layers with the weights of 1"),
        (lambda: nn.Linear(2, 2), "Linear has no list of blocks"),
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU()), "has no list of blocks"),
    ],
)
@pytest.mark.parametrize("function", [find_structure, parameter_depths])
def test_model_without_ordered_blocks_is_rejected(make: Any, problem: str, function: Any) -> None:
    with pytest.raises(DtlError, match=problem) as caught:
        function(make())
    (fault,) = caught.value.faults
    assert fault.location == "model.path" and "full or lora" in fault.fix
