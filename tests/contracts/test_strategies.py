"""The trials that every strategy passes, with its options left out. A new file in
dtl/strategies/ is tried at once."""

from __future__ import annotations

import copy
import inspect
import itertools
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from dtl.assembly.parts import Parts
from dtl.config import registry
from dtl.config.schema import Model
from dtl.core.errors import DtlError
from dtl.data.sources.rows import Row
from dtl.models.head import head_modules
from dtl.models.load import LoadedModel, load_on_meta_device, load_pretrained
from dtl.models.module_kinds import batch_norms
from dtl.models.new_parameters import init_new_parameters
from dtl.models.peft.compatibility import COMPATIBILITY
from dtl.models.pretrained_config import HeadConfig, load_model_config
from dtl.models.processor import get_pad_token_id, load_processor
from dtl.strategies.base import Adapter
from tests import tiny, tiny_speech, tiny_vision, tiny_whisper

TEXTS = ("the old river turns", "a letter", "one small ship carries light", "never again")
LABELS = ("early", "late", "never", "early")
ROWS = {
    "causal_lm": [{"text": text} for text in TEXTS],
    "text_classification": [
        {"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)
    ],
    "asr_ctc": [tiny_speech.row(text) for text in ("tea", "net", "moon", "sea")],
    "asr_seq2seq": tiny_whisper.spoken(4),
    "image_classification": tiny_vision.pictures(4),
}
OPTIONS = {"asr_seq2seq": {"language": "de"}}
BEDS = (
    ("decoder", "causal_lm"),
    ("decoder", "text_classification"),
    ("encoder", "text_classification"),
    ("masked_encoder", "text_classification"),
    ("wav2vec2", "asr_ctc"),
    ("whisper", "asr_seq2seq"),
    ("resnet", "image_classification"),
)
WHOLE = ("AutoModelForCausalLM", "AutoModelForSpeechSeq2Seq")  # a base brings their head
REFUSED = {
    ("bitfit", "decoder"): "the base of Llama.* has no biases",
    ("frozen", "whisper"): "has no head of its own",
    ("lora", "resnet"): "does not fit ResNetForImageClassification",
}
SMALL = frozenset(COMPATIBILITY) - {
    "lora"
}  # tests/contracts/test_adapters.py tries them on more models
TRIALS = tuple(
    (strategy, bed)
    for strategy, bed in itertools.product(registry.list_names("strategies"), BEDS)
    if (strategy, bed[0]) not in REFUSED
    and (strategy not in SMALL or bed in (BEDS[0], ("encoder", "text_classification")))
)


@dataclass(frozen=True)
class Bench:
    """A task, a strategy, and the folder of a tiny base."""

    folder: Path
    task: Any
    strategy: Any
    dataset_stats: dict[str, Any]
    processor: Any
    examples: dict[str, torch.Tensor]

    @property
    def source(self) -> Model:
        return Model(path=str(self.folder))

    @property
    def parts(self) -> Parts:
        return Parts(self.task, (self.strategy,))

    def load(self, *, seed: int = 0) -> LoadedModel:
        """As the run loads it, up to the strategy."""
        loaded = load_pretrained(
            self.source,
            head=HeadConfig(self.task.auto_class, self.task.head_config(self.dataset_stats)),
            random_init=self.strategy.starts_from == "random",
            seed=seed,
            dtype="fp32",
        )
        init_new_parameters(loaded.model, loaded.new_parameters, seed=seed, write_parameter=fill)
        if (padding := get_pad_token_id(self.processor)) is not None:
            loaded.model.config.pad_token_id = padding
        self.task.configure_model(loaded.model, processor=self.processor)
        return loaded

    def apply(self, loaded: LoadedModel) -> Any:
        torch.manual_seed(0)
        return self.parts.apply_strategy(loaded)

    def set_training_mode(self, model: Any) -> None:
        self.parts.set_training_mode(model)

    def batch(self) -> dict[str, torch.Tensor]:
        return dict(self.examples)

    def step(self, model: Any, optimizer: Any, batch: dict[str, torch.Tensor]) -> None:
        (self.task.loss(model, batch) / 4).backward()
        optimizer.step()
        optimizer.zero_grad()

    def logits(self, model: Any) -> torch.Tensor:
        inner = model.get_base_model() if hasattr(model, "peft_config") else model
        known = set(inspect.signature(inner.forward).parameters)
        if not getattr(inner.config, "is_encoder_decoder", False):
            known -= {"labels"}  # a decoder beside an encoder reads them
        inputs = {name: tensor for name, tensor in self.batch().items() if name in known}
        with torch.no_grad():
            return model.eval()(**inputs).logits


def fill(parameter: Any, value: torch.Tensor) -> None:
    parameter.data.copy_(value)


def plugin(folder: str, name: str, **options: Any) -> Any:
    module = registry.load(folder, name)
    return module.Plugin(module.Options(**options))


@cache
def read(folder: Path, name: str) -> tuple[Any, dict[str, Any], Any, dict[str, torch.Tensor]]:
    """A task, what it found in its rows, the processor, and the rows as one batch."""
    task, source = plugin("tasks", name, **OPTIONS.get(name, {})), Model(path=str(folder))
    rows, settings = (
        [Row(n, "", row) for n, row in enumerate(ROWS[name])],
        load_model_config(source),
    )
    processor = load_processor(source, task.processor_kind)
    processor, dataset_stats = task.adapt_processor(
        processor, task.collect_dataset_stats(rows, settings)
    )
    encode = task.encoder(processor, dataset_stats, settings)
    shown = [task.transform(encode(row).values, processor=processor, rng=None) for row in rows]
    return (
        task,
        dataset_stats,
        processor,
        task.collate(shown, pad_token_id=get_pad_token_id(processor) or 0),
    )


def make_bench(folder: Path, task: str, strategy: str, **options: Any) -> Bench:
    made, dataset_stats, processor, batch = read(folder, task)
    return Bench(
        folder, made, plugin("strategies", strategy, **options), dataset_stats, processor, batch
    )


def learning(model: Any) -> dict[str, Any]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def adamw(model: Any) -> Any:
    return torch.optim.AdamW(learning(model).values(), lr=1e-3, weight_decay=0.1)


def state(model: Any) -> dict[str, torch.Tensor]:
    """Every parameter and buffer, also those that are not saved."""
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@pytest.fixture(scope="session")
def masked_encoder(tmp_path_factory) -> Path:
    """A BERT as it comes from pretraining: with a head for masks, and no pooler, which is new."""
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

    plain = tiny.encoder(tmp_path_factory.mktemp("models") / "plain")
    folder = tmp_path_factory.mktemp("models") / "masked"
    torch.manual_seed(7)
    BertForMaskedLM(BertConfig.from_pretrained(plain)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(plain).save_pretrained(folder)
    return folder


@pytest.fixture(params=TRIALS, ids=lambda trial: "-".join((trial[0], *trial[1])))
def bench(request) -> Bench:
    strategy, (base, task) = request.param
    return make_bench(request.getfixturevalue(base), task, strategy)


@pytest.mark.parametrize(("strategy", "base"), REFUSED, ids=lambda part: part)
def test_what_would_do_nothing_is_refused(request, strategy, base):
    for task in (task for name, task in BEDS if name == base):
        bench = make_bench(request.getfixturevalue(base), task, strategy)
        with pytest.raises(DtlError, match=REFUSED[strategy, base]) as caught:
            bench.apply(bench.load())
        assert caught.value.faults[0].fix


# What every strategy owes -----------------------------------------------------------------------


def test_something_learns_and_all_of_it_takes_part_in_the_loss(bench):
    """A learning parameter without a gradient would stop data parallelism."""
    model = bench.apply(bench.load())
    bench.set_training_mode(model)
    assert learning(model)
    bench.task.loss(model, bench.batch()).backward()
    assert [name for name, parameter in learning(model).items() if parameter.grad is None] == []
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    assert all(parameter.grad is None for parameter in frozen)


def test_a_step_changes_learning_parameters_and_nothing_else(bench):
    model = bench.apply(bench.load())
    bench.set_training_mode(model)
    optimizer, before = adamw(model), state(model)
    moving = {id(parameter) for parameter in learning(model).values()}
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    moving |= {
        id(buffer)
        for module in batch_norms(model)
        if module.training
        for buffer in module.buffers()
    }
    may_change = {name for name, tensor in tensors.items() if id(tensor) in moving}
    bench.step(model, optimizer, bench.batch())
    after = state(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and changed <= may_change
    for _ in range(2):
        bench.step(model, optimizer, bench.batch())
    after = state(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == may_change


def test_the_loss_falls(bench):
    model = bench.apply(bench.load())
    bench.set_training_mode(model)
    few = bench.strategy.method in SMALL if isinstance(bench.strategy, Adapter) else False
    optimizer = torch.optim.AdamW(learning(model).values(), lr=5e-2 if few else 1e-2)
    before = bench.task.loss(model, bench.batch()).item()
    for _ in range(10):
        bench.step(model, optimizer, bench.batch())
    # Few parameters in a base that knows nothing; Whisper's output is tied to its embeddings.
    tied = bench.task.auto_class == "AutoModelForSpeechSeq2Seq"
    share = 0.997 if few else 0.995 if tied else 0.95
    assert bench.task.loss(model, bench.batch()).item() < share * before


def test_the_weightless_model_learns_the_same_names_and_counts(bench):
    model = bench.apply(bench.load())
    planned = load_on_meta_device(
        bench.source,
        head=HeadConfig(bench.task.auto_class, bench.task.head_config(bench.dataset_stats)),
    )
    with torch.device("meta"):
        counted = bench.parts.apply_strategy(planned)
    assert {name: p.shape for name, p in learning(counted).items()} == {
        name: p.shape for name, p in learning(model).items()
    }
    assert sum(p.numel() for p in counted.parameters()) == sum(
        p.numel() for p in model.parameters()
    )
    assert {p.device.type for p in counted.parameters()} == {"meta"}


def test_a_merged_model_is_the_same_function_without_additions(bench):
    model = bench.apply(bench.load())
    bench.set_training_mode(model)
    optimizer = torch.optim.AdamW(learning(model).values(), lr=1e-2)
    for _ in range(3):
        bench.step(model, optimizer, bench.batch())
    trained = bench.logits(model)
    if bench.strategy.virtual_tokens:
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


def test_before_the_first_step_the_function_is_that_of_the_base(bench):
    """An adaptation begins where the base is, save that virtual tokens are seen at once."""
    loaded = bench.load()
    base = bench.logits(loaded.model)
    same = torch.equal(bench.logits(bench.apply(loaded)), base)
    assert same == (bench.strategy.virtual_tokens == 0)


def test_a_new_head_learns_and_is_drawn_from_the_seed_alone(bench):
    """The same on every rank and layout, whatever has been drawn before."""
    heads = []
    for disturbance in (1, 2):
        torch.manual_seed(disturbance)
        loaded = bench.load()
        new = loaded.new_parameters
        model = bench.apply(loaded)
        heads.append(
            {
                name: parameter.detach().clone()
                for name, parameter in learning(model).items()
                if any(name.replace("modules_to_save.default.", "").endswith(one) for one in new)
            }
        )
    assert len(heads[0]) == len(new)
    if bench.strategy.starts_from == "pretrained":
        assert bool(new) == (bench.task.auto_class not in WHOLE)
    assert heads[0].keys() == heads[1].keys()
    for name, value in heads[0].items():
        assert torch.equal(value, heads[1][name])


def test_what_is_drawn_at_random_depends_on_the_seed(bench):
    if bench.strategy.starts_from == "pretrained" and bench.task.auto_class in WHOLE:
        assert bench.load(seed=1).new == frozenset()
        return
    first, second = (state(bench.load(seed=seed).model) for seed in (1, 2))
    assert any(not torch.equal(first[name], second[name]) for name in first)


# frozen -----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def dropping_encoder(tmp_path_factory) -> Path:
    """A BERT with much dropout."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    plain = tiny.encoder(tmp_path_factory.mktemp("models") / "plain")
    folder = tmp_path_factory.mktemp("models") / "dropping"
    config = BertConfig.from_pretrained(plain)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.5
    torch.manual_seed(7)
    BertModel(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(plain).save_pretrained(folder)
    return folder


def features(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model.bert(batch["input_ids"], attention_mask=batch["attention_mask"])[1]


def test_frozen_features_are_the_same_in_every_epoch(dropping_encoder):
    bench = make_bench(dropping_encoder, "text_classification", "frozen")
    model = bench.apply(bench.load())
    batch = bench.batch()
    model.train()
    assert not torch.equal(features(model, batch), features(model, batch)), (
        "no dropout to leave off"
    )
    bench.set_training_mode(model)
    assert torch.equal(features(model, batch), features(model, batch))
    assert not any(module.training for module in model.bert.modules())
    assert all(module.training for module in head_modules(model))


@pytest.mark.parametrize("strategy", ["full", "lora", "scratch"])
def test_where_the_base_learns_dropout_stays_on(dropping_encoder, strategy):
    bench = make_bench(dropping_encoder, "text_classification", strategy)
    model = bench.apply(bench.load())
    model.eval()
    bench.set_training_mode(model)
    with torch.no_grad():
        first, second = (bench.task.loss(model, bench.batch()) for _ in range(2))
    assert not torch.equal(first, second)


def test_frozen_learns_the_head_alone(decoder, encoder):
    for folder, task, names in (
        (decoder, "causal_lm", {"lm_head.weight"}),
        (decoder, "text_classification", {"score.weight"}),
        (encoder, "text_classification", {"classifier.weight", "classifier.bias"}),
    ):
        bench = make_bench(folder, task, "frozen")
        assert set(learning(bench.apply(bench.load()))) == names


# full and scratch -------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["full", "scratch"])
def test_everything_learns(decoder, encoder, strategy):
    for folder, task in ((decoder, "causal_lm"), (encoder, "text_classification")):
        bench = make_bench(folder, task, strategy)
        assert all(parameter.requires_grad for parameter in bench.apply(bench.load()).parameters())


def test_scratch_keeps_nothing_of_the_base(decoder):
    from safetensors.torch import load_file

    stored = load_file(decoder / "model.safetensors")
    bench = make_bench(decoder, "causal_lm", "scratch")
    for name, parameter in bench.load().model.named_parameters():
        if parameter.ndim > 1:
            assert not torch.equal(parameter, stored[name])


# lora -------------------------------------------------------------------------------------------


def plain_peft(bench: Bench, **settings: Any) -> Any:
    """The same by hand, from the files alone."""
    import transformers
    from peft import LoraConfig, get_peft_model

    head = bench.dataset_stats and {"num_labels": len(bench.dataset_stats["labels"])}
    base = getattr(transformers, bench.task.auto_class).from_pretrained(
        bench.folder, dtype=torch.float32, **head
    )
    base.config.pad_token_id = 0
    torch.manual_seed(0)
    return get_peft_model(base, LoraConfig(**settings))


@pytest.mark.parametrize(("rank", "alpha"), [(4, 8.0), (16, 32.0), (3, 1.0)])
@pytest.mark.parametrize("target", ["all-linear", ("q_proj", "v_proj")])
def test_lora_trains_as_plain_peft_does(decoder, rank, alpha, target):
    """5 steps of AdamW on the same batches, with the loss that transformers itself computes."""
    bench = make_bench(decoder, "causal_lm", "lora", rank=rank, alpha=alpha, target_modules=target)
    model = bench.apply(bench.load())
    theirs = plain_peft(
        bench,
        r=rank,
        lora_alpha=alpha,
        target_modules=target if isinstance(target, str) else list(target),
        task_type="CAUSAL_LM",
    )
    batch = bench.batch()
    targets = int((batch["labels"][:, 1:] != -100).sum())
    bench.set_training_mode(model)
    theirs.train()
    ours_optimizer = torch.optim.AdamW(learning(model).values(), lr=1e-2)
    their_optimizer = torch.optim.AdamW(learning(theirs).values(), lr=1e-2)
    for _ in range(5):
        (bench.task.loss(model, batch) / targets).backward()
        theirs(**batch).loss.backward()
        for optimizer in (ours_optimizer, their_optimizer):
            optimizer.step()
            optimizer.zero_grad()
    ours, expected = learning(model), learning(theirs)
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(ours[name], value, atol=1e-6, rtol=0), name
    assert any(value.abs().max() > 1e-3 for name, value in ours.items() if "lora_B" in name)
    assert torch.allclose(bench.logits(model), bench.logits(theirs), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        (
            {"layers_to_transform": (1,), "target_modules": ("q_proj", "up_proj")},
            {"layers_to_transform": [1], "target_modules": ["q_proj", "up_proj"]},
        ),
        ({"target_modules": r".*\.0\..*_proj"}, {"target_modules": r".*\.0\..*_proj"}),
        ({"exclude_modules": ("down_proj",)}, {"exclude_modules": ["down_proj"]}),
        ({"use_rslora": True}, {"use_rslora": True}),
        ({"use_dora": True}, {"use_dora": True}),
        ({"modules_to_save": ("embed_tokens",)}, {"modules_to_save": ["embed_tokens"]}),
        ({"dropout": 0.3}, {"lora_dropout": 0.3}),
    ],
    ids=lambda value: next(iter(value)),
)
def test_lora_options_are_pefts(decoder, options, settings):
    bench = make_bench(decoder, "causal_lm", "lora", rank=4, alpha=8.0, **options)
    model = bench.apply(bench.load())
    given = {"target_modules": "all-linear"} | settings
    theirs = plain_peft(bench, r=4, lora_alpha=8, task_type="CAUSAL_LM", **given)
    assert {name: p.shape for name, p in learning(model).items()} == {
        name: p.shape for name, p in learning(theirs).items()
    }
    for lora in (model, theirs):
        torch.manual_seed(1)
        for name, parameter in lora.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
    assert torch.allclose(bench.logits(model), bench.logits(theirs), atol=1e-6, rtol=0)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_lora_biases_are_pefts(encoder, bias):
    bench = make_bench(encoder, "text_classification", "lora", bias=bias)
    model = bench.apply(bench.load())
    theirs = plain_peft(
        bench, r=16, lora_alpha=32, bias=bias, target_modules="all-linear", task_type="SEQ_CLS"
    )
    assert learning(model).keys() == learning(theirs).keys()


def test_lora_of_a_classifier_saves_its_new_head_as_peft_would(encoder, tmp_path):
    """Read back by plain PEFT over the plain base: the head is in the adapter's file."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    bench = make_bench(encoder, "text_classification", "lora")
    model = bench.apply(bench.load())
    bench.set_training_mode(model)
    optimizer = adamw(model)
    for _ in range(3):
        bench.step(model, optimizer, bench.batch())
    model.save_pretrained(tmp_path)
    base = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=3)
    assert torch.equal(bench.logits(PeftModel.from_pretrained(base, tmp_path)), bench.logits(model))


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ("no_such_proj",)},
        {"target_modules": ("q_proj",), "layers_to_transform": (7,)},
    ],
)
def test_lora_on_layers_that_are_not_there_is_the_users_fault(decoder, options):
    bench = make_bench(decoder, "causal_lm", "lora", **options)
    with pytest.raises(DtlError, match="does not fit LlamaForCausalLM") as caught:
        bench.apply(bench.load())
    assert caught.value.faults[0].fix


def test_blocks_without_named_layers_are_a_fault_of_the_config(tmp_path):
    from dtl.config.load import load_config
    from dtl.core.errors import DtlError

    file = tmp_path / "run.yaml"
    file.write_text(
        "model: {path: mini:text}\ntask: causal_lm\ndata: {train: rows.jsonl}\n"
        "train: {steps: 1}\nstrategy:\n  name: lora\n  layers: [0, 1]\n"
    )
    with pytest.raises(DtlError) as caught:
        load_config(file)
    (fault,) = caught.value.faults
    assert fault.location == f"{file}:7: strategy.layers"
    assert "'all-linear'" in fault.problem
    assert fault.fix == "list the layers, such as target_modules: [q_proj, v_proj]"
