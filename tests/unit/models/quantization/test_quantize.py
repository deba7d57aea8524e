"""A quantized base equals that of PEFT and bitsandbytes, is measured exactly, and merges."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from dtl.config.schema import Model
from dtl.models.load import load_on_meta_device
from dtl.models.pretrained_config import HeadConfig
from dtl.models.quantization import quantize
from dtl.plan.memory import estimate_model_state
from tests import tiny
from tests.unit.models.quantization.quantized_models import (
    CLASSIFIER,
    LM,
    attach_lora,
    base,
    bits,
    compute_logits,
    config,
    load,
    lora,
    plan,
    train,
    trainable,
)

KINDS = [("nf4", True), ("nf4", False), ("int8", True)]


@pytest.mark.parametrize(("kind", "double"), KINDS)
def test_measured_size_equals_the_stored_bytes(decoder, kind, double):
    model = base(decoder, kind, double=double)
    measured = quantize.measure_quantized_size(
        load_on_meta_device(model, head=HeadConfig(LM, {})).model, model
    )
    layers = [layer for _, layer in quantize.quantized_layers(load(model).model)]
    levels = sum(layer.weight.numel() * layer.weight.element_size() for layer in layers)
    scales = 0
    for layer in layers:
        if kind == "int8":
            scales += layer.weight.SCB.nbytes
            continue
        state = layer.weight.quant_state
        scales += state.absmax.nbytes + state.code.nbytes
        if double:  # the table of the scales' levels is one for all layers
            scales += state.state2.absmax.nbytes + state.offset.nbytes
    assert (measured.level_bytes, measured.scale_bytes) == (levels, scales)
    assert measured.weights == sum(layer.in_features * layer.out_features for layer in layers)


def test_plan_equals_a_count_by_hand(decoder):
    """Two blocks of width 32: four layers of attention and three of 64, of which ZeRO 3 halves the
    levels, but not the scales."""
    numbers = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)
    scales = 4 * numbers // 64 + 14 * 64
    embeddings, norms = 2 * 320 * 32, 5 * 32
    made = plan(config(decoder, model={"double_quantize": False}))
    counts, trained = made.parameters, made.parameters.trainable
    assert (counts.quantized.weights, counts.quantized.level_bytes) == (numbers, numbers // 2)
    assert counts.quantized.scale_bytes == scales
    assert counts.frozen == numbers + embeddings + norms
    full = embeddings + norms
    assert made.model_state["weights"] == 4 * (full + trained) + numbers // 2 + scales
    shared = estimate_model_state(
        counts,
        zero_stage=3,
        data_parallel_size=2,
        dtype="bf16",
        grad_accum_dtype="bf16",
        offload="none",
    )
    assert shared["weights"] == (full + trained) // 2 * 2 + numbers // 4 + scales
    assert "are quantized, in" in "\n".join(made.format_lines())


@pytest.fixture(scope="session")
def pooled(tmp_path_factory) -> Path:
    """A BERT from pretraining, whose pooler is new to a classifier."""
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

    folder = tmp_path_factory.mktemp("models")
    plain = tiny.encoder(folder / "plain")
    BertForMaskedLM(BertConfig.from_pretrained(plain)).save_pretrained(folder / "pooled")
    AutoTokenizer.from_pretrained(plain).save_pretrained(folder / "pooled")
    return folder / "pooled"


@pytest.mark.parametrize(
    ("name", "auto_class", "unquantized"),
    [
        ("decoder", LM, {"lm_head"}),
        ("tied_decoder", LM, {"lm_head"}),
        ("decoder", CLASSIFIER, {"score"}),
        ("pooled", CLASSIFIER, {"classifier", "bert.pooler.dense"}),
        ("t5", "AutoModelForSeq2SeqLM", {"lm_head"}),
        ("vit", "AutoModelForImageClassification", {"classifier"}),
        ("wav2vec2", "AutoModelForAudioClassification", {"projector", "classifier"}),
    ],
)
def test_heads_and_new_modules_are_not_quantized(name, auto_class, unquantized, request):
    model = base(request.getfixturevalue(name))
    loaded, planned = (
        load(model, auto_class=auto_class),
        load_on_meta_device(model, head=HeadConfig(auto_class, {})),
    )
    names = [
        {name for name, _ in quantize.quantized_layers(one.model)} for one in (loaded, planned)
    ]
    linear = {
        name
        for name, module in loaded.model.named_modules()
        if isinstance(module, torch.nn.Linear) and name not in names[0]
    }
    assert names[0] == names[1] and names[0]
    retained = {
        name for name in linear if name.endswith("DenseReluDense.wo")
    }  # T5's, by transformers
    assert linear - retained == unquantized and bool(retained) == (name == "t5")
    assert loaded.new_parameters == planned.new_parameters
    assert all(not value.is_meta for value in loaded.model.parameters())
    found, measured = attach_lora(loaded), attach_lora(planned)
    assert {name: value.shape for name, value in trainable(found).items()} == {
        name: value.shape for name, value in trainable(measured).items()
    }


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_step_changes_only_the_adapter(decoder, kind):
    """Also after an evaluation, in which bitsandbytes may repack weights on a CPU."""
    model = attach_lora(load(base(decoder, kind)))

    def state() -> dict[str, Any]:
        tensors = model.state_dict() | dict(model.named_buffers())  # with the scales
        return {name: bits(value).clone() for name, value in tensors.items()}

    before = state()
    losses = train(model)
    changed = {name for name, value in state().items() if not torch.equal(value, before[name])}
    assert changed == set(trainable(model))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("double", "dtype"), [(True, "fp32"), (False, "fp32"), (True, "bf16")])
def test_training_in_nf4_equals_plain_peft_and_bitsandbytes(decoder, double, dtype):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    ours = attach_lora(load(base(decoder, double=double), dtype=dtype))
    wide = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=wide,
    )
    theirs = AutoModelForCausalLM.from_pretrained(decoder, quantization_config=how, dtype=wide)
    for module in theirs.modules():
        module.support_avx512bf16_for_cpu = False
    torch.manual_seed(0)
    theirs = get_peft_model(
        theirs,
        LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    start_alike(theirs, ours, wide)
    assert train(ours) == train(theirs)


def start_alike(theirs: Any, ours: Any, dtype: torch.dtype) -> None:
    """Give PEFT's adapter the start of ours, of which its own is the rounding to `dtype`."""
    start = dict(trainable(ours).items())
    for name, value in trainable(theirs).items():
        assert value.dtype == start[name].dtype == torch.float32
        assert value.equal(start[name].to(dtype).float()), name
        value.data.copy_(start[name])


def test_training_in_int8_equals_its_dequantized_weights(decoder):
    """In plain PyTorch: the largest number of each row has level 127."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(decoder)
    for name, module in theirs.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            rows = module.weight.data.half().float()
            scale = rows.abs().amax(dim=1, keepdim=True)
            module.weight.data = (rows * 127 / scale).round() * scale / 127
    torch.manual_seed(0)
    theirs = get_peft_model(
        theirs, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    plain = attach_lora(load(Model(path=str(decoder))))
    ours = train(attach_lora(load(base(decoder, "int8"))))
    assert ours == pytest.approx(train(theirs), rel=1e-6)
    assert ours != pytest.approx(train(plain), rel=1e-6), "nothing was rounded"


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("decoder", "nf4", {}),
        ("decoder", "nf4", {"use_dora": True}),
        ("decoder", "int8", {}),
        ("decoder", "int8", {"use_dora": True}),
        ("tied_decoder", "nf4", {}),
        ("gpt2", "nf4", {}),
        ("decoder", "nf4", {"modules_to_save": ("lm_head",)}),
    ],
)
def test_merged_model_is_plain_and_computes_the_same(name, kind, options, request, tmp_path):
    folder = request.getfixturevalue(name)
    model = attach_lora(load(base(folder, kind)), **options)
    train(model)
    trained = compute_logits(model)
    merged = lora().merge(copy.deepcopy(model))
    assert torch.allclose(compute_logits(merged), trained, atol=1e-5, rtol=1e-5)
    plain = load(Model(path=str(folder))).model
    assert type(merged) is type(plain)
    assert {name: value.shape for name, value in merged.state_dict().items()} == {
        name: value.shape for name, value in plain.state_dict().items()
    }
    assert not torch.allclose(compute_logits(plain), trained, atol=1e-3)
    merged.save_pretrained(tmp_path / "merged")
    reopened = type(plain).from_pretrained(tmp_path / "merged")
    assert torch.equal(compute_logits(reopened), compute_logits(merged))


def test_merged_bf16_model_computes_the_same_up_to_rounding(decoder):
    model = attach_lora(load(base(decoder), dtype="bf16"))
    train(model)
    trained = compute_logits(model)
    merged = compute_logits(lora().merge(model))
    assert (merged - trained.float()).abs().max() < 0.02 * merged.abs().max()


def test_merging_into_the_original_weights_gives_another_model(decoder):
    """The model card warns of it."""
    model = attach_lora(load(base(decoder)))
    train(model)
    trained = compute_logits(model)
    other = attach_lora(load(Model(path=str(decoder))))
    other.load_state_dict(trainable(model), strict=False)
    assert (compute_logits(other) - trained).abs().max() > 100 * 1e-5
