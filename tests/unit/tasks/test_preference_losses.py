"""Losses and gradients of tasks on pairs, compared with their papers' formulas in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dtl.config import registry
from dtl.data.sources.rows import Row
from tests import tiny
from tests.unit.tasks.test_dpo import ROWS, make_adapted_model

Logs = tuple[Tensor, Tensor]  # log-likelihoods of the tokens of the chosen and the rejected one
Formula = Callable[[Logs, Logs], tuple[Tensor, Tensor]]  # of model and base: loss and margin


def ipo(policy: Logs, base: Logs) -> tuple[Tensor, Tensor]:
    chosen, rejected = (p.mean() - b.mean() for p, b in zip(policy, base, strict=True))
    return (chosen - rejected - 1 / (2 * 0.3)) ** 2, 0.3 * (chosen - rejected)


def ipo_of_full_responses(policy: Logs, base: Logs) -> tuple[Tensor, Tensor]:
    chosen, rejected = (p.sum() - b.sum() for p, b in zip(policy, base, strict=True))
    return (chosen - rejected - 1 / (2 * 0.3)) ** 2, 0.3 * (chosen - rejected)


def cpo(policy: Logs, base: Logs) -> tuple[Tensor, Tensor]:
    margin = 0.3 * (policy[0].sum() - policy[1].sum())
    preference = -0.8 * torch.sigmoid(margin).log() - 0.2 * torch.sigmoid(-margin).log()
    return preference - 0.7 * policy[0].mean(), margin


def simpo(policy: Logs, base: Logs) -> tuple[Tensor, Tensor]:
    margin = 1.5 * (policy[0].mean() - policy[1].mean())
    return -torch.sigmoid(margin - 0.4).log() - 0.25 * policy[0].mean(), margin


def orpo(policy: Logs, base: Logs) -> tuple[Tensor, Tensor]:
    """Of the geometric mean of a token's probability, as odds."""
    chosen, rejected = (part.mean().exp() for part in policy)
    ratio = (chosen / (1 - chosen)) / (rejected / (1 - rejected))
    loss = -policy[0].mean() - 0.3 * torch.sigmoid(ratio.log()).log()
    return loss, 0.3 * (policy[0].mean() - policy[1].mean())


CASES: dict[str, tuple[str, dict[str, Any], Formula]] = {
    "ipo": ("ipo", {"beta": 0.3}, ipo),
    "ipo of full responses": (
        "ipo",
        {"beta": 0.3, "length_normalized": False},
        ipo_of_full_responses,
    ),
    "cpo": ("cpo", {"beta": 0.3, "sft_weight": 0.7, "label_smoothing": 0.2}, cpo),
    "simpo": ("simpo", {"beta": 1.5, "gamma": 0.4, "sft_weight": 0.25}, simpo),
    "orpo": ("orpo", {"beta": 0.3}, orpo),
}


def token_logs(model: Any, tokenizer: Any, prompt: str, response: str) -> Tensor:
    """Return the log-likelihood of each token of a response and its end, run alone."""
    start, tokens = (tokenizer(text)["input_ids"] for text in (prompt, response))
    complete = torch.tensor([[*start, *tokens, tokenizer.eos_token_id]])
    logs = model(input_ids=complete).logits[0].log_softmax(-1)
    return torch.stack(
        [logs[at - 1, complete[0, at]] for at in range(len(start), complete.shape[1])]
    )


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_those_of_the_formula(decoder: Path, case: str) -> None:
    name, options, formula = CASES[case]
    tokenizer, model = tiny.tokenizer(), make_adapted_model(decoder).train()
    losses, margins = [], []
    for row in ROWS:
        texts = [(row["prompt"], row["chosen"]), (row["prompt"], row["rejected"])]
        policy = tuple(token_logs(model, tokenizer, *pair) for pair in texts)
        with torch.no_grad(), model.disable_adapter():
            base = tuple(token_logs(model, tokenizer, *pair) for pair in texts)
        loss, margin = formula(policy, base)  # type: ignore[arg-type]
        losses.append(loss)
        margins.append(float(margin.detach()))
    expected = torch.stack(losses).sum()
    expected.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()

    module = registry.load("tasks", name)
    task = module.Plugin(module.Options(**options))
    encode = task.encoder(tokenizer, {}, None)
    examples = [encode(Row(index, "", dict(row))) for index, row in enumerate(ROWS)]
    batch = task.collate([example.values for example in examples], pad_token_id=0)
    loss = task.loss(model, batch)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            gradient = gradients[parameter_name]
            atol = 1e-5 * float(gradient.abs().max())
            assert torch.allclose(parameter.grad, gradient, rtol=1e-4, atol=atol)
    with torch.no_grad():
        scores = task.score(task.eval_records(model, batch, processor=tokenizer), {})
    assert scores["margin"] == pytest.approx(sum(margins) / len(margins), rel=1e-4)
    assert scores["accuracy"] == sum(margin > 0 for margin in margins) / len(margins)


def test_tasks_without_a_reference_accept_a_strategy_that_changes_the_base() -> None:
    compared = {
        name: registry.load("tasks", name).Plugin.compares_with_base
        for name in ("dpo", "ipo", "cpo", "simpo", "orpo")
    }
    assert compared == {"dpo": True, "ipo": True, "cpo": False, "simpo": False, "orpo": False}
