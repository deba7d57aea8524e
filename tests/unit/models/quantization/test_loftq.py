"""LoftQ initializes LoRA from the quantization error, as PEFT does."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.overrides import TorchFunctionMode

from dtl.assembly.parts import assemble
from dtl.config.schema import Model, RunConfig
from dtl.core.errors import DtlError
from dtl.models.load import LoadedModel
from dtl.models.quantization import quantize
from tests.unit.models.quantization.quantized_models import (
    CLASSIFIER,
    LM,
    attach_lora,
    base,
    compute_loss,
    config,
    load,
    lora,
    trainable,
)


class ForceCpu(TorchFunctionMode):
    """PEFT decomposes weights only on a GPU."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        return function(*args, **(kwargs | {"device": "cpu"} if "device" in kwargs else kwargs))


def init_loftq(loaded: LoadedModel, **options: Any) -> Any:
    model = attach_lora(loaded, init="loftq", **options)
    lora(init="loftq").init_from_base_weights(
        model,
        original_weights=loaded.original_weights,
        device=torch.device("cpu"),
        heartbeat=lambda: None,
    )
    return model


@pytest.mark.parametrize(
    ("name", "dtype", "double", "options"),
    [
        ("decoder", "fp32", True, {}),
        ("decoder", "bf16", False, {"use_rslora": True}),
        ("encoder", "fp32", True, {"use_dora": True}),
        ("gpt2", "fp32", True, {}),
    ],
)
def test_loftq_is_the_best_approximation_of_its_rank(name, dtype, double, options, request):
    """By Eckart and Young the remaining error is that of the further singular values."""
    folder = request.getfixturevalue(name)
    auto_class = CLASSIFIER if name == "encoder" else LM
    loaded = load(base(folder, double=double), auto_class=auto_class, dtype=dtype)
    plain = dict(load(Model(path=str(folder)), auto_class=auto_class).model.named_modules())
    model = init_loftq(loaded, **options)
    count = 0
    for path, layer in model.named_modules():
        if not hasattr(layer, "lora_A") or not quantize.quantized_layers(layer):
            continue
        count += 1
        original = plain[path.removeprefix("base_model.model.")]
        weight = original.weight.detach()
        weight = weight if isinstance(original, torch.nn.Linear) else weight.t()
        quantized = quantize.dequantize_weight(layer.get_base_layer())
        error = weight - quantized
        product = layer.get_delta_weight("default").detach().float()
        if "default" in getattr(layer, "lora_magnitude_vector", {}):
            magnitude = layer.lora_magnitude_vector["default"].weight
            assert torch.allclose(magnitude, (quantized + product).norm(dim=1))
        remaining = (error - product).norm()
        best = torch.linalg.svdvals(error)[4:].norm()
        assert remaining.item() == pytest.approx(best.item(), rel=1e-3)
        assert remaining < 0.95 * error.norm()
    assert count == {"decoder": 14, "encoder": 13, "gpt2": 8}[name]


def test_loftq_init_equals_peft(decoder):
    from peft import replace_lora_weights_loftq

    loaded = load(base(decoder))
    ours = init_loftq(loaded, alpha=4)  # PEFT ignores the scale: it is 1
    theirs = attach_lora(load(base(decoder)), alpha=4)
    with ForceCpu():
        replace_lora_weights_loftq(theirs, str(decoder / "model.safetensors"))
    expected = trainable(theirs)
    for name, value in trainable(ours).items():
        assert value.abs().max() > 0
        assert torch.allclose(value, expected[name], atol=1e-6), name
    assert compute_loss(ours).item() == pytest.approx(compute_loss(theirs).item(), rel=1e-6)


def test_original_weights_are_found_by_name_in_any_file(encoder, decoder, tmp_path):
    """The classifier has the encoder's names with a prefix; the decoder is in several files."""
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(decoder)
    plain.save_pretrained(tmp_path / "parts", max_shard_size="50KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    shutil.copy(decoder / "tokenizer_config.json", tmp_path / "parts")
    for folder, auto_class in ((encoder, CLASSIFIER), (tmp_path / "parts", LM)):
        original = load(base(folder), auto_class=auto_class).original_weights
        expected = load(Model(path=str(folder)), auto_class=auto_class)
        parameters = dict(expected.model.named_parameters())
        assert original.keys() == parameters.keys() - expected.new_parameters
        assert all(torch.equal(original[name], parameters[name]) for name in original)


def test_loftq_needs_a_base_in_nf4(decoder):
    strategy = {"name": "lora", "rank": 4, "init": "loftq"}
    for kind, problem, instead in (
        (None, "not quantized", "pissa"),
        ("int8", "in 8 bits", "kaiming"),
    ):
        made = config(decoder, strategy=strategy, model={"quantize": kind})
        with pytest.raises(DtlError, match=rf"this base is {problem}.*nf4, or take init {instead}"):
            assemble(made)
    phases = [{"name": "lora", "length": 0.5}, strategy]
    made = config(decoder).model_dump(mode="json") | {"strategy": phases}
    with pytest.raises(DtlError, match=r"strategy\.1\.init.*changed the base"):
        assemble(RunConfig.model_validate(made))
    with pytest.raises(ValidationError, match="loftq would overwrite the adapter"):
        lora(init="loftq", continue_from="somewhere")


def test_loftq_rejects_weights_of_another_base(decoder):
    loaded = load(base(decoder))
    model = attach_lora(loaded, init="loftq")
    for weights, problem in (
        ({}, r"does not find model\.layers\.0\.self_attn\.q_proj\.weight.*exclude"),
        (
            {name: -loaded.original_weights[name] for name in loaded.original_weights},
            "far from its weight",
        ),
    ):
        with pytest.raises(DtlError, match=problem):
            lora(init="loftq").init_from_base_weights(
                model,
                original_weights=weights,
                device=torch.device("cpu"),
                heartbeat=lambda: None,
            )
