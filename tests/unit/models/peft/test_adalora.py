"""AdaLoRA moves its ranks as plain PEFT does, goes on bitwise, and is exported with what stays."""

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

STEPS, LAST_CUT = 20, 14
IDS = torch.randint(3, 320, (STEPS, 3, 11), generator=torch.Generator().manual_seed(1))


def adalora(**options: Any) -> Any:
    module = registry.load("strategies", "adalora")
    return module.Plugin(module.Options(**{"target_rank": 2, "init_rank": 4, **options}))


def base(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


def learning(model: Any) -> dict[str, Any]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def adam(model: Any) -> Any:
    return torch.optim.AdamW(learning(model).values(), lr=0.01)


def begun(folder: Path) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = adalora().apply(base(folder), new_parameters=frozenset())
    return model, adam(model)


def gone_on(folder: Path, model: Any, optimizer: Any, *, done: int) -> tuple[Any, Any]:
    """As a checkpoint gives them back: weights, and what the optimizer keeps of each."""
    again, other = begun(folder)
    for (name, value), to in zip(learning(model).items(), learning(again).values(), strict=True):
        to.data.copy_(value)
        other.state[to] = copy.deepcopy(optimizer.state[learning(model)[name]])
    adalora().tie(again, other, steps=STEPS, done=done)
    return again, other


def task_loss(model: Any, ids: Any) -> Any:
    """The model's own, to which PEFT adds its penalty where it is given the labels."""
    logits = model(input_ids=ids).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def learn(model: Any, optimizer: Any, ids: Any) -> float:
    loss = task_loss(model, ids)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def ranks(model: Any) -> int:
    return sum(int(value.count_nonzero()) for n, value in learning(model).items() if "lora_E" in n)


def test_ranks_move_as_in_plain_peft_and_a_run_may_stop_at_any_step(decoder: Path) -> None:
    from peft import AdaLoraConfig, get_peft_model

    settings = AdaLoraConfig(
        init_r=4,
        target_r=2,
        tinit=2,
        tfinal=STEPS - LAST_CUT,
        total_step=STEPS,
        lora_alpha=32,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(0)
    theirs = get_peft_model(base(decoder), settings)
    optimizer, (model, mine) = adam(theirs), begun(decoder)
    adalora().tie(model, mine, steps=STEPS, done=0)
    others: list[tuple[Any, Any]] = []
    counts = []
    for number, ids in enumerate(IDS, start=1):
        expected = task_loss(theirs, ids).item()
        theirs(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        theirs.base_model.update_and_allocate(number)
        optimizer.zero_grad()
        assert learn(model, mine, ids) == pytest.approx(expected, rel=1e-5)
        for again, other in others:
            learn(again, other, ids)
        if number in (1, 7, LAST_CUT - 1, LAST_CUT, LAST_CUT + 2):
            others.append(gone_on(decoder, model, mine, done=number))
        counts.append(ranks(model))
        assert counts[-1] == ranks(theirs)
    for name, value in learning(theirs).items():
        assert torch.allclose(learning(model)[name], value, atol=1e-5), name
    assert counts[:2] == [14 * 4] * 2 and counts[LAST_CUT:] == [14 * 2] * (STEPS - LAST_CUT)
    assert counts == sorted(counts, reverse=True)
    for again, _ in others:
        for name, value in learning(again).items():
            assert torch.equal(value, learning(model)[name]), name


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys")
def test_what_was_let_go_of_is_not_in_the_file(decoder: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from safetensors.torch import load_file

    model, optimizer = begun(decoder)
    adalora().tie(model, optimizer, steps=STEPS, done=0)
    for ids in IDS:
        learn(model, optimizer, ids)
    model.eval()
    build_adapter_files(model, {n: p.detach().clone() for n, p in learning(model).items()}).save(
        tmp_path / "adapter", base=model
    )
    left = load_file(tmp_path / "adapter" / ADAPTER_WEIGHTS)
    assert sum(len(value) for name, value in left.items() if "lora_E" in name) == 14 * 2
    trained = model(input_ids=IDS[0]).logits
    worked_in, _ = merge_into_base(base(decoder), tmp_path / "adapter")
    merged = adalora().merge(copy.deepcopy(model))
    plain = PeftModel.from_pretrained(base(decoder), tmp_path / "adapter")
    for other in (
        plain,
        load_adapter(base(decoder), tmp_path / "adapter"),
        worked_in,
        merged,
    ):
        assert torch.allclose(other.eval()(input_ids=IDS[0]).logits, trained, atol=1e-5)


def test_a_step_that_stands_still_is_not_counted(decoder: Path) -> None:
    """It only makes the optimizer's states."""
    model, optimizer = begun(decoder)
    adalora().tie(model, optimizer, steps=STEPS, done=0)
    before = {name: value.clone() for name, value in learning(model).items()}
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    (task_loss(model, IDS[0]) * 0.0).backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in learning(model).items())
    assert not any("importance" in state for state in optimizer.state.values())
    assert not any(state["exp_avg"].any() for state in optimizer.state.values())


def test_there_is_something_to_let_go_of_and_a_time_for_it() -> None:
    with pytest.raises(ValidationError, match="falls from first_rank, 4"):
        adalora(rank=4)
    with pytest.raises(ValidationError, match="no steps in which ranks"):
        adalora(warmup_share=0.5, final_share=0.5)
