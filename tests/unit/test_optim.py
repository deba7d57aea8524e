"""The optimizer's groups and the learning rate of each step, against numbers worked by hand."""

import pytest
import torch
from torch import nn

from dtl.config.schema import Optim
from dtl.train import optim


class Net(nn.Module):
    """Two matrices, and vectors beside them."""

    def __init__(self, *, bias=True):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.out = nn.Linear(4, 3, bias=bias)


def make(model, **options):
    return optim.make(model, Optim(**options), learning_rate=0.1, device="cpu")


def decay_by_name(model, optimizer):
    decay = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    return {name: decay[id(p)] for name, p in model.named_parameters() if id(p) in decay}


def test_norms_and_biases_do_not_decay():
    model = Net()
    assert decay_by_name(model, make(model, weight_decay=0.1)) == {
        "embed.weight": 0.1,
        "out.weight": 0.1,
        "norm.weight": 0.0,
        "norm.bias": 0.0,
        "out.bias": 0.0,
    }


def test_frozen_parameters_are_in_no_group():
    model = Net()
    model.embed.requires_grad_(False)
    model.norm.requires_grad_(False)
    assert set(decay_by_name(model, make(model))) == {"out.weight", "out.bias"}


@pytest.mark.parametrize(
    ("frozen", "left"), [(("norm",), "matrices"), (("embed", "out"), "vectors")]
)
def test_a_group_with_nothing_in_it_is_left_out(frozen, left):
    model = Net(bias=False)
    for name in frozen:
        getattr(model, name).requires_grad_(False)
    (group,) = make(model, weight_decay=0.1).param_groups
    assert group["weight_decay"] == (0.1 if left == "matrices" else 0.0)
    assert all((p.ndim > 1) == (left == "matrices") for p in group["params"])


def test_a_matrix_that_zero_3_has_emptied_still_decays():
    """DeepSpeed leaves a parameter of no elements and keeps its true shape in `ds_shape`."""
    model = nn.Linear(4, 3)
    for parameter, shape in ((model.weight, (3, 4)), (model.bias, (3,))):
        parameter.data = torch.empty(0)
        parameter.ds_shape = torch.Size(shape)
    assert decay_by_name(model, make(model, weight_decay=0.1)) == {"weight": 0.1, "bias": 0.0}


def test_one_step_is_adamw_by_hand():
    """The first step moves each number by the rate against the sign of its gradient; a matrix
    first shrinks by rate x decay (arXiv:1711.05101, algorithm 2)."""
    model = nn.Linear(2, 1)
    nn.init.constant_(model.weight, 2.0)
    nn.init.constant_(model.bias, 2.0)
    optimizer = make(model, weight_decay=0.5, betas=(0.8, 0.9), epsilon=1e-12)
    model.weight.grad = torch.tensor([[3.0, -0.01]])
    model.bias.grad = torch.tensor([7.0])
    optimizer.step()
    assert model.weight.tolist()[0] == pytest.approx([2 * 0.95 - 0.1, 2 * 0.95 + 0.1], abs=1e-6)
    assert model.bias.tolist() == pytest.approx([2 - 0.1], abs=1e-6)


def test_moments_and_epsilon_are_the_configs():
    (group, *_) = make(Net(), betas=(0.7, 0.95), epsilon=1e-5).param_groups
    assert (group["betas"], group["eps"], group["lr"]) == ((0.7, 0.95), 1e-5, 0.1)
    assert group["peak_learning_rate"] == 0.1


def rates(steps, **options):
    return [
        optim.schedule(step, steps=steps, options=Optim(**options)) for step in range(1, steps + 1)
    ]


def test_linear_rises_in_the_warmup_and_falls_to_one_part_of_what_is_left():
    """10 steps, 2 of warm-up: thirds up to 1 at step 3, then an eighth less each step."""
    expected = [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    assert rates(10, schedule="linear", warmup=2.0) == pytest.approx(expected)


def test_cosine_is_half_way_down_in_the_middle():
    """8 steps after 2 of warm-up: cos 0, 45, 90, 135 degrees at steps 3, 5, 7, 9."""
    found = rates(10, schedule="cosine", warmup=2.0)
    assert found[:2] == pytest.approx([1 / 3, 2 / 3])
    root = 0.5**0.5
    assert found[2::2] == pytest.approx([1, (1 + root) / 2, 0.5, (1 - root) / 2])
    assert found[9] == pytest.approx(0.0380602, abs=1e-6)  # (1 + cos 157.5 degrees) / 2


def test_constant_stays():
    assert rates(5, schedule="constant", warmup=1.0) == pytest.approx([0.5, 1, 1, 1, 1])


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_warmup_below_one_is_a_share_of_all_steps(schedule):
    assert rates(10, schedule=schedule, warmup=0.2) == rates(10, schedule=schedule, warmup=2.0)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.03, 0.5, 1.0, 3.0, 99.0])
@pytest.mark.parametrize("steps", [1, 2, 7, 30])
def test_no_step_is_wasted_and_none_is_above_the_peak(schedule, warmup, steps):
    found = rates(steps, schedule=schedule, warmup=warmup)
    assert all(0 < rate <= 1 for rate in found)


def test_without_warmup_the_first_step_has_the_peak():
    for schedule in ("linear", "cosine", "constant"):
        assert rates(4, schedule=schedule, warmup=0.0)[0] == 1.0
