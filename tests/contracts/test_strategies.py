"""The contract of every strategy, with default options; new files are tested at once."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import pytest
import torch

from dtl.config import registry
from dtl.core.errors import DtlError
from dtl.models.load import load_on_meta_device
from dtl.models.peft.compatibility import COMPATIBILITY
from dtl.models.pretrained_config import HeadConfig
from dtl.models.structure.module_kinds import batch_norms
from dtl.strategies.base import Adapter
from tests import tiny
from tests.contracts.strategy_bench import Bench, adamw, make_bench, state, trainable

BASES = (
    ("decoder", "causal_lm"),
    ("decoder", "text_classification"),
    ("encoder", "text_classification"),
    ("masked_encoder", "text_classification"),
    ("wav2vec2", "asr_ctc"),
    ("whisper", "asr_seq2seq"),
    ("resnet", "image_classification"),
)
CLASSES_WITH_PRETRAINED_HEAD = (
    "AutoModelForCausalLM",
    "AutoModelForSpeechSeq2Seq",
)  # the base has their head
REJECTED = {
    ("bitfit", "decoder"): "the base of Llama.* has no biases",
    ("frozen", "whisper"): "has no head of its own",
    ("lora", "resnet"): "does not fit ResNetForImageClassification",
}
# test_adapter_compatibility.py tests these on more models.
OTHER_ADAPTERS = frozenset(COMPATIBILITY) - {"lora"}
CASES = tuple(
    (strategy, base)
    for strategy, base in itertools.product(registry.list_names("strategies"), BASES)
    if (strategy, base[0]) not in REJECTED
    and (strategy not in OTHER_ADAPTERS or base in (BASES[0], ("encoder", "text_classification")))
)


@pytest.fixture(scope="session")
def masked_encoder(tmp_path_factory) -> Path:
    """A pretrained BERT with a head for masked tokens, and without a pooler, which is new."""
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

    plain = tiny.encoder(tmp_path_factory.mktemp("models") / "plain")
    folder = tmp_path_factory.mktemp("models") / "masked"
    torch.manual_seed(7)
    BertForMaskedLM(BertConfig.from_pretrained(plain)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(plain).save_pretrained(folder)
    return folder


@pytest.fixture(params=CASES, ids=lambda case: "-".join((case[0], *case[1])))
def bench(request) -> Bench:
    strategy, (base, task) = request.param
    return make_bench(request.getfixturevalue(base), task, strategy)


@pytest.mark.parametrize(("strategy", "base"), REJECTED, ids=lambda part: part)
def test_strategy_without_trainable_parameters_is_rejected(request, strategy, base):
    for task in (task for name, task in BASES if name == base):
        bench = make_bench(request.getfixturevalue(base), task, strategy)
        with pytest.raises(DtlError, match=REJECTED[strategy, base]) as caught:
            bench.apply(bench.load())
        assert caught.value.faults[0].fix


def test_every_trainable_parameter_has_a_gradient(bench):
    """A trainable parameter without a gradient would stop data parallelism."""
    model = bench.apply(bench.load())
    bench.set_training_mode(model)
    assert trainable(model)
    bench.task.loss(model, bench.batch()).backward()
    assert [name for name, parameter in trainable(model).items() if parameter.grad is None] == []
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    assert all(parameter.grad is None for parameter in frozen)


def test_step_changes_only_trainable_parameters(bench):
    model = bench.apply(bench.load())
    bench.set_training_mode(model)
    optimizer, before = adamw(model), state(model)
    trained_ids = {id(parameter) for parameter in trainable(model).values()}
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    trained_ids |= {
        id(buffer)
        for module in batch_norms(model)
        if module.training
        for buffer in module.buffers()
    }
    may_change = {name for name, tensor in tensors.items() if id(tensor) in trained_ids}
    bench.step(model, optimizer, bench.batch())
    after = state(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and changed <= may_change
    for _ in range(2):
        bench.step(model, optimizer, bench.batch())
    after = state(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == may_change


def test_loss_falls(bench):
    model = bench.apply(bench.load())
    bench.set_training_mode(model)
    has_few_parameters = (
        bench.strategy.method in OTHER_ADAPTERS if isinstance(bench.strategy, Adapter) else False
    )
    optimizer = torch.optim.AdamW(
        trainable(model).values(), lr=5e-2 if has_few_parameters else 1e-2
    )
    before = bench.task.loss(model, bench.batch()).item()
    for _ in range(10):
        bench.step(model, optimizer, bench.batch())
    # Few parameters in an untrained base; Whisper's output is tied to its embeddings.
    is_tied = bench.task.auto_class == "AutoModelForSpeechSeq2Seq"
    share = 0.997 if has_few_parameters else 0.995 if is_tied else 0.95
    assert bench.task.loss(model, bench.batch()).item() < share * before


def test_model_on_meta_device_has_the_same_trainable_parameters(bench):
    model = bench.apply(bench.load())
    planned = load_on_meta_device(
        bench.source,
        head=HeadConfig(bench.task.auto_class, bench.task.head_config(bench.dataset_stats)),
    )
    with torch.device("meta"):
        on_meta = bench.parts.apply_strategy(planned)
    assert {name: p.shape for name, p in trainable(on_meta).items()} == {
        name: p.shape for name, p in trainable(model).items()
    }
    assert sum(p.numel() for p in on_meta.parameters()) == sum(
        p.numel() for p in model.parameters()
    )
    assert {p.device.type for p in on_meta.parameters()} == {"meta"}


def test_merged_model_is_plain_and_computes_the_same(bench):
    model = bench.apply(bench.load())
    bench.set_training_mode(model)
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=1e-2)
    for _ in range(3):
        bench.step(model, optimizer, bench.batch())
    trained = bench.logits(model)
    if bench.strategy.num_virtual_tokens:
        with pytest.raises(DtlError, match="take strategy lora"):
            bench.strategy.merge(model)
        return
    merged = bench.strategy.merge(copy.deepcopy(model))
    assert torch.allclose(bench.logits(merged), trained, atol=1e-5, rtol=1e-5)
    plain = bench.load().model
    assert type(merged) is type(plain)
    assert [name for name, _ in merged.named_parameters()] == [
        name for name, _ in plain.named_parameters()
    ]
    assert not torch.allclose(bench.logits(plain), trained, atol=1e-3)


def test_before_the_first_step_logits_equal_the_base(bench):
    """Only virtual tokens change the logits before the first step."""
    loaded = bench.load()
    base = bench.logits(loaded.model)
    same = torch.equal(bench.logits(bench.apply(loaded)), base)
    assert same == (bench.strategy.num_virtual_tokens == 0)


def test_new_head_is_trained_and_depends_only_on_the_seed(bench):
    """The same on every rank and layout, and independent of other random numbers."""
    heads = []
    for disturbance in (1, 2):
        torch.manual_seed(disturbance)
        loaded = bench.load()
        new = loaded.new_parameters
        model = bench.apply(loaded)
        heads.append(
            {
                name: parameter.detach().clone()
                for name, parameter in trainable(model).items()
                if any(name.replace("modules_to_save.default.", "").endswith(one) for one in new)
            }
        )
    assert len(heads[0]) == len(new)
    if bench.strategy.starts_from == "pretrained":
        assert bool(new) == (bench.task.auto_class not in CLASSES_WITH_PRETRAINED_HEAD)
    assert heads[0].keys() == heads[1].keys()
    for name, value in heads[0].items():
        assert torch.equal(value, heads[1][name])


def test_random_weights_depend_on_the_seed(bench):
    if (
        bench.strategy.starts_from == "pretrained"
        and bench.task.auto_class in CLASSES_WITH_PRETRAINED_HEAD
    ):
        assert bench.load(seed=1).new_parameters == frozenset()
        return
    first, second = (state(bench.load(seed=seed).model) for seed in (1, 2))
    assert any(not torch.equal(first[name], second[name]) for name in first)
