"""Continued training of an adapter, compared with plain PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dtl.config import registry
from dtl.core.errors import DtlError
from dtl.models.peft.compatibility import COMPATIBILITY
from dtl.models.peft.save_load import build_adapter_files
from dtl.models.structure.head import head_parameters
from dtl.strategies.base import Adapter
from tests.contracts.adapter_cases import (
    LABELS,
    Case,
    attach,
    cases,
    fresh,
    is_close,
    logits,
    lora,
    make_strategy,
    parametrize_cells,
    train,
)

CONTINUED = [
    (method, kind, name)
    for method in COMPATIBILITY
    if hasattr(registry.load("strategies", method).Options(), "continue_from")
    for kind, name in (("decoder", "llama"), ("encoder", "bert"), ("speech", "whisper"))
]


def save_trained(strategy: Adapter, case: Case, folder: Path) -> Path:
    """Return the folder of an adapter after a few steps, as a run exports it."""
    base = fresh(case)
    model = attach(strategy, case, base)
    train(model, case.inputs)
    trained_parameters = {
        n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad
    }
    build_adapter_files(model, trained_parameters).save(folder, base=base)
    return folder


def make_continued_strategy(method: str, folder: Path, **options: Any) -> Adapter:
    module = registry.load("strategies", method)
    made: Adapter = module.Plugin(module.Options(continue_from=str(folder), **options))
    return made


def continue_adapter(method: str, case: Case, folder: Path, **options: Any) -> nn.Module:
    """Return the model as a run starts with it; its new head has other values than the file."""
    strategy, base = make_continued_strategy(method, folder, **options), fresh(case)
    for name, value in base.named_parameters():
        if case.has_new_head and name in head_parameters(base):
            value.data.zero_()
    model = attach(strategy, case, base)
    strategy.load_initial_values(
        model, write_parameter=lambda parameter, value: parameter.data.copy_(value)
    )
    return model


@parametrize_cells(CONTINUED)
def test_continued_adapter_trains_as_in_plain_peft(
    method: str, kind: str, name: str, tmp_path: Path
) -> None:
    from peft import PeftModel

    case = cases()[kind][name]
    folder = save_trained(make_strategy(method, case), case, tmp_path / "earlier")
    ours = continue_adapter(method, case, folder)
    theirs = PeftModel.from_pretrained(fresh(case), folder, is_trainable=True).eval()
    trainable = [
        {n: p for n, p in model.named_parameters() if p.requires_grad} for model in (ours, theirs)
    ]
    assert trainable[0].keys() == trainable[1].keys()
    assert is_close(logits(ours, case.inputs), logits(theirs, case.inputs))
    before = logits(ours, case.inputs).detach()
    for model in (ours, theirs):
        train(model, case.inputs, steps=4)
    assert not is_close(logits(ours, case.inputs), before)
    assert torch.allclose(
        logits(ours, case.inputs), logits(theirs, case.inputs), atol=1e-6, rtol=1e-5
    )
    with torch.device("meta"):
        planned = attach(make_continued_strategy(method, folder), case, fresh(case).to("meta"))
    assert {n: p.shape for n, p in planned.named_parameters() if p.requires_grad} == {
        n: p.shape for n, p in trainable[0].items()
    }


def test_head_for_other_labels_is_dropped(tmp_path: Path) -> None:
    case = cases()["encoder"]["bert"]
    folder = save_trained(make_strategy("lora", case), case, tmp_path / "earlier")
    base = fresh(case)
    base.classifier = nn.Linear(32, LABELS + 2)
    model = attach(strategy := make_continued_strategy("lora", folder), case, base)
    head = base.classifier.modules_to_save["default"].weight
    before = head.detach().clone()
    strategy.load_initial_values(
        model, write_parameter=lambda parameter, value: parameter.data.copy_(value)
    )
    assert torch.equal(head, before)
    assert any(value.any() for name, value in model.named_parameters() if "lora_B" in name)


def test_continued_adapter_has_its_own_config_and_another_is_rejected(tmp_path: Path) -> None:
    case, other = cases()["decoder"]["llama"], cases()["speech"]["whisper"]
    earlier = lora(rank=2, alpha=6.0, target_modules=("q_proj", "v_proj"), use_dora=True)
    folder = save_trained(earlier, case, tmp_path / "earlier")
    config = continue_adapter("lora", case, folder).peft_config["default"]
    assert (config.r, config.lora_alpha, config.use_dora) == (2, 6.0, True)
    assert config.target_modules == {"q_proj", "v_proj"}
    same = {"rank": 2, "target_modules": ("v_proj", "q_proj"), "loraplus_lr_ratio": 4.0}
    assert (
        make_continued_strategy("lora", folder, **same).learning_rate_factor(
            "x.lora_B.default.weight"
        )
        == 4
    )
    continue_adapter("lora", case, folder, **same)

    biased = save_trained(
        lora(bias="lora_only"), bert := cases()["encoder"]["bert"], tmp_path / "biased"
    )
    for method, where, target, options, message in (
        (
            "lora",
            folder,
            case,
            {"rank": 8},
            "has another r than the config (expected 8, got 2). Fix: remove the opt",
        ),
        (
            "ia3",
            folder,
            case,
            {},
            "has an adapter of method lora (expected ia3). Fix: take strategy lora",
        ),
        ("lora", folder, other, {}, "does not belong to this base (base_model"),
        ("lora", tmp_path, case, {}, "has no adapter (adapter_config.json and"),
        ("lora", biased, bert, {}, "replaces biases of the base. Fix: merge it into the base"),
    ):
        with pytest.raises(DtlError) as caught:
            attach(
                make_continued_strategy(method, where, **options), target, fresh(target).to("meta")
            )
        assert message in str(caught.value)

    settings = folder / "adapter_config.json"
    text = settings.read_text()
    settings.write_text(text.replace('"init_lora_weights": true', '"init_lora_weights": "pissa"'))
    assert settings.read_text() != text
    with pytest.raises(DtlError, match=r"was initialized by pissa.*path_initial_model_for_weight"):
        attach(make_continued_strategy("lora", folder), case, fresh(case))
