"""Initializations and variants of LoRA, compared with plain PEFT."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from dtl.core.errors import DtlError
from dtl.models.peft.save_load import build_adapter_files
from tests.contracts.adapter_cases import (
    IDS,
    WORDS,
    attach,
    cases,
    fresh,
    is_close,
    logits,
    lora,
    train,
)

BASE_CHANGING = ({"init": "pissa"}, {"init": "olora"})
BASE_PRESERVING = (
    {"init": "gaussian"},
    {"init": "orthogonal"},
    {"use_dora": True},
    {"use_rslora": True},
)
MIXED = ({"init": "pissa", "use_rslora": True}, {"init": "olora", "use_dora": True})


def parametrize_options(*cases: dict[str, Any]) -> Any:
    ids = ["-".join(map(str, itertools.chain(*case.items()))) for case in cases]
    return pytest.mark.parametrize("options", cases, ids=ids)


@parametrize_options(*BASE_CHANGING, *BASE_PRESERVING, *MIXED)
def test_lora_variant_starts_at_the_base_and_is_exported_over_it(
    options: dict[str, Any], tmp_path: Path
) -> None:
    from peft import PeftModel

    case = cases()["decoder"]["llama"]
    strategy, base = lora(**options), fresh(case)
    base_logits, weight = (
        logits(base, case.inputs).detach(),
        base.model.layers[0].mlp.up_proj.weight,
    )
    before = weight.detach().clone()
    model = attach(strategy, case, base)
    assert is_close(logits(model, case.inputs), base_logits)
    changes_base = options.get("init") in ("pissa", "olora")
    inside = model.get_base_model().model.layers[0].mlp.up_proj.base_layer.weight
    assert torch.equal(inside, before) != changes_base
    assert (strategy.preserves_base, strategy.max_zero_stage) == (
        (False, 2) if changes_base else (True, 3)
    )

    train(model, case.inputs)
    trained = logits(model, case.inputs).detach()
    assert not is_close(trained, base_logits)
    assert is_close(logits(strategy.merge(copy.deepcopy(model)), case.inputs), trained)
    trained_parameters = {
        n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad
    }
    build_adapter_files(model, trained_parameters).save(tmp_path / "adapter", base=base)
    opened = PeftModel.from_pretrained(fresh(case), tmp_path / "adapter").eval()
    assert is_close(logits(opened, case.inputs), trained)
    with opened.disable_adapter():
        assert torch.equal(logits(opened, case.inputs), base_logits)


@parametrize_options(*BASE_CHANGING, *BASE_PRESERVING[:3])
def test_lora_variant_trains_as_plain_peft(options: dict[str, Any]) -> None:
    from peft import LoraConfig, get_peft_model

    case = cases()["decoder"]["llama"]
    ours = attach(lora(**options), case, fresh(case))
    init = {"init_lora_weights": options["init"]} if "init" in options else {"use_dora": True}
    settings = LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", **init
    )
    base = fresh(case)
    torch.manual_seed(0)
    theirs = get_peft_model(base, settings)
    for model in (ours, theirs):
        train(model, case.inputs, steps=5)
    assert torch.allclose(
        logits(ours, case.inputs), logits(theirs, case.inputs), atol=1e-6, rtol=1e-6
    )


def test_lora_plus_trains_as_the_optimizer_of_peft() -> None:
    from peft.optimizers import create_loraplus_optimizer

    from dtl.config.schema.optim import Optim
    from dtl.train import optim

    case, losses = cases()["decoder"]["llama"], []
    for plain in (False, True):
        strategy = lora(loraplus_lr_ratio=16.0)
        model = attach(strategy, case, fresh(case))
        if plain:
            optimizer: torch.optim.Optimizer = create_loraplus_optimizer(
                model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16.0
            )
        else:
            factor = strategy.learning_rate_factor
            optimizer = optim.build_optimizer(
                model,
                Optim(),
                learning_rate=1e-3,
                new_parameters=frozenset(),
                rate_factor=factor,
            )
            for group in optimizer.param_groups:  # as the engine does at each step
                group["lr"] = group["peak_learning_rate"]
            assert {group["lr"] for group in optimizer.param_groups} == {1e-3, 16e-3}
        losses.append([])
        for _ in range(5):
            loss = logits(model, case.inputs).log_softmax(-1)[..., 1].sum().neg()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[-1].append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0][-1] < losses[0][0]


def test_rank_above_that_of_a_decomposed_weight_is_rejected() -> None:
    case = cases()["decoder"]["llama"]
    for device in ("cpu", "meta"):  # also in the planner
        with pytest.raises(
            DtlError, match=r"k_proj, whose rank is 16 \(got 32\)\. Fix: set strategy.rank to 16"
        ):
            attach(lora(init="pissa", rank=32), case, fresh(case).to(device))
    attach(lora(rank=32), case, fresh(case))


def test_eva_init_equals_peft_and_does_not_change_the_base() -> None:
    from peft import EvaConfig, LoraConfig, get_peft_model, initialize_lora_eva_weights

    case = cases()["decoder"]["llama"]
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
    strategy, base = lora(init="eva"), fresh(case)
    base_logits = logits(base, case.inputs).detach()
    model = attach(strategy, case, base)
    strategy.init_from_data(
        model, batches=itertools.cycle(batches), forward=lambda model, batch: model(**batch)
    )
    assert is_close(logits(model, case.inputs), base_logits)
    settings = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        init_lora_weights="eva",
        eva_config=EvaConfig(rho=1.0),
    )
    theirs = get_peft_model(fresh(case), settings, low_cpu_mem_usage=True)
    initialize_lora_eva_weights(theirs, batches, show_progress_bar=False)
    expected = dict(theirs.named_parameters())
    factors = {name: p for name, p in model.named_parameters() if "lora_" in name}
    assert len(factors) == 28
    for name, value in factors.items():
        assert torch.allclose(value, expected[name], atol=1e-5), name


def test_eva_that_does_not_converge_raises_dtl_error() -> None:
    """A batch of three tokens has no four directions."""
    case, strategy = cases()["decoder"]["llama"], lora(init="eva")
    model, batch = attach(strategy, case, fresh(case)), {"input_ids": IDS[1:2, :3]}
    with pytest.raises(DtlError, match=r"did not converge within 100 batches.*lower strategy.rank"):
        strategy.init_from_data(
            model, batches=itertools.repeat(batch), forward=lambda model, batch: model(**batch)
        )
