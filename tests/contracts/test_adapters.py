"""Every cell of the table of `adapters.REACH`: what is allowed is right, and what is refused is
wrong, beside plain PEFT."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dtl.config import registry
from dtl.core.errors import DtlError
from dtl.engine.deepspeed import read_full_shape
from dtl.models.full_shape import register_shape_reader
from dtl.models.head import head_parameters
from dtl.models.peft.base import ADAPTER_WEIGHTS
from dtl.models.peft.compatibility import COMPATIBILITY, MODEL_KIND_EXAMPLES, find_model_kind
from dtl.models.peft.save_load import build_adapter_files, load_adapter
from dtl.models.peft.virtual_tokens import count_virtual_tokens
from dtl.strategies.base import Adapter
from tests import tiny_sound

WORDS, LABELS = 120, 3
IDS = torch.randint(5, WORDS, (3, 8), generator=torch.Generator().manual_seed(3))
MASK = torch.ones_like(IDS)
MASK[0, 5:] = 0
IDS = IDS * MASK  # the first text is shorter
TEXT = {"input_ids": IDS, "attention_mask": MASK}
WIDTH = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
SIDES = {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "dropout": 0.0} | {
    f"{side}_{part}": 2 for side in ("encoder", "decoder") for part in ("layers", "attention_heads")
}


@dataclass(frozen=True)
class Bed:
    """A model that has never learnt, and what it is shown. `new`: whether its head is new."""

    make: Callable[[], nn.Module]
    shown: dict[str, torch.Tensor]
    new: bool = False
    target_modules: Any = "all-linear"


def _llama(kind: str) -> Callable[[], nn.Module]:
    import transformers

    settings = transformers.LlamaConfig(
        **WIDTH,
        vocab_size=WORDS,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_labels=LABELS,
        pad_token_id=0,
    )
    return lambda: getattr(transformers, f"LlamaFor{kind}")(settings)


def _bert(kind: str) -> Callable[[], nn.Module]:
    import transformers

    settings = transformers.BertConfig(
        **WIDTH, vocab_size=WORDS, num_attention_heads=4, num_labels=LABELS
    )
    return lambda: getattr(transformers, f"BertFor{kind}")(settings)


def _bart(kind: str) -> Callable[[], nn.Module]:
    import transformers

    settings = transformers.BartConfig(
        **SIDES, vocab_size=WORDS, max_position_embeddings=64, num_labels=LABELS, eos_token_id=2
    )
    return lambda: getattr(transformers, f"BartFor{kind}")(settings)


def _t5() -> nn.Module:
    import transformers

    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=WORDS,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            decoder_start_token_id=0,
        )
    )


def _hubert() -> nn.Module:
    import transformers

    settings = tiny_sound.SMALL | tiny_sound.CONVOLUTIONS
    return transformers.HubertForCTC(transformers.HubertConfig(**settings, vocab_size=20))


def _whisper() -> nn.Module:
    import transformers

    return transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(
            **SIDES,
            vocab_size=WORDS,
            num_mel_bins=16,
            max_source_positions=50,
            max_target_positions=32,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        )
    )


def _vit() -> nn.Module:
    import transformers

    return transformers.ViTForImageClassification(
        transformers.ViTConfig(
            **WIDTH, num_attention_heads=4, image_size=32, patch_size=8, num_labels=LABELS
        )
    )


def _resnet() -> nn.Module:
    import transformers

    return transformers.ResNetForImageClassification(
        transformers.ResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 16],
            depths=[1, 1],
            layer_type="basic",
            num_labels=LABELS,
        )
    )


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


@cache
def beds() -> dict[str, dict[str, Bed]]:
    """By kind, as the table has it."""
    ends = torch.cat([IDS[:, :7], torch.full((3, 1), 2)], 1)  # BART reads its label there
    ends[0, 5:], ends[0, 4] = 0, 2
    target = IDS.where(MASK > 0, -100)
    return {
        "decoder": {"llama": Bed(_llama("CausalLM"), {**TEXT, "use_cache": False})},
        "classifier on a decoder": {"llama": Bed(_llama("SequenceClassification"), TEXT, new=True)},
        "encoder": {
            "bert": Bed(_bert("SequenceClassification"), TEXT, new=True),
            "tags": Bed(_bert("TokenClassification"), TEXT, new=True),
            "tags of a decoder": Bed(_llama("TokenClassification"), TEXT, new=True),
        },
        "encoder-decoder": {
            name: Bed(make, {**TEXT, "labels": target, "use_cache": False})
            for name, make in (("t5", _t5), ("bart", _bart("ConditionalGeneration")))
        },
        "classifier on an encoder-decoder": {
            "bart": Bed(_bart("SequenceClassification"), {**TEXT, "input_ids": ends}, new=True)
        },
        "speech": {
            "ctc": Bed(_hubert, {"input_values": _noise(2, 4000)}, new=True),
            "whisper": Bed(
                _whisper, {"input_features": _noise(2, 16, 100), "decoder_input_ids": IDS[1:]}
            ),
        },
        "vision": {"vit": Bed(_vit, {"pixel_values": _noise(2, 3, 32, 32)}, new=True)},
        "convolutional": {
            "resnet": Bed(
                _resnet,
                {"pixel_values": _noise(2, 3, 32, 32)},
                new=True,
                target_modules=("convolution",),
            )
        },
    }


CELLS = [
    (method, kind, bed)
    for method, kind in itertools.product(COMPATIBILITY, MODEL_KIND_EXAMPLES)
    for bed in beds()[kind]
]
ALLOWED = [cell for cell in CELLS if cell[1] in COMPATIBILITY[cell[0]].kinds]
REFUSED = [cell for cell in CELLS if cell not in ALLOWED]


def named(cells: list[tuple[str, str, str]]) -> Any:
    return pytest.mark.parametrize(
        ("method", "kind", "bed"), cells, ids=["-".join(cell) for cell in cells]
    )


def fresh(bed: Bed) -> nn.Module:
    torch.manual_seed(7)
    return bed.make().eval()


def make_strategy(method: str, bed: Bed) -> Adapter:
    module = registry.load("strategies", method)
    given = (
        {"target_modules": bed.target_modules}
        if "target_modules" in module.Options.model_fields
        else {}
    )
    small = {
        name: 4
        for name in ("rank", "target_rank", "init_rank", "block_size", "num_virtual_tokens")
        if name in module.Options.model_fields
    }
    return module.Plugin(module.Options(**given, **small))


def put_on(strategy: Adapter, bed: Bed, model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return strategy.apply(model, new_parameters=head_parameters(model) if bed.new else frozenset())


def scores(model: nn.Module, shown: dict[str, Any]) -> torch.Tensor:
    return model(**shown).logits


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def teach(model: nn.Module, shown: dict[str, Any], *, steps: int = 3) -> None:
    """In evaluation mode, so that nothing is drawn."""
    learning = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-2, weight_decay=0.1)
    for _ in range(steps):
        scores(model, shown).log_softmax(-1)[..., 1].sum().neg().backward()
        without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert without == []
        optimizer.step()
        optimizer.zero_grad()


def near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(found, expected, atol=2e-5, rtol=1e-4)


def padding_matters(model: nn.Module, shown: dict[str, Any]) -> bool:
    """Whether a text alone has other scores than beside longer ones."""
    length = int(MASK[0].sum())
    alone = {
        name: value[:1, :length] if name in TEXT else value[:1] if torch.is_tensor(value) else value
        for name, value in shown.items()
    }
    together, found = scores(model, shown)[:1], scores(model, alone)
    if together.ndim == 3 and "labels" not in shown:
        together, found = together[:, :length], found[:, -length:]
    return not near(found, together)


@named(ALLOWED)
def test_what_is_allowed_learns_and_is_what_plain_peft_reads(
    method: str, kind: str, bed: str, tmp_path: Path
) -> None:
    from peft import PeftModel

    given = beds()[kind][bed]
    strategy, base = make_strategy(method, given), fresh(given)
    assert find_model_kind(base) == kind
    of_base, before = scores(base, given.shown).detach(), values(base)
    model = put_on(strategy, given, base)
    start = scores(model, given.shown).detach()
    assert start.shape == of_base.shape
    assert near(start, of_base) == (strategy.num_virtual_tokens == 0)

    planned = make_strategy(method, given).apply(
        fresh(given).to("meta"),
        new_parameters=head_parameters(base) if given.new else frozenset(),
    )
    shapes = [
        {n: p.shape for n, p in made.named_parameters() if p.requires_grad}
        for made in (model, planned)
    ]
    assert shapes[0] == shapes[1]

    first = values(model)
    teach(model, given.shown)
    for name, value in model.named_parameters():
        assert torch.equal(value, first[name]) != value.requires_grad, name
    trained = scores(model, given.shown).detach()
    assert not near(trained, start)
    if "input_ids" in given.shown:
        assert not padding_matters(model, given.shown)

    learnt = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    build_adapter_files(model, learnt).save(tmp_path / "adapter", base=base)
    plain = PeftModel.from_pretrained(fresh(given), tmp_path / "adapter").eval()
    if method == "adalora":  # without labels, which stand for what is written so far, it has none
        plain.base_model.trainable_adapter_name = "default"
    opened = scores(plain, given.shown).detach()
    if opened.shape != trained.shape:  # plain PEFT scores its virtual tokens as well
        opened = opened[:, -trained.shape[1] :]
    assert near(opened, trained)
    ours = load_adapter(fresh(given), tmp_path / "adapter").eval()
    assert near(scores(ours, given.shown), trained)
    assert count_virtual_tokens(ours) == strategy.num_virtual_tokens

    if not COMPATIBILITY[method].can_merge:
        with pytest.raises(DtlError, match="take strategy lora"):
            strategy.merge(model)
        return
    merged = strategy.merge(copy.deepcopy(model))
    assert near(scores(merged, given.shown), trained)
    assert [(n, p.shape) for n, p in merged.named_parameters()] == [
        (n, p.shape) for n, p in before.items()
    ]
    assert strategy.preserves_base
    with model.disable_adapter():
        assert near(scores(model, given.shown), of_base)


@named(REFUSED)
@pytest.mark.filterwarnings("ignore:Invalid `oft_block_size`")
def test_what_is_refused_fails_or_is_wrong(
    method: str, kind: str, bed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = beds()[kind][bed]
    strategy = make_strategy(method, given)
    with pytest.raises(DtlError, match=f"{method} does not work with .*take strategy lora"):
        put_on(strategy, given, fresh(given))
    of_base = scores(fresh(given), given.shown)
    monkeypatch.setattr("dtl.strategies.base.check_compatibility", lambda method, model: None)
    try:
        model = put_on(strategy, given, fresh(given))
        start = scores(model, given.shown)
    except (DtlError, KeyError, NotImplementedError, AttributeError, RuntimeError):
        return
    if strategy.num_virtual_tokens == 0:
        assert not near(start, of_base), "an untrained adapter leaves the base as it is"
    else:
        assert padding_matters(model, given.shown)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@pytest.mark.parametrize("method", COMPATIBILITY)
def test_recomputed_activations_give_the_same_gradients_or_are_refused(method: str) -> None:
    given, gradients = beds()["decoder"]["llama"], []
    strategy = make_strategy(method, given)
    for recomputed in (False, True):
        model = put_on(strategy, given, fresh(given)).train()
        if recomputed:
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        if recomputed and not strategy.supports_gradient_checkpointing:
            with pytest.raises(RuntimeError, match="size of tensor"):  # the prefix is gone
                scores(model, given.shown)
            return
        scores(model, given.shown).log_softmax(-1)[..., 1].sum().backward()
        learning = [value for value in model.parameters() if value.requires_grad]
        gradients.append(torch.cat([value.grad.flatten() for value in learning]))
    assert near(*gradients)


def test_each_refusal_names_a_method_that_goes_with_the_model() -> None:
    for method, kind, _ in REFUSED:
        assert kind in COMPATIBILITY[COMPATIBILITY[method].alternative].kinds


def test_every_method_has_its_strategy_and_every_adapter_its_row() -> None:
    plugins = {
        name: registry.load("strategies", name).Plugin for name in registry.list_names("strategies")
    }
    assert {p.method for p in plugins.values() if issubclass(p, Adapter)} == set(COMPATIBILITY)
    assert all(plugins[method].method == method for method in COMPATIBILITY)


# LoRA's ways to begin and to learn ---------------------------------------------------------------

TAKEN = ({"init": "pissa"}, {"init": "olora"})
LEFT = ({"init": "gaussian"}, {"init": "orthogonal"}, {"use_dora": True}, {"use_rslora": True})
MIXED = ({"init": "pissa", "use_rslora": True}, {"init": "olora", "use_dora": True})


def lora(**options: Any) -> Any:
    module = registry.load("strategies", "lora")
    return module.Plugin(module.Options(**{"rank": 4, "alpha": 8.0, **options}))


def named_options(*cases: dict[str, Any]) -> Any:
    ids = ["-".join(map(str, itertools.chain(*case.items()))) for case in cases]
    return pytest.mark.parametrize("options", cases, ids=ids)


@named_options(*TAKEN, *LEFT, *MIXED)
def test_lora_begins_learns_and_is_exported_over_the_whole_base(
    options: dict[str, Any], tmp_path: Path
) -> None:
    from peft import PeftModel

    given = beds()["decoder"]["llama"]
    strategy, base = lora(**options), fresh(given)
    of_base, weight = scores(base, given.shown).detach(), base.model.layers[0].mlp.up_proj.weight
    before = weight.detach().clone()
    model = put_on(strategy, given, base)
    assert near(scores(model, given.shown), of_base)
    takes = options.get("init") in ("pissa", "olora")
    inside = model.get_base_model().model.layers[0].mlp.up_proj.base_layer.weight
    assert torch.equal(inside, before) != takes
    assert (strategy.keeps_base, strategy.highest_zero) == ((False, 2) if takes else (True, 3))

    teach(model, given.shown)
    trained = scores(model, given.shown).detach()
    assert not near(trained, of_base)
    assert near(scores(strategy.merge(copy.deepcopy(model)), given.shown), trained)
    learnt = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    build_adapter_files(model, learnt).save(tmp_path / "adapter", base=base)
    opened = PeftModel.from_pretrained(fresh(given), tmp_path / "adapter").eval()
    assert near(scores(opened, given.shown), trained)
    with opened.disable_adapter():
        assert torch.equal(scores(opened, given.shown), of_base)


@named_options(*TAKEN, *LEFT[:3])
def test_lora_trains_from_there_as_plain_peft_does(options: dict[str, Any]) -> None:
    from peft import LoraConfig, get_peft_model

    given = beds()["decoder"]["llama"]
    ours = put_on(lora(**options), given, fresh(given))
    init = {"init_lora_weights": options["init"]} if "init" in options else {"use_dora": True}
    settings = LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", **init
    )
    base = fresh(given)
    torch.manual_seed(0)
    theirs = get_peft_model(base, settings)
    for model in (ours, theirs):
        teach(model, given.shown, steps=5)
    assert torch.allclose(
        scores(ours, given.shown), scores(theirs, given.shown), atol=1e-6, rtol=1e-6
    )


def test_lora_plus_trains_as_pefts_optimizer_does() -> None:
    from peft.optimizers import create_loraplus_optimizer

    from dtl.config.schema.optim import Optim
    from dtl.train import optim

    given, losses = beds()["decoder"]["llama"], []
    for plain in (False, True):
        strategy = lora(loraplus_lr_ratio=16.0)
        model = put_on(strategy, given, fresh(given))
        if plain:
            optimizer: torch.optim.Optimizer = create_loraplus_optimizer(
                model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16.0
            )
        else:
            factor = strategy.rate_factor
            optimizer = optim.build_optimizer(
                model,
                Optim(),
                learning_rate=1e-3,
                new=frozenset(),
                device="cpu",
                rate_factor=factor,
            )
            for group in optimizer.param_groups:  # as the engine does at each step
                group["lr"] = group["peak_learning_rate"]
            assert {group["lr"] for group in optimizer.param_groups} == {1e-3, 16e-3}
        losses.append([])
        for _ in range(5):
            loss = scores(model, given.shown).log_softmax(-1)[..., 1].sum().neg()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[-1].append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0][-1] < losses[0][0]


def test_a_rank_that_a_layer_does_not_have_is_refused_where_it_is_taken_from_it() -> None:
    given = beds()["decoder"]["llama"]
    for device in ("cpu", "meta"):  # also where the planner counts
        with pytest.raises(DtlError, match=r"k_proj, whose rank is 16; set strategy.rank to 16"):
            put_on(lora(init="pissa", rank=32), given, fresh(given).to(device))
    put_on(lora(rank=32), given, fresh(given))


def test_ia3_scales_what_the_paper_does_and_asks_where_it_does_not_know_the_model() -> None:
    """Keys, values, and what goes into the last layer of the feed-forward part (arXiv:2205.05638,
    section 3.3)."""
    module = registry.load("strategies", "ia3")
    usual = module.Plugin(module.Options())
    given = beds()["decoder"]["llama"]
    model = put_on(usual, given, fresh(given))
    scaled = {name.split(".")[-3]: p.shape for name, p in model.named_parameters() if "ia3" in name}
    assert scaled == {"k_proj": (16, 1), "v_proj": (16, 1), "down_proj": (1, 64)}
    heard = beds()["speech"]["ctc"]
    with pytest.raises(DtlError, match=r"'usual' does not fit HubertForCTC.*or all-linear"):
        put_on(usual, heard, fresh(heard))


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("p_tuning", {"network": "lstm", "width": 16}),
        ("prefix_tuning", {"network": True}),
        ("prompt_tuning", {"init": "random"}),
    ],
)
def test_virtual_tokens_are_exported_without_the_network_that_taught_them(
    method: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """From the weights of another step than the model has now, as train.export=best takes them."""
    from peft import PeftModel
    from safetensors.torch import load_file

    given, module = beds()["decoder"]["llama"], registry.load("strategies", method)
    base = fresh(given)
    model = put_on(module.Plugin(module.Options(num_virtual_tokens=4, **options)), given, base)
    teach(model, given.shown)
    learnt = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    trained = scores(model, given.shown).detach()
    teach(model, given.shown)
    build_adapter_files(model, learnt).save(tmp_path / "adapter", base=base)
    assert not near(scores(model, given.shown), trained)
    assert set(load_file(tmp_path / "adapter" / ADAPTER_WEIGHTS)) == {"prompt_embeddings"}
    opened = PeftModel.from_pretrained(fresh(given), tmp_path / "adapter").eval()
    assert near(scores(opened, given.shown)[:, -8:], trained)


def test_eva_begins_where_peft_has_it_begin_and_the_base_stays() -> None:
    from peft import EvaConfig, LoraConfig, get_peft_model, initialize_lora_eva_weights

    given = beds()["decoder"]["llama"]
    draw = torch.Generator().manual_seed(1)
    batches = [
        {
            "input_ids": torch.randint(5, WORDS, (8, 12), generator=draw),
            "attention_mask": torch.ones(8, 12, dtype=torch.long),
        }
        for _ in range(6)
    ]
    for batch in batches:
        batch["attention_mask"][:3, 9:] = 0
    strategy, base = lora(init="eva"), fresh(given)
    of_base = scores(base, given.shown).detach()
    model = put_on(strategy, given, base)
    strategy.begin(
        model, batches=itertools.cycle(batches), show=lambda model, batch: model(**batch)
    )
    assert near(scores(model, given.shown), of_base)
    settings = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        init_lora_weights="eva",
        eva_config=EvaConfig(rho=1.0),
    )
    theirs = get_peft_model(fresh(given), settings, low_cpu_mem_usage=True)
    initialize_lora_eva_weights(theirs, batches, show_progress_bar=False)
    expected = dict(theirs.named_parameters())
    factors = {name: p for name, p in model.named_parameters() if "lora_" in name}
    assert len(factors) == 28
    for name, value in factors.items():
        assert torch.allclose(value, expected[name], atol=1e-5), name


@pytest.mark.parametrize("strategy", ["loha", "lokr", "pissa", "olora", "lora", "vera"])
def test_what_goes_up_to_zero_2_wants_weights_that_zero_3_has_emptied(strategy: str) -> None:
    """DeepSpeed leaves a parameter of no elements, which its layers still know the sizes of."""
    given = beds()["decoder"]["llama"]
    takes = strategy in ("pissa", "olora")
    made = lora(init=strategy) if takes else make_strategy(strategy, given)
    base = fresh(given)
    register_shape_reader(read_full_shape)
    for name, parameter in base.named_parameters():
        if name.endswith("_proj.weight"):
            parameter.ds_shape = parameter.shape  # type: ignore[attr-defined]
            parameter.data = torch.empty(0)
    right = nullcontext() if made.max_zero_stage == 3 else pytest.raises((IndexError, RuntimeError))
    with right:
        model = put_on(made, given, base)
        for layer in model.modules():
            if hasattr(layer, "get_delta_weight"):
                layer.get_delta_weight("default")


def test_eva_has_an_end() -> None:
    """A batch of three tokens has no four directions."""
    given, strategy = beds()["decoder"]["llama"], lora(init="eva")
    model, batch = put_on(strategy, given, fresh(given)), {"input_ids": IDS[1:2, :3]}
    with pytest.raises(DtlError, match=r"no steady directions in 100 batches.*lower strategy.rank"):
        strategy.begin(
            model, batches=itertools.repeat(batch), show=lambda model, batch: model(**batch)
        )


# Going on with an earlier adapter ---------------------------------------------------------------

CONTINUED = [
    (method, kind, bed)
    for method in COMPATIBILITY
    if hasattr(registry.load("strategies", method).Options(), "continue_from")
    for kind, bed in (("decoder", "llama"), ("encoder", "bert"), ("speech", "whisper"))
]


def saved(strategy: Adapter, given: Bed, folder: Path) -> Path:
    """An adapter that has learnt a little, as a run exports it."""
    base = fresh(given)
    model = put_on(strategy, given, base)
    teach(model, given.shown)
    learnt = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    build_adapter_files(model, learnt).save(folder, base=base)
    return folder


def continuing(method: str, folder: Path, **options: Any) -> Adapter:
    module = registry.load("strategies", method)
    made: Adapter = module.Plugin(module.Options(continue_from=str(folder), **options))
    return made


def gone_on(method: str, given: Bed, folder: Path, **options: Any) -> nn.Module:
    """As a run begins with it, on a base whose new head has other values than were saved."""
    strategy, base = continuing(method, folder, **options), fresh(given)
    for name, value in base.named_parameters():
        if given.new and name in head_parameters(base):
            value.data.zero_()
    model = put_on(strategy, given, base)
    strategy.load_initial_values(
        model, write_parameter=lambda parameter, value: parameter.data.copy_(value)
    )
    return model


@named(CONTINUED)
def test_an_adapter_goes_on_as_in_plain_peft(
    method: str, kind: str, bed: str, tmp_path: Path
) -> None:
    from peft import PeftModel

    given = beds()[kind][bed]
    folder = saved(make_strategy(method, given), given, tmp_path / "former")
    ours = gone_on(method, given, folder)
    theirs = PeftModel.from_pretrained(fresh(given), folder, is_trainable=True).eval()
    learning = [
        {n: p for n, p in model.named_parameters() if p.requires_grad} for model in (ours, theirs)
    ]
    assert learning[0].keys() == learning[1].keys()
    assert near(scores(ours, given.shown), scores(theirs, given.shown))
    before = scores(ours, given.shown).detach()
    for model in (ours, theirs):
        teach(model, given.shown, steps=4)
    assert not near(scores(ours, given.shown), before)
    assert torch.allclose(
        scores(ours, given.shown), scores(theirs, given.shown), atol=1e-6, rtol=1e-5
    )
    with torch.device("meta"):
        planned = put_on(continuing(method, folder), given, fresh(given).to("meta"))
    assert {n: p.shape for n, p in planned.named_parameters() if p.requires_grad} == {
        n: p.shape for n, p in learning[0].items()
    }


def test_a_head_for_other_labels_is_left_out(tmp_path: Path) -> None:
    given = beds()["encoder"]["bert"]
    folder = saved(make_strategy("lora", given), given, tmp_path / "former")
    base = fresh(given)
    base.classifier = nn.Linear(32, LABELS + 2)
    model = put_on(strategy := continuing("lora", folder), given, base)
    head = base.classifier.modules_to_save["default"].weight
    before = head.detach().clone()
    strategy.load_initial_values(
        model, write_parameter=lambda parameter, value: parameter.data.copy_(value)
    )
    assert torch.equal(head, before)
    assert any(value.any() for name, value in model.named_parameters() if "lora_B" in name)


def test_an_adapter_brings_its_form_and_another_one_is_refused(tmp_path: Path) -> None:
    given, other = beds()["decoder"]["llama"], beds()["speech"]["whisper"]
    former = lora(rank=2, alpha=6.0, target_modules=("q_proj", "v_proj"), use_dora=True)
    folder = saved(former, given, tmp_path / "former")
    config = gone_on("lora", given, folder).peft_config["default"]
    assert (config.r, config.lora_alpha, config.use_dora) == (2, 6.0, True)
    assert config.target_modules == {"q_proj", "v_proj"}
    same = {"rank": 2, "target_modules": ("v_proj", "q_proj"), "loraplus_lr_ratio": 4.0}
    assert continuing("lora", folder, **same).learning_rate_factor("x.lora_B.default.weight") == 4
    gone_on("lora", given, folder, **same)

    biased = saved(lora(bias="lora_only"), bert := beds()["encoder"]["bert"], tmp_path / "biased")
    for method, where, bed, options, told in (
        ("lora", folder, given, {"rank": 8}, "has r 2, and the config asks for 8; leave the opt"),
        ("ia3", folder, given, {}, "holds an adapter of lora; take strategy lora"),
        ("lora", folder, other, {}, "does not belong to this base (base_model"),
        ("lora", tmp_path, given, {}, "has no adapter (adapter_config.json and"),
        ("lora", biased, bert, {}, "biases in place of those of the base; work it into the base"),
    ):
        with pytest.raises(DtlError) as caught:
            put_on(continuing(method, where, **options), bed, fresh(bed).to("meta"))
        assert told in str(caught.value)

    settings = folder / "adapter_config.json"
    text = settings.read_text()
    settings.write_text(text.replace('"init_lora_weights": true', '"init_lora_weights": "pissa"'))
    assert settings.read_text() != text
    with pytest.raises(DtlError, match=r"began by pissa.*path_initial_model_for_weight"):
        put_on(continuing("lora", folder), given, fresh(given))
