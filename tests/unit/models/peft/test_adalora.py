"""AdaLoRA allocates ranks as plain PEFT, resumes bitwise, and exports only the active ranks."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from dtl.config import registry
from dtl.models.peft.base import ADAPTER_WEIGHTS
from dtl.models.peft.merge import merge_into_base
from dtl.models.peft.save_load import build_adapter_files, load_adapter

STEPS, LAST_ALLOCATION = 20, 14
IDS = torch.randint(3, 320, (STEPS, 3, 11), generator=torch.Generator().manual_seed(1))


def adalora(**options: Any) -> Any:
    module = registry.load("strategies", "adalora")
    return module.Plugin(module.Options(**{"target_rank": 2, "init_rank": 4, **options}))


def base(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


def trainable(model: Any) -> dict[str, Any]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def adam(model: Any) -> Any:
    return torch.optim.AdamW(trainable(model).values(), lr=0.01)


def make_model(folder: Path) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = adalora().apply(base(folder), new_parameters=frozenset())
    return model, adam(model)


def resume(folder: Path, model: Any, optimizer: Any, *, completed_steps: int) -> tuple[Any, Any]:
    """Restore weights and optimizer state, as from a checkpoint."""
    again, other = make_model(folder)
    for (name, value), to in zip(trainable(model).items(), trainable(again).values(), strict=True):
        to.data.copy_(value)
        other.state[to] = copy.deepcopy(optimizer.state[trainable(model)[name]])
    adalora().register_optimizer_hooks(
        again, other, total_steps=STEPS, completed_steps=completed_steps
    )
    return again, other


def task_loss(model: Any, ids: Any) -> Any:
    """The model's own, to which PEFT adds its penalty where it is given the labels."""
    logits = model(input_ids=ids).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def train_step(model: Any, optimizer: Any, ids: Any) -> float:
    loss = task_loss(model, ids)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def count_ranks(model: Any) -> int:
    return sum(int(value.count_nonzero()) for n, value in trainable(model).items() if "lora_E" in n)


def test_ranks_equal_plain_peft_and_resume_from_any_step(decoder: Path) -> None:
    from peft import AdaLoraConfig, get_peft_model

    settings = AdaLoraConfig(
        init_r=4,
        target_r=2,
        tinit=2,
        tfinal=STEPS - LAST_ALLOCATION,
        total_step=STEPS,
        lora_alpha=32,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(0)
    theirs = get_peft_model(base(decoder), settings)
    optimizer, (model, mine) = adam(theirs), make_model(decoder)
    adalora().register_optimizer_hooks(model, mine, total_steps=STEPS, completed_steps=0)
    others: list[tuple[Any, Any]] = []
    counts = []
    for number, ids in enumerate(IDS, start=1):
        expected = task_loss(theirs, ids).item()
        theirs(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        theirs.base_model.update_and_allocate(number)
        optimizer.zero_grad()
        assert train_step(model, mine, ids) == pytest.approx(expected, rel=1e-5)
        for again, other in others:
            train_step(again, other, ids)
        if number in (1, 7, LAST_ALLOCATION - 1, LAST_ALLOCATION, LAST_ALLOCATION + 2):
            others.append(resume(decoder, model, mine, completed_steps=number))
        counts.append(count_ranks(model))
        assert counts[-1] == count_ranks(theirs)
    for name, value in trainable(theirs).items():
        assert torch.allclose(trainable(model)[name], value, atol=1e-5), name
    assert counts[:2] == [14 * 4] * 2 and counts[LAST_ALLOCATION:] == [14 * 2] * (
        STEPS - LAST_ALLOCATION
    )
    assert counts == sorted(counts, reverse=True)
    for again, _ in others:
        for name, value in trainable(again).items():
            assert torch.equal(value, trainable(model)[name]), name


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys")
def test_pruned_ranks_are_not_in_the_file(decoder: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from safetensors.torch import load_file

    model, optimizer = make_model(decoder)
    adalora().register_optimizer_hooks(model, optimizer, total_steps=STEPS, completed_steps=0)
    for ids in IDS:
        train_step(model, optimizer, ids)
    model.eval()
    build_adapter_files(model, {n: p.detach().clone() for n, p in trainable(model).items()}).save(
        tmp_path / "adapter", base=model
    )
    saved = load_file(tmp_path / "adapter" / ADAPTER_WEIGHTS)
    assert sum(len(value) for name, value in saved.items() if "lora_E" in name) == 14 * 2
    trained = model(input_ids=IDS[0]).logits
    merged_into_base, _ = merge_into_base(base(decoder), tmp_path / "adapter")
    merged = adalora().merge(copy.deepcopy(model))
    plain = PeftModel.from_pretrained(base(decoder), tmp_path / "adapter")
    for other in (
        plain,
        load_adapter(base(decoder), tmp_path / "adapter"),
        merged_into_base,
        merged,
    ):
        assert torch.allclose(other.eval()(input_ids=IDS[0]).logits, trained, atol=1e-5)


def test_step_with_zero_learning_rate_is_not_counted(decoder: Path) -> None:
    """It only creates the optimizer's state."""
    model, optimizer = make_model(decoder)
    adalora().register_optimizer_hooks(model, optimizer, total_steps=STEPS, completed_steps=0)
    before = {name: value.clone() for name, value in trainable(model).items()}
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    (task_loss(model, IDS[0]) * 0.0).backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in trainable(model).items())
    assert not any("importance" in state for state in optimizer.state.values())
    assert not any(state["exp_avg"].any() for state in optimizer.state.values())


def test_rank_schedule_without_pruning_is_rejected() -> None:
    with pytest.raises(ValidationError, match="expected < 4, got 4"):
        adalora(target_rank=4)
    with pytest.raises(ValidationError, match="no steps in which ranks are pruned"):
        adalora(warmup_share=0.5, final_share=0.5)
