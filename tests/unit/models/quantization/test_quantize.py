"""A quantized base is PEFT's and bitsandbytes' own, is counted to the byte, and merges to the
function that was trained."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.overrides import TorchFunctionMode

from dtl import api
from dtl.assembly.parts import assemble
from dtl.cli.app import main
from dtl.config import registry
from dtl.config.load import load_config
from dtl.config.schema import Model, RunConfig
from dtl.core.errors import DtlError
from dtl.data.batching import Batching
from dtl.export.load_export import load_export
from dtl.models.load import LoadedModel, load_on_meta_device, load_pretrained
from dtl.models.new_parameters import init_new_parameters
from dtl.models.pretrained_config import HeadConfig
from dtl.models.quantization import quantize
from dtl.plan.memory import estimate_model_state
from dtl.plan.planner import make_plan
from dtl.plan.records import Hardware, OuterLaunch
from dtl.plan.request import PlanRequest
from dtl.run.folder import RunFolder
from tests import tiny

LM, CLASSIFIER = "AutoModelForCausalLM", "AutoModelForSequenceClassification"
LAPTOP = Hardware("cpu", 4, 2**34, "4 CPU cores", supports_bf16=True, has_compiler=True)
GPU = Hardware("cuda", 2, 8 * 10**10, "GPU", supports_bf16=True, has_compiler=True)
KINDS = [("nf4", True), ("nf4", False), ("int8", True)]
IDS = torch.randint(3, 320, (3, 11), generator=torch.Generator().manual_seed(1))


def base(folder: Path, kind: str = "nf4", *, double: bool = True) -> Model:
    return Model(path=str(folder), quantize=kind, double_quantize=double)


def load(model: Model, *, head: str = LM, dtype: str = "fp32", **changes: Any) -> LoadedModel:
    loaded = load_pretrained(
        model, head=HeadConfig(head, changes), random_init=False, seed=0, dtype=dtype
    )
    init_new_parameters(
        loaded.model,
        loaded.new_parameters,
        seed=0,
        write_parameter=lambda to, value: to.data.copy_(value),
    )
    return loaded


def lora(**options: Any) -> Any:
    module = registry.load("strategies", "lora")
    return module.Plugin(module.Options(**{"rank": 4, "alpha": 8, **options}))


def adapted(loaded: LoadedModel, **options: Any) -> Any:
    torch.manual_seed(0)
    model = lora(**options).apply(loaded.model, new_parameters=loaded.new_parameters)
    for parameter in learning(model).values():
        parameter.data = parameter.data.float()
    return model


def learning(model: Any) -> dict[str, Any]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def loss_of(model: Any) -> Any:
    logits = model(input_ids=IDS).logits.float()
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())


def learn(model: Any, *, steps: int = 4) -> list[float]:
    """Losses in training, with an evaluation in between."""
    optimizer = torch.optim.AdamW(learning(model).values(), lr=0.01)
    losses = []
    for _ in range(steps):
        model.eval()
        with torch.no_grad():
            loss_of(model)
        model.train()
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def bits(tensor: Any) -> Any:
    """Levels are no numbers of the dtype that they are stored in: some would be NaN."""
    return tensor.detach().reshape(-1).view(torch.uint8)


def logits_of(model: Any) -> Any:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def config(folder: Path, **more: Any) -> RunConfig:
    made = {
        "run": {"name": "quantized"},
        "model": {"path": str(folder), "quantize": "nf4", "dtype": "fp32"},
        "task": "causal_lm",
        "data": {"train": "rows.jsonl"},
        "strategy": {"name": "lora", "rank": 4},
        "train": {"steps": 1, "global_batch": 4},
    }
    for part, values in more.items():
        made[part] = made.get(part, {}) | values if isinstance(values, dict) else values
    return RunConfig.model_validate(made)


def plan(made: RunConfig, *, hardware: Hardware = LAPTOP, outer: OuterLaunch | None = None) -> Any:
    dataset_stats = {"labels": ["early", "late"]} if "classification" in made.task.name else {}
    request = PlanRequest(
        config=made,
        parts=assemble(made),
        dataset_stats=dataset_stats,
        model_config=None,
        batching=Batching(8, made.train.global_batch.limit, made.train.seed),
        lengths=np.full(8, 16),
        hardware=hardware,
        outer=outer,
    )
    return make_plan(request)


# The model -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "double"), KINDS)
def test_the_bytes_that_are_counted_are_those_that_are_held(decoder, kind, double):
    model = base(decoder, kind, double=double)
    counted = quantize.measure_quantized_size(
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
    assert (counted.level_bytes, counted.scale_bytes) == (levels, scales)
    assert counted.weights == sum(layer.in_features * layer.out_features for layer in layers)


def test_the_plan_counts_a_rank_by_hand(decoder):
    """Two blocks of width 32: four layers of attention and three of 64, of which ZeRO 3 halves the
    levels, but not the scales."""
    numbers = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)
    scales = 4 * numbers // 64 + 14 * 64
    embeddings, norms = 2 * 320 * 32, 5 * 32
    made = plan(config(decoder, model={"double_quantize": False}))
    counts, learnt = made.parameters, made.parameters.trainable
    assert (counts.quantized.weights, counts.quantized.level_bytes) == (numbers, numbers // 2)
    assert counts.quantized.scale_bytes == scales
    assert counts.frozen == numbers + embeddings + norms
    whole = embeddings + norms
    assert made.model_state["weights"] == 4 * (whole + learnt) + numbers // 2 + scales
    shared = estimate_model_state(
        counts, zero_stage=3, data_parallel_size=2, dtype="bf16", offload="none"
    )
    assert shared["weights"] == (whole + learnt) // 2 * 2 + numbers // 4 + scales
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
    ("name", "head", "whole"),
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
def test_heads_and_new_modules_stay_whole_in_the_plan_and_in_the_run(name, head, whole, request):
    model = base(request.getfixturevalue(name))
    loaded, planned = (
        load(model, head=head),
        load_on_meta_device(model, head=HeadConfig(head, {})),
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
    kept = {name for name in linear if name.endswith("DenseReluDense.wo")}  # T5's, by transformers
    assert linear - kept == whole and bool(kept) == (name == "t5")
    assert loaded.new_parameters == planned.new_parameters
    assert all(not value.is_meta for value in loaded.model.parameters())
    found, counted = adapted(loaded), adapted(planned)
    assert {name: value.shape for name, value in learning(found).items()} == {
        name: value.shape for name, value in learning(counted).items()
    }


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_step_changes_the_adapter_and_nothing_else(decoder, kind):
    """Also after an evaluation, in which bitsandbytes may repack weights on a CPU."""
    model = adapted(load(base(decoder, kind)))

    def state() -> dict[str, Any]:
        tensors = model.state_dict() | dict(model.named_buffers())  # with the scales
        return {name: bits(value).clone() for name, value in tensors.items()}

    before = state()
    losses = learn(model)
    changed = {name for name, value in state().items() if not torch.equal(value, before[name])}
    assert changed == set(learning(model))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("double", "dtype"), [(True, "fp32"), (False, "fp32"), (True, "bf16")])
def test_training_in_nf4_is_that_of_plain_peft_and_bitsandbytes(decoder, double, dtype):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    ours = adapted(load(base(decoder, double=double), dtype=dtype))
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
    assert learn(ours) == learn(theirs)


def test_training_in_int8_is_that_of_its_dequantized_weights(decoder):
    """In plain PyTorch: of each row the largest number has the level 127."""
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
    plain = adapted(load(Model(path=str(decoder))))
    ours = learn(adapted(load(base(decoder, "int8"))))
    assert ours == pytest.approx(learn(theirs), rel=1e-6)
    assert ours != pytest.approx(learn(plain), rel=1e-6), "nothing was rounded"


# Merging ---------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory) -> Path:
    """Its layers are no nn.Linear, and keep their weight the other way round."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("models") / "gpt2"
    torch.manual_seed(7)
    GPT2LMHeadModel(
        GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    ).save_pretrained(folder)
    return folder


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
def test_merged_is_the_trained_function_as_a_plain_model(name, kind, options, request, tmp_path):
    folder = request.getfixturevalue(name)
    model = adapted(load(base(folder, kind)), **options)
    learn(model)
    trained = logits_of(model)
    merged = lora().merge(copy.deepcopy(model))
    assert torch.allclose(logits_of(merged), trained, atol=1e-5, rtol=1e-5)
    plain = load(Model(path=str(folder))).model
    assert type(merged) is type(plain)
    assert {name: value.shape for name, value in merged.state_dict().items()} == {
        name: value.shape for name, value in plain.state_dict().items()
    }
    assert not torch.allclose(logits_of(plain), trained, atol=1e-3)
    merged.save_pretrained(tmp_path / "merged")
    reopened = type(plain).from_pretrained(tmp_path / "merged")
    assert torch.equal(logits_of(reopened), logits_of(merged))


def test_merged_half_precision_is_what_was_trained_to_its_rounding(decoder):
    model = adapted(load(base(decoder), dtype="bf16"))
    learn(model)
    trained = logits_of(model)
    merged = logits_of(lora().merge(model))
    assert (merged - trained.float()).abs().max() < 0.02 * merged.abs().max()


def test_merging_into_the_original_weights_would_be_another_model(decoder):
    """What the model card warns of."""
    model = adapted(load(base(decoder)))
    learn(model)
    trained = logits_of(model)
    other = adapted(load(Model(path=str(decoder))))
    other.load_state_dict(learning(model), strict=False)
    assert (logits_of(other) - trained).abs().max() > 100 * 1e-5


# LoftQ -----------------------------------------------------------------------------------------


class OnCpu(TorchFunctionMode):
    """PEFT takes weights apart on a GPU alone."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        named = kwargs or {}
        return function(*args, **(named | {"device": "cpu"} if "device" in named else named))


def made_good(loaded: LoadedModel, **options: Any) -> Any:
    model = adapted(loaded, init="loftq", **options)
    lora(init="loftq").begin_over(
        model, whole=loaded.original_weights, device=torch.device("cpu"), beat=lambda: None
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
def test_loftq_gives_back_as_much_as_its_rank_can(name, dtype, double, options, request):
    """By Eckart and Young: what stays lost are the singular values after the first ones."""
    folder = request.getfixturevalue(name)
    head = CLASSIFIER if name == "encoder" else LM
    loaded = load(base(folder, double=double), head=head, dtype=dtype)
    plain = dict(load(Model(path=str(folder)), head=head).model.named_modules())
    model = made_good(loaded, **options)
    seen = 0
    for path, layer in model.named_modules():
        if not hasattr(layer, "lora_A") or not quantize.quantized_layers(layer):
            continue
        seen += 1
        original = plain[path.removeprefix("base_model.model.")]
        weight = original.weight.detach()
        weight = weight if isinstance(original, torch.nn.Linear) else weight.t()
        kept = quantize.dequantize_weight(layer.get_base_layer())
        lost = weight - kept
        product = layer.get_delta_weight("default").detach().float()
        if "default" in getattr(layer, "lora_magnitude_vector", {}):
            magnitude = layer.lora_magnitude_vector["default"].weight
            assert torch.allclose(magnitude, (kept + product).norm(dim=1))
        still = (lost - product).norm()
        best = torch.linalg.svdvals(lost)[4:].norm()
        assert still.item() == pytest.approx(best.item(), rel=1e-3)
        assert still < 0.95 * lost.norm()
    assert seen == {"decoder": 14, "encoder": 13, "gpt2": 8}[name]


def test_loftq_begins_as_pefts_own(decoder):
    from peft import replace_lora_weights_loftq

    loaded = load(base(decoder))
    ours = made_good(loaded, alpha=4)  # PEFT leaves the scale out: it is 1
    theirs = adapted(load(base(decoder)), alpha=4)
    with OnCpu():
        replace_lora_weights_loftq(theirs, str(decoder / "model.safetensors"))
    expected = learning(theirs)
    for name, value in learning(ours).items():
        assert value.abs().max() > 0
        assert torch.allclose(value, expected[name], atol=1e-6), name
    assert loss_of(ours).item() == pytest.approx(loss_of(theirs).item(), rel=1e-6)


def test_whole_weights_are_found_by_their_names_in_any_file(encoder, decoder, tmp_path):
    """Of the encoder the classifier has the names with a prefix; the decoder lies in two files."""
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(decoder)
    plain.save_pretrained(tmp_path / "parts", max_shard_size="50KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    shutil.copy(decoder / "tokenizer_config.json", tmp_path / "parts")
    for folder, head in ((encoder, CLASSIFIER), (tmp_path / "parts", LM)):
        whole = load(base(folder), head=head).whole
        expected = load(Model(path=str(folder)), head=head)
        named = dict(expected.model.named_parameters())
        assert whole.keys() == named.keys() - expected.new
        assert all(torch.equal(whole[name], named[name]) for name in whole)


def test_loftq_wants_a_base_that_nf4_has_rounded(decoder):
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
    with pytest.raises(ValidationError, match="loftq would write over the adapter"):
        lora(init="loftq", continue_from="somewhere")


def test_loftq_refuses_weights_that_are_not_those_of_the_base(decoder):
    loaded = load(base(decoder))
    model = adapted(loaded, init="loftq")
    for whole, problem in (
        ({}, r"does not find model\.layers\.0\.self_attn\.q_proj\.weight.*exclude"),
        (
            {name: -loaded.original_weights[name] for name in loaded.original_weights},
            "far from its weight",
        ),
    ):
        with pytest.raises(DtlError, match=problem):
            lora(init="loftq").begin_over(
                model, whole=whole, device=torch.device("cpu"), beat=lambda: None
            )


# A run -----------------------------------------------------------------------------------------


@pytest.fixture
def finished(cache, tmp_path, encoder) -> RunFolder:
    """A classifier on a base in nf4, loaded in bf16."""
    rows = [
        {"text": f"{label} {' '.join(tiny.WORDS[:length])}", "label": label}
        for label in ("early", "late")
        for length in range(1, 6)
    ]
    data = str(tiny.write_rows(tmp_path / "rows.jsonl", rows))
    written = {
        "run": {"dir": str(tmp_path / "runs"), "name": "done"},
        "model": {"path": str(encoder), "dtype": "bf16", "quantize": "nf4"},
        "task": "text_classification",
        "data": {"train": data, "eval": data},
        "strategy": {"name": "lora", "rank": 2},
        "optim": {"learning_rate": 0.01},
        "train": {"steps": 3, "global_batch": 4},
        "layout": {"processes_per_node": 1, "zero_stage": 0},
    }
    (tmp_path / "done.yaml").write_text(json.dumps(written))
    outcome = api.train(load_config(tmp_path / "done.yaml"), print_line=lambda line: None)
    assert outcome.exit_code == 0
    return outcome.run


def test_a_run_leaves_an_adapter_that_is_opened_on_the_same_base(finished, tmp_path, encoder):
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    saved = load_file(next(finished.checkpoints.glob("*3/part-00001.safetensors")))
    assert not any("base_layer" in name for name in saved), "checkpoints hold the adapter alone"
    data = str(tmp_path / "rows.jsonl")
    trained = finished.result["scores"]["adapted"]["loss"]
    assert api.evaluate(finished.path, data)["loss"] == pytest.approx(trained, rel=1e-2)
    card = (finished.export / "README.md").read_text()
    assert "| base held in | nf4 (bitsandbytes), its scales in 8 bits" in card
    assert "A merged model is made of these,\ndequantized" in card
    code = card.split("```python\n")[1].split("```")[0]
    run = code.replace("path/of/this/folder", str(finished.export))
    told: dict[str, Any] = {}
    exec(run, told)
    inputs = AutoTokenizer.from_pretrained(finished.export)("a letter", return_tensors="pt")
    opened = load_export(finished.export)
    levels = [
        [bits(layer.weight) for _, layer in quantize.quantized_layers(model)]
        for model in (opened.model, told["base"])
    ]
    assert levels[0] and all(map(torch.equal, *levels))
    assert isinstance(opened.model, PeftModel)
    for module in told["base"].modules():  # it would repack weights, in blocks that are too wide
        module.support_avx512bf16_for_cpu = False
    with torch.no_grad():
        shares = told["model"].eval()(**inputs).logits[0].float().softmax(-1).tolist()
    (row,) = api.predict(finished.path, ["a letter"])
    assert list(row["probabilities"].values()) == pytest.approx(shares, abs=5e-3)
    merged = lora().merge(opened.model)
    with torch.no_grad():
        again = merged(**inputs).logits[0].softmax(-1).tolist()
    assert list(row["probabilities"].values()) == pytest.approx(again, abs=1e-6)

    lora_file = registry.load("strategies", "lora")
    further = lora_file.Plugin(lora_file.Options(continue_from=str(finished.export)))
    source = finished.config.model
    loaded = load_pretrained(
        source,
        head=HeadConfig("AutoModelForSequenceClassification", {}),
        random_init=False,
        seed=0,
        dtype="fp32",
    )
    assert "classifier.weight" in loaded.new_parameters
    model = further.apply(loaded.model, new_parameters=loaded.new_parameters).eval()
    further.fill(model, fill=lambda parameter, value: parameter.data.copy_(value))
    with torch.no_grad():
        begins = model(**inputs).logits[0].softmax(-1).tolist()
    assert list(row["probabilities"].values()) == pytest.approx(begins, abs=5e-3)
    assert any(value.abs().max() > 1e-3 for n, value in model.named_parameters() if "lora_B" in n)


# What is refused at the desk -------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["full", "frozen", "scratch"])
def test_a_strategy_that_keeps_a_whole_model_is_refused(decoder, strategy):
    with pytest.raises(DtlError, match=f"strategy {strategy} exports a full model"):
        plan(config(decoder, strategy=strategy))


def test_without_bitsandbytes_the_extra_is_named(decoder, monkeypatch):
    monkeypatch.setattr(quantize, "find_spec", lambda name: None)
    with pytest.raises(DtlError, match=r"not installed; pip install 'dtl\[quantize\]'"):
        plan(config(decoder))


def test_a_cuda_that_bitsandbytes_has_nothing_for_is_refused(decoder, monkeypatch):
    from bitsandbytes import cextension

    broken = cextension.ErrorHandlerMockBNBNativeLibrary("no such file")
    monkeypatch.setattr(cextension, "lib", broken)
    with pytest.raises(DtlError, match="no library for this CUDA"):
        plan(config(decoder), hardware=GPU)
    assert plan(config(decoder)).parameters.quantized.weights > 0  # a CPU can do without


def test_eight_bits_are_not_shared_out_by_zero_3(decoder, tmp_path, capsys):
    made = config(decoder, model={"quantize": "int8"}).model_dump(mode="json")
    (tmp_path / "run.json").write_text(json.dumps(made))
    assert main(["plan", str(tmp_path / "run.json"), "layout.zero_stage=3"]) == 2
    assert "model.quantize: weights of 8 bits cannot be shared out by ZeRO 3" in (
        capsys.readouterr().err
    )
    outer = OuterLaunch("accelerate", 2, 2, 3, None)
    with pytest.raises(DtlError, match=r"cannot be shared out by ZeRO 3 \(fixed by accelerate\)"):
        plan(config(decoder, model={"quantize": "int8"}), outer=outer)
    assert plan(config(decoder), outer=outer).layout.zero_stage == 3


def test_what_lies_in_a_quantized_layer_cannot_learn(decoder, encoder):
    biases = config(encoder, task="text_classification", strategy={"name": "lora", "bias": "all"})
    with pytest.raises(DtlError, match=r"query.base_layer.bias would learn, and lies in a quant"):
        plan(biases)
    whole = config(decoder, strategy={"name": "lora", "modules_to_save": ["down_proj"]})
    with pytest.raises(DtlError, match=r"down_proj.modules_to_save.default.weight would learn"):
        plan(whole)


def test_a_model_of_convolutions_has_nothing_to_quantize(resnet):
    made = config(resnet, task="image_classification", strategy={"name": "lora"})
    with pytest.raises(DtlError, match="ResNetForImageClassification has no linear layers inside"):
        plan(made)


def test_a_base_that_is_quantized_already_is_refused(decoder, tmp_path):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    how = BitsAndBytesConfig(load_in_4bit=True)
    AutoModelForCausalLM.from_pretrained(decoder, quantization_config=how).save_pretrained(tmp_path)
    with pytest.raises(DtlError, match=r"are quantized already; take the base"):
        plan(config(tmp_path))


def test_names_of_other_tools_are_understood(decoder, tmp_path, capsys):
    made = config(decoder).model_dump(mode="json")
    (tmp_path / "run.json").write_text(json.dumps(made))
    assert main(["plan", str(tmp_path / "run.json"), "model.load_in_4bit=true"]) == 2
    assert "did you mean 'model.quantize'?" in capsys.readouterr().err


def test_only_nf4_has_scales_to_quantize(decoder):
    with pytest.raises(ValueError, match="no scales of nf4 with"):
        config(decoder, model={"quantize": "int8", "double_quantize": False})
