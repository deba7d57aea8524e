"""Parameters that some forward passes do not use, or none: the update is that of plain PyTorch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.distributed import branches, launching

# ZeRO stage, and whether the ranks use different layers: at stage 3 they gather each together.
CASES = [(0, False), (0, True), (1, True), (2, False), (2, True), (3, False)]


def plain_steps(*, differ: bool) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Return losses and weights of one process. A gradient that is missing is zero, and a
    parameter that has had none is as it was."""
    model, losses = branches.make_model(), []
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    unused = set(start)
    for value in model.parameters():
        value.grad = torch.zeros_like(value)
    optimizer = torch.optim.AdamW(model.parameters(), lr=branches.RATE, weight_decay=branches.DECAY)
    for step, inputs in enumerate(branches.make_inputs()):
        used = branches.used_experts(step, differ=differ)
        loss = sum(
            (model(each, chosen) ** 2).sum() for each, chosen in zip(inputs, used, strict=True)
        )
        (loss / (branches.MICRO_BATCHES * branches.ROWS)).backward()
        unused -= {name for name, value in model.named_parameters() if value.grad.any()}
        optimizer.step()
        with torch.no_grad():
            for name in unused:
                model.get_parameter(name).copy_(start[name])
        optimizer.zero_grad(set_to_none=False)
        losses.append(loss.item())
    return losses, {name: value.detach() for name, value in model.named_parameters()}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what two ranks have written, a file a case."""
    folder = tmp_path_factory.mktemp("branches")
    jobs = [
        {
            "call": "tests.distributed.branches",
            "stage": stage,
            "differ": differ,
            "file": f"{stage}-{differ}.json",
        }
        for stage, differ in CASES
    ]
    launching.run_jobs(2, jobs, cwd=folder)
    return folder


@pytest.mark.parametrize(("stage", "differ"), CASES)
def test_two_ranks_give_the_update_of_one_process_whatever_each_uses(
    results: Path, stage: int, differ: bool
) -> None:
    found = json.loads((results / f"{stage}-{differ}.json").read_text())
    losses, weights = plain_steps(differ=differ)
    assert found["losses"] == pytest.approx(losses, rel=1e-5)
    for name, value in weights.items():
        torch.testing.assert_close(
            torch.tensor(found["weights"][name]), value, rtol=1e-4, atol=1e-6, msg=name
        )


@pytest.mark.parametrize(("stage", "differ"), CASES)
def test_a_parameter_without_gradient_never_changes(
    results: Path, stage: int, differ: bool
) -> None:
    """Weight decay would shrink it."""
    found = json.loads((results / f"{stage}-{differ}.json").read_text())["weights"]
    start = dict(branches.make_model().named_parameters())
    for name in ("never.weight", "never.bias", "table"):
        assert torch.equal(torch.tensor(found[name]), start[name].detach())
