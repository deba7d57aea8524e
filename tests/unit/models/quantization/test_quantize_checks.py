"""Options that cannot be combined with a quantized base are rejected."""

from __future__ import annotations

import json

import pytest

from dtl.cli.app import main
from dtl.core.errors import DtlError
from dtl.models.quantization import quantize
from dtl.plan.records import ExternalLaunch, Hardware
from tests.unit.models.quantization.quantized_models import config, plan

GPU = Hardware("cuda", 2, 8 * 10**10, "GPU", supports_bf16=True, has_compiler=True)


@pytest.mark.parametrize("strategy", ["full", "frozen", "scratch"])
def test_strategy_that_exports_a_full_model_is_rejected(decoder, strategy):
    with pytest.raises(DtlError, match=f"strategy {strategy} exports a full model"):
        plan(config(decoder, strategy=strategy))


def test_missing_bitsandbytes_names_the_extra(decoder, monkeypatch):
    monkeypatch.setattr(quantize, "find_spec", lambda name: None)
    with pytest.raises(DtlError, match=r"not installed. Fix: pip install 'dtl\[quantize\]'"):
        plan(config(decoder))


def test_cuda_without_bitsandbytes_library_is_rejected(decoder, monkeypatch):
    from bitsandbytes import cextension

    broken = cextension.ErrorHandlerMockBNBNativeLibrary("no such file")
    monkeypatch.setattr(cextension, "lib", broken)
    with pytest.raises(DtlError, match="no library for this CUDA"):
        plan(config(decoder), hardware=GPU)
    assert plan(config(decoder)).parameters.quantized.weights > 0  # not needed on a CPU


def test_int8_with_zero_3_is_rejected(decoder, tmp_path, capsys):
    made = config(decoder, model={"quantize": "int8"}).model_dump(mode="json")
    (tmp_path / "run.json").write_text(json.dumps(made))
    assert main(["plan", str(tmp_path / "run.json"), "layout.zero_stage=3"]) == 2
    assert "model.quantize: ZeRO 3 cannot shard 8-bit weights" in (capsys.readouterr().err)
    external = ExternalLaunch("accelerate", 2, 2, 3, None)
    with pytest.raises(DtlError, match=r"cannot be sharded by ZeRO 3 \(fixed by accelerate\)"):
        plan(config(decoder, model={"quantize": "int8"}), external=external)
    assert plan(config(decoder), external=external).layout.zero_stage == 3


def test_trainable_parameters_in_quantized_layers_are_rejected(decoder, encoder):
    biases = config(encoder, task="text_classification", strategy={"name": "lora", "bias": "all"})
    with pytest.raises(
        DtlError, match=r"query.base_layer.bias is trainable, and its layer is quant"
    ):
        plan(biases)
    full = config(decoder, strategy={"name": "lora", "modules_to_save": ["down_proj"]})
    with pytest.raises(DtlError, match=r"down_proj.modules_to_save.default.weight is trainable"):
        plan(full)


def test_convolutional_model_cannot_be_quantized(resnet):
    made = config(resnet, task="image_classification", strategy={"name": "lora"})
    with pytest.raises(
        DtlError, match="ResNetForImageClassification has no linear layers that can be quantized"
    ):
        plan(made)


def test_quantized_weight_files_are_rejected(decoder, tmp_path):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    how = BitsAndBytesConfig(load_in_4bit=True)
    AutoModelForCausalLM.from_pretrained(decoder, quantization_config=how).save_pretrained(tmp_path)
    with pytest.raises(DtlError, match=r"are quantized already. Fix: take the unquantized base"):
        plan(config(tmp_path))


def test_option_names_of_other_tools_get_a_hint(decoder, tmp_path, capsys):
    made = config(decoder).model_dump(mode="json")
    (tmp_path / "run.json").write_text(json.dumps(made))
    assert main(["plan", str(tmp_path / "run.json"), "model.load_in_4bit=true"]) == 2
    assert "did you mean 'model.quantize'?" in capsys.readouterr().err


def test_double_quantize_needs_nf4(decoder):
    with pytest.raises(ValueError, match="no scales of nf4 with"):
        config(decoder, model={"quantize": "int8", "double_quantize": False})
