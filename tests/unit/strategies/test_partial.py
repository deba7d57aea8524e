"""Partial, BitFit and norm tuning: trainable parameters, training mode, and savings."""

from __future__ import annotations

import statistics
import time
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from dtl.assembly.parts import Parts
from dtl.config import registry
from dtl.core.errors import DtlError
from dtl.models.activation_checkpointing import enable_activation_checkpointing
from dtl.models.structure.model_structure import parameter_depths
from tests import architectures
from tests.architectures import ARCHITECTURES

NAMED = {architecture.name: architecture for architecture in ARCHITECTURES}
NOTHING = frozenset[str]()
IGNORE_DEPRECATION = pytest.mark.filterwarnings(
    "ignore:.gradient_checkpointing_enable. is deprecated"
)


def strategy(name: str, **options: Any) -> Any:
    module = registry.load("strategies", name)
    return module.Plugin(module.Options(**options))


def build(name: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    return architectures.changed(NAMED[name], **settings).build()


def trainable(model: Any) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def partial(model: Any, *, new: frozenset[str] = NOTHING, **options: Any) -> set[str]:
    return trainable(strategy("partial", **options).apply(model, new_parameters=new))


def of_blocks(model: Any, start: str, *numbers: int) -> set[str]:
    return {
        name
        for name, _ in model.named_parameters()
        if name.startswith(tuple(f"{start}.{number}." for number in numbers))
    }


# Trainable parameters --------------------------------------------------------------------------

TOP = {"model.norm.weight", "lm_head.weight"}


@pytest.mark.parametrize(
    ("options", "blocks"),
    [
        ({}, (2,)),  # a quarter of 3, rounded up
        ({"top": 1}, (2,)),
        ({"top": 2}, (1, 2)),
        ({"top": 3}, (0, 1, 2)),
        ({"top": 0.5}, (1, 2)),
        ({"top": 0.01}, (2,)),
        ({"blocks": (0, 0)}, (0,)),
        ({"blocks": (0, 1)}, (0, 1)),
        ({"blocks": (1, 1)}, (1,)),
    ],
    ids=str,
)
def test_trained_blocks_are_those_requested(
    options: dict[str, Any], blocks: tuple[int, ...]
) -> None:
    model = build("LlamaForCausalLM")
    assert partial(model, **options) == of_blocks(model, "model.layers", *blocks) | TOP


def test_other_parts_are_selected_in_addition_to_blocks() -> None:
    model = build("LlamaForCausalLM")
    last = of_blocks(model, "model.layers", 2)
    norms = {name for name, _ in model.named_parameters() if "norm" in name}
    assert partial(model, head=False) == last
    assert partial(model, head=False, new=frozenset({"lm_head.weight"})) == last | {
        "lm_head.weight"
    }
    assert partial(model, embeddings=True) == last | TOP | {"model.embed_tokens.weight"}
    assert len(norms) == 7
    assert partial(model, norms=True) == last | TOP | norms
    queries = {f"model.layers.{n}.self_attn.q_proj.weight" for n in range(3)}
    assert partial(model, parameter_names=("*.q_proj.*",), head=False) == queries
    assert partial(model, parameter_names=("*.q_proj.*",), top=1, head=False) == last | queries


def test_decoder_blocks_follow_encoder_blocks() -> None:
    model = build("WhisperForConditionalGeneration")  # 2 and 3 blocks, its output tied
    last = of_blocks(model, "model.decoder.layers", 2)
    norm = {"model.decoder.layer_norm.weight", "model.decoder.layer_norm.bias"}
    assert partial(model, top=1) == last | norm
    first = of_blocks(model, "model.encoder.layers", 0)
    assert partial(model, blocks=(0, 0), head=False) == first
    both = of_blocks(model, "model.encoder.layers", 1) | of_blocks(model, "model.decoder.layers", 0)
    between = {"model.encoder.layer_norm.weight", "model.encoder.layer_norm.bias"}
    assert partial(model, blocks=(1, 2), head=False) == both | between


def test_tied_head_counts_as_embeddings() -> None:
    model = build("LlamaForCausalLM", tie_word_embeddings=True)
    last = of_blocks(model, "model.layers", 2)
    assert partial(model) == last | {"model.norm.weight"}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert partial(model, embeddings=True) == last | TOP - {"lm_head.weight"} | {
        "model.embed_tokens.weight"
    }
    with pytest.raises(DtlError) as caught:
        partial(model, parameter_names=("lm_head.*",))
    (fault,) = caught.value.faults
    assert "lm_head.weight is tied to model.embed_tokens.weight" in fault.problem
    assert fault.fix == "use model.embed_tokens.weight"


def test_bitfit_trains_every_bias_and_the_head() -> None:
    model = build("BertForSequenceClassification")
    biases = {name for name, _ in model.named_parameters() if name.endswith(".bias")}
    assert trainable(strategy("bitfit").apply(model, new_parameters=NOTHING)) == biases | {
        "classifier.weight"
    }
    assert trainable(strategy("bitfit", head=False).apply(model, new_parameters=NOTHING)) == biases
    assert "bert.encoder.layer.0.attention.self.query.bias" in biases
    relative = build("T5ForConditionalGeneration")  # its relative_attention_bias is a table
    with pytest.raises(DtlError, match="the base of T5ForConditionalGeneration has no biases"):
        strategy("bitfit").apply(relative, new_parameters=NOTHING)
    phi = build("PhiForCausalLM")  # its head, which is not tied, has one as well
    assert "lm_head.weight" in trainable(strategy("bitfit").apply(phi, new_parameters=NOTHING))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("LlamaForCausalLM", 7),  # 2 a block and the last one
        ("Qwen3ForCausalLM", 13),  # and those of queries and keys
        ("BertForSequenceClassification", 2 * 7),  # and of the embeddings, scale and shift each
        ("T5ForConditionalGeneration", 2 * 2 + 3 * 3 + 2),
        ("ResNetForImageClassification", None),
        ("Wav2Vec2ForCTC", 2 * (1 + 1 + 1 + 3 * 2)),  # group norm, projection, encoder, blocks
    ],
)
def test_norm_tuning_trains_every_norm_and_the_head(name: str, count: int | None) -> None:
    from torch.nn import BatchNorm2d

    model = build(name)
    if count is None:
        count = 2 * sum(isinstance(module, BatchNorm2d) for module in model.modules())
    found = trainable(strategy("norm", head=False).apply(model, new_parameters=NOTHING))
    assert len(found) == count
    assert all(value.ndim == 1 for value in model.parameters() if value.requires_grad)
    head = trainable(strategy("norm").apply(model, new_parameters=NOTHING)) - found
    assert {name.partition(".")[0] for name in head} <= {"lm_head", "classifier"}


# Faults -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"top": 4}, "strategy.top: the model has 3 blocks, numbered 0 to 2"),
        ({"blocks": (1, 3)}, "strategy.blocks: the model has 3 blocks, numbered 0 to 2"),
        (
            {"parameter_names": ("*.bias",)},
            "strategy.parameter_names: '*.bias' matches no parameter of LlamaForCausalLM",
        ),
        (
            {"parameter_names": ("model.layers.0.self_attn.q_proj",)},
            "did you mean 'model.layers.0.self_attn.q_proj.weight'",
        ),
    ],
)
def test_missing_blocks_and_parameters_are_rejected(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(DtlError) as caught:
        partial(build("LlamaForCausalLM"), **options)
    assert problem in str(caught.value)
    assert all(fault.fix for fault in caught.value.faults)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"top": 2, "blocks": (0, 1)}, "cannot be combined with blocks"),
        ({"top": 2.5}, r"is not an integer \(got 2.5\)"),
        ({"top": 0}, "greater than 0"),
        ({"blocks": (2, 1)}, "got 2, 1"),
        ({"blocks": (-1, 1)}, "got -1, 1"),
    ],
)
def test_contradictory_options_are_rejected(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        strategy("partial", **options)


def test_model_with_shared_blocks_is_rejected() -> None:
    from transformers import AlbertConfig, AlbertForSequenceClassification

    settings = {**architectures.TEXT, "embedding_size": 8}
    model = AlbertForSequenceClassification(AlbertConfig(**settings))
    with pytest.raises(DtlError, match="runs 3 layers with the weights of 1"):
        partial(model)
    assert trainable(strategy("bitfit").apply(model, new_parameters=NOTHING)), "it needs no blocks"


def test_training_only_what_the_task_freezes_is_rejected() -> None:
    from dtl.models.load import LoadedModel

    task = registry.load("tasks", "asr_ctc")
    options = {"parameter_names": ("wav2vec2.feature_extractor.*",), "head": False}
    parts = Parts(task.Plugin(task.Options()), (strategy("partial", **options),))
    with pytest.raises(DtlError, match="no parameter is trainable: the task always freezes"):
        parts.apply_strategy(LoadedModel(build("Wav2Vec2ForCTC"), NOTHING))


# Modes ------------------------------------------------------------------------------------------


def modes(model: Any) -> tuple[set[str], set[str]]:
    """Return the modules in training mode, and those in evaluation mode."""
    named = dict(model.named_modules())
    training = {name for name, module in named.items() if module.training}
    return training, set(named) - training


def test_no_dropout_below_the_lowest_trained_part() -> None:
    model = build("BertForSequenceClassification", hidden_dropout_prob=0.5)
    made = strategy("partial", top=1)
    made.apply(model, new_parameters=NOTHING)
    made.set_training_mode(model)
    training, evaluating = modes(model)
    assert {"bert.encoder.layer.2.output.dropout", "dropout", "classifier"} <= training
    assert {"bert.embeddings.dropout", "bert.encoder.layer.1.output.dropout", "bert"} <= evaluating
    seen: dict[int, list[torch.Tensor]] = {0: [], 1: [], 2: []}
    for number, block in enumerate(model.bert.encoder.layer):
        block.register_forward_hook(lambda *given, n=number: seen[n].append(given[2].detach()))
    for _ in range(2):
        model(**NAMED["BertForSequenceClassification"].batch())
    assert [torch.equal(*seen[number]) for number in range(3)] == [True, True, False]


def test_training_embeddings_sets_all_modules_to_training_mode() -> None:
    model = build("BertForSequenceClassification").eval()
    made = strategy("partial", embeddings=True)
    made.apply(model, new_parameters=NOTHING)
    made.set_training_mode(model)
    assert modes(model)[1] == set()


def test_no_spec_augment_below_the_lowest_trained_part() -> None:
    model = build("Wav2Vec2ForCTC", mask_time_prob=0.9, mask_time_length=2)
    model.requires_grad_(True).train()
    batch = NAMED["Wav2Vec2ForCTC"].batch()
    torch.manual_seed(0)
    assert not torch.equal(model(**batch).logits, model(**batch).logits), "nothing is masked"
    quiet = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
    model = build("Wav2Vec2ForCTC", mask_time_prob=0.9, mask_time_length=2, **quiet)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    made = strategy("partial", top=1)
    made.apply(model, new_parameters=NOTHING)
    made.set_training_mode(model)
    assert model.wav2vec2.encoder.layers[2].training
    assert torch.equal(model(**batch).logits, model(**batch).logits)


# Savings ----------------------------------------------------------------------------------


def deep(blocks: int = 12, **settings: Any) -> Any:
    wide = {
        "num_hidden_layers": blocks,
        "hidden_size": 96,
        "intermediate_size": 384,
        "max_position_embeddings": 64,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return build("BertForSequenceClassification", **{**wide, **settings})


def long_batch() -> dict[str, Any]:
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 48, (8, 64), generator=draw)
    return {"input_ids": ids, "labels": torch.arange(8) % 2}


def ready(model: Any, **options: Any) -> Any:
    made = strategy("partial", **options) if options else strategy("full")
    made.apply(model, new_parameters=NOTHING)
    made.set_training_mode(model)
    return model


@IGNORE_DEPRECATION
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_equal_those_of_the_full_computation(checkpointing: bool) -> None:
    """Bitwise, in fp32: all gradients are computed, and those of the frozen part discarded."""
    gradients = []
    for options in ({}, {"top": 0.25}):
        model = ready(deep(), **options)
        if checkpointing:
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        model(**long_batch()).loss.backward()
        gradients.append(
            {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        )
    naive, found = gradients
    assert len(found) < len(naive) / 3
    assert found.keys() == trainable(model)
    for name, gradient in found.items():
        assert torch.equal(gradient, naive[name]), name
        assert gradient.any(), name


@IGNORE_DEPRECATION
@pytest.mark.parametrize("checkpointing", [False, True])
def test_no_activation_is_saved_below_the_lowest_trained_block(checkpointing: bool) -> None:
    model = ready(deep(), top=3)
    if checkpointing:
        enable_activation_checkpointing(model)
    saved: dict[str, int] = {}
    block = [""]
    for name, module in model.named_modules():
        if name in {f"bert.encoder.layer.{number}" for number in range(12)} | {"bert.embeddings"}:
            module.register_forward_pre_hook(lambda *_, name=name: block.__setitem__(0, name))

    def save(tensor: torch.Tensor) -> torch.Tensor:
        saved[block[0]] = saved.get(block[0], 0) + tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        model(**long_batch())
    assert set(saved) == {f"bert.encoder.layer.{number}" for number in (9, 10, 11)}


def test_training_the_top_quarter_takes_at_most_60_percent_of_the_time() -> None:
    """Of a step of full tuning: forward 1, backward 2, of which 0.5 remain. Medians of processor
    time, alternately, so that a busy machine slows both."""
    batch, models = long_batch(), {"full": ready(deep()), "top": ready(deep(), top=0.25)}
    optimizers = {
        name: torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
        for name, model in models.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in models}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(7):
            for name, model in models.items():
                start = time.process_time()
                model(**batch).loss.backward()
                optimizers[name].step()
                optimizers[name].zero_grad()
                seconds[name].append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    full, top = (statistics.median(times[1:]) for times in seconds.values())
    assert top <= 0.6 * full, seconds


def test_plan_counts_no_gradient_and_no_moment_of_frozen_parameters(decoder: Any) -> None:
    from tests.unit.plan.test_planner import configure, plan

    made = plan(configure(decoder, strategy="partial", layout={"zero_stage": 0}))
    width, inner, words, keys = 32, 64, 320, 16
    block = 2 * width * width + 2 * width * keys + 3 * width * inner + 2 * width
    learns = block + width + words * width
    total = 2 * block + width + 2 * words * width
    assert (made.parameters.trainable, made.parameters.frozen) == (learns, total - learns)
    assert made.model_state == {
        "weights": 4 * total,
        "gradients": 4 * learns,
        "optimizer": 8 * learns,
    }


@pytest.mark.parametrize(
    "name",
    [
        "SwinForImageClassification",
        "ConvNextForImageClassification",
        "ResNetForImageClassification",
        "BartForConditionalGeneration",
        "Wav2Vec2ForSequenceClassification",
    ],
)
def test_top_1_trains_all_parameters_from_the_last_depth_on(name: str) -> None:
    with torch.device("meta"):
        model = NAMED[name].build()
    depth, last = parameter_depths(model), NAMED[name].blocks
    assert partial(model, top=1) == {name for name, place in depth.items() if place >= last}
