"""Planned learning rates: by what is new, the strategy, the width and the steps."""

import pytest
from transformers import (
    GPT2Config,
    LlamaConfig,
    ResNetConfig,
    T5Config,
    Wav2Vec2Config,
    WhisperConfig,
)

from dtl.assembly.parts import assemble
from dtl.config.schema import RunConfig
from dtl.plan.learning_rate import PhaseSize, find_width, plan_learning_rates

USUAL = PhaseSize(steps=1000, width=768, trains_new_head=False)
NEW_HEAD = PhaseSize(steps=1000, width=768, trains_new_head=True)


def rates(size, *, task="text_classification", strategy="full", phase=0, **optim):
    config = RunConfig.model_validate(
        {
            "model": {"path": "mini:text"},
            "task": task,
            "strategy": strategy,
            "data": {"train": "rows.jsonl"},
            "train": {"steps": 10},
            "optim": optim,
            "run": {"name": "test"},
        }
    )
    return plan_learning_rates(config, assemble(config).for_phase(phase), size)


@pytest.mark.parametrize(
    ("strategy", "base"), [("full", 2e-5), ("lora", 2e-4), ("frozen", 1e-3), ("bitfit", 1e-3)]
)
def test_without_a_new_head_the_rate_is_the_strategys(strategy, base):
    found = rates(USUAL, strategy=strategy)
    assert (found.value, found.head) == (base, None)
    assert found.reason == f"default of {strategy}"


@pytest.mark.parametrize(("strategy", "head"), [("full", 1e-3), ("lora", 1e-3), ("frozen", None)])
def test_a_new_head_has_a_rate_of_its_own_where_the_base_learns_slowly(strategy, head):
    assert rates(NEW_HEAD, strategy=strategy).head == head


def test_a_base_from_random_weights_has_one_rate():
    assert rates(NEW_HEAD, strategy="scratch").head is None


def test_below_a_new_ctc_head_the_base_learns_at_the_rate_of_transformers_examples():
    found = rates(NEW_HEAD, task="asr_ctc")
    assert (found.value, found.head) == (3e-4, 1e-3)
    assert "new head of asr_ctc" in found.reason
    assert rates(USUAL, task="asr_ctc").value == 2e-5
    assert rates(NEW_HEAD, task="asr_ctc", strategy="frozen").value == 1e-3


@pytest.mark.parametrize(
    ("width", "base", "head"),
    [
        (None, 2e-5, 1e-3),
        (4096, 2e-5, 1.9e-4),
        (768, 2e-5, 1e-3),
        (192, 8e-5, 4e-3),
        (8, 1.6e-4, 8e-3),
    ],
)
def test_narrow_bases_learn_at_rates_in_inverse_proportion_to_their_width(width, base, head):
    found = rates(PhaseSize(steps=1000, width=width, trains_new_head=True))
    assert (found.value, found.head) == pytest.approx((base, head))


@pytest.mark.parametrize(("steps", "base"), [(200, 2e-5), (100, 2.8e-5), (50, 4e-5), (1, 4e-5)])
def test_short_runs_have_higher_rates(steps, base):
    found = rates(PhaseSize(steps=steps, width=768, trains_new_head=False))
    assert found.value == pytest.approx(base)
    assert ("steps" in found.reason) == (steps < 200)


def test_rates_of_the_config_come_first_and_are_the_heads_too():
    narrow = PhaseSize(steps=10, width=32, trains_new_head=True)
    found = rates(narrow, learning_rate=0.5)
    assert (found.value, found.head, found.reason) == (0.5, None, "optim.learning_rate")
    found = rates(narrow, learning_rate=0.5, head_learning_rate=0.25)
    assert (found.value, found.head) == (0.5, 0.25)
    assert rates(USUAL, head_learning_rate=0.25).head == 0.25
    phases = [{"name": "frozen", "learning_rate": 0.125}, "full"]
    assert rates(narrow, strategy=phases).value == 0.125


def test_rates_are_those_of_the_optimizer():
    found = rates(NEW_HEAD, name="lion")
    assert (found.value, found.head) == pytest.approx((2e-6, 1e-4))


@pytest.mark.parametrize(
    ("config", "width"),
    [
        (LlamaConfig(hidden_size=64), 64),
        (GPT2Config(n_embd=40, n_head=4), 40),
        (T5Config(d_model=24), 24),
        (WhisperConfig(d_model=16), 16),
        (Wav2Vec2Config(hidden_size=96), 96),
        (ResNetConfig(hidden_sizes=[8, 16, 32, 64]), 64),
        (None, None),
    ],
    ids=lambda each: type(each).__name__,
)
def test_the_width_is_that_of_the_last_hidden_states(config, width):
    assert find_width(config) == width
