"""Every cell of the compatibility table of PEFT methods, compared with plain PEFT."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dtl.config import registry
from dtl.core.errors import DtlError
from dtl.models.peft.compatibility import COMPATIBILITY, MODEL_KIND_EXAMPLES, find_model_kind
from dtl.models.peft.save_load import build_adapter_files, load_adapter
from dtl.models.peft.virtual_tokens import count_virtual_tokens
from dtl.models.structure.head import head_parameters
from dtl.strategies.base import Adapter
from tests.contracts.adapter_cases import (
    MASK,
    TEXT,
    attach,
    cases,
    fresh,
    is_close,
    logits,
    make_strategy,
    parametrize_cells,
    train,
)

CELLS = [
    (method, kind, name)
    for method, kind in itertools.product(COMPATIBILITY, MODEL_KIND_EXAMPLES)
    for name in cases()[kind]
]
ALLOWED = [cell for cell in CELLS if cell[1] in COMPATIBILITY[cell[0]].kinds]
REJECTED = [cell for cell in CELLS if cell not in ALLOWED]


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def padding_matters(model: nn.Module, inputs: dict[str, Any]) -> bool:
    """Return whether a text has other logits alone than in a batch with longer texts."""
    length = int(MASK[0].sum())
    single = {
        name: value[:1, :length] if name in TEXT else value[:1] if torch.is_tensor(value) else value
        for name, value in inputs.items()
    }
    in_batch, found = logits(model, inputs)[:1], logits(model, single)
    if in_batch.ndim == 3 and "labels" not in inputs:
        in_batch, found = in_batch[:, :length], found[:, -length:]
    return not is_close(found, in_batch)


@parametrize_cells(ALLOWED)
def test_allowed_method_trains_and_plain_peft_loads_it(
    method: str, kind: str, name: str, tmp_path: Path
) -> None:
    from peft import PeftModel

    case = cases()[kind][name]
    strategy, base = make_strategy(method, case), fresh(case)
    assert find_model_kind(base) == kind
    base_logits, before = logits(base, case.inputs).detach(), values(base)
    model = attach(strategy, case, base)
    start = logits(model, case.inputs).detach()
    assert start.shape == base_logits.shape
    assert is_close(start, base_logits) == (strategy.num_virtual_tokens == 0)

    planned = make_strategy(method, case).apply(
        fresh(case).to("meta"),
        new_parameters=head_parameters(base) if case.has_new_head else frozenset(),
    )
    shapes = [
        {n: p.shape for n, p in made.named_parameters() if p.requires_grad}
        for made in (model, planned)
    ]
    assert shapes[0] == shapes[1]

    first = values(model)
    train(model, case.inputs)
    for name, value in model.named_parameters():
        assert torch.equal(value, first[name]) != value.requires_grad, name
    trained = logits(model, case.inputs).detach()
    assert not is_close(trained, start)
    if "input_ids" in case.inputs:
        assert not padding_matters(model, case.inputs)

    trained_parameters = {
        n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad
    }
    build_adapter_files(model, trained_parameters).save(tmp_path / "adapter", base=base)
    plain = PeftModel.from_pretrained(fresh(case), tmp_path / "adapter").eval()
    if method == "adalora":  # without labels, which stand for what is written so far, it has none
        plain.base_model.trainable_adapter_name = "default"
    opened = logits(plain, case.inputs).detach()
    if opened.shape != trained.shape:  # plain PEFT scores its virtual tokens as well
        opened = opened[:, -trained.shape[1] :]
    assert is_close(opened, trained)
    ours = load_adapter(fresh(case), tmp_path / "adapter").eval()
    assert is_close(logits(ours, case.inputs), trained)
    assert count_virtual_tokens(ours) == strategy.num_virtual_tokens

    if not COMPATIBILITY[method].can_merge:
        with pytest.raises(DtlError, match="take strategy lora"):
            strategy.merge(model)
        return
    merged = strategy.merge(copy.deepcopy(model))
    assert is_close(logits(merged, case.inputs), trained)
    assert [(n, p.shape) for n, p in merged.named_parameters()] == [
        (n, p.shape) for n, p in before.items()
    ]
    assert strategy.preserves_base
    with model.disable_adapter():
        assert is_close(logits(model, case.inputs), base_logits)


@parametrize_cells(REJECTED)
@pytest.mark.filterwarnings("ignore:Invalid `oft_block_size`")
def test_rejected_method_fails_or_is_wrong_in_peft(
    method: str, kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = cases()[kind][name]
    strategy = make_strategy(method, case)
    with pytest.raises(DtlError, match=f"{method} does not work with .*take strategy lora"):
        attach(strategy, case, fresh(case))
    base_logits = logits(fresh(case), case.inputs)
    monkeypatch.setattr("dtl.strategies.base.check_compatibility", lambda method, model: None)
    try:
        model = attach(strategy, case, fresh(case))
        start = logits(model, case.inputs)
    except (DtlError, KeyError, NotImplementedError, AttributeError, RuntimeError):
        return
    if strategy.num_virtual_tokens == 0:
        assert not is_close(start, base_logits), "an untrained adapter does not change the base"
    else:
        assert padding_matters(model, case.inputs)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@pytest.mark.parametrize("method", COMPATIBILITY)
def test_gradient_checkpointing_gives_the_same_gradients_or_fails(method: str) -> None:
    case, gradients = cases()["decoder"]["llama"], []
    strategy = make_strategy(method, case)
    for recomputed in (False, True):
        model = attach(strategy, case, fresh(case)).train()
        if recomputed:
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        if recomputed and not strategy.supports_gradient_checkpointing:
            with pytest.raises(RuntimeError, match="size of tensor"):  # the prefix is gone
                logits(model, case.inputs)
            return
        logits(model, case.inputs).log_softmax(-1)[..., 1].sum().backward()
        trainable = [value for value in model.parameters() if value.requires_grad]
        gradients.append(torch.cat([value.grad.flatten() for value in trainable]))
    assert is_close(*gradients)


def test_rejection_names_a_method_that_works_with_the_model() -> None:
    for method, kind, _ in REJECTED:
        assert kind in COMPATIBILITY[COMPATIBILITY[method].alternative].kinds


def test_every_method_has_a_strategy_and_every_adapter_a_row() -> None:
    plugins = {
        name: registry.load("strategies", name).Plugin for name in registry.list_names("strategies")
    }
    assert {p.method for p in plugins.values() if issubclass(p, Adapter)} == set(COMPATIBILITY)
    assert all(plugins[method].method == method for method in COMPATIBILITY)
