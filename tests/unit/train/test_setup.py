"""What a run sets in torch before it computes."""

import pytest
import torch

from dtl.config.schema import RunConfig
from dtl.plan.records import Layout, ParameterCounts, Plan
from dtl.train import setup

PLAN = Plan(
    Layout(1, 1, 0, "none", 1, 1, False, "fp32", "cpu"), ParameterCounts(1, 1), {}, (), 5, 5, None
)


def configure(**sections):
    return RunConfig.model_validate(
        {
            "model": {"path": "x"} | sections.pop("model", {}),
            "task": "causal_lm",
            "strategy": "full",
            "data": {"train": "rows.jsonl"},
            "train": {"steps": 1},
            **sections,
        }
    )


@pytest.fixture
def started(monkeypatch):
    """Return the settings with which an engine would start; reset what torch keeps afterwards."""
    settings = []
    monkeypatch.setattr(setup, "start", settings.append)
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield settings
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize("tf32", [False, True])
def test_tf32_is_allowed_for_products_and_convolutions_or_for_neither(started, tf32):
    setup.start_engine(configure(model={"tf32": tf32}), PLAN)
    assert torch.backends.cuda.matmul.allow_tf32 is tf32
    assert torch.backends.cudnn.allow_tf32 is tf32


def test_time_limit_of_collectives_is_that_of_the_config(started):
    setup.start_engine(configure(layout={"collective_timeout_seconds": 7200.0}), PLAN)
    setup.start_engine(configure(), PLAN)
    assert [each.timeout_seconds for each in started] == [7200.0, 1800.0]
