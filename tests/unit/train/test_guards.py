"""Skipped steps, parameters without gradient, and loss spikes."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from dtl.config.schema import Train
from dtl.core.errors import RunFailed
from dtl.data.loader import StepBatches
from dtl.engine.base import Step
from dtl.train.guards import GRADIENT_CHECK_UPDATES, LossSpike, StepGuard, spike_score
from dtl.train.progress import Progress

BATCHES = StepBatches(1, 0, (), global_ids=np.array([3, 1]), global_targets=2, global_length=2)
NAN = float("nan")


@dataclass
class Engine:
    idle: list = field(default_factory=list)

    def parameters_without_gradient(self):
        return self.idle

    def trainable_parameters(self):
        return [(name, None) for name in "abcdefgh"]


@dataclass
class Log:
    skipped: list = field(default_factory=list)
    lines: list = field(default_factory=list)

    def skip(self, step, examples, *, reason):
        self.skipped.append((step, examples, reason))

    def print_line(self, text):
        self.lines.append(text)


def guard(*, idle=(), **how):
    keys = ("max_skipped_steps", "on_missing_gradient", "loss_spike")
    train = {key: how.pop(key) for key in keys if key in how}
    return StepGuard(Engine(list(idle)), Log(), Train.model_validate({"steps": 99, **train}), **how)


def walk(mine, steps, *, was_applied, loss=1.0, first=1):
    for step in range(first, first + steps):
        mine(
            Progress(step=step, updates=step),
            Step(1.0 if was_applied else NAN, was_applied),
            BATCHES,
            loss,
        )


def test_non_finite_steps_are_logged_and_too_many_in_a_row_stop_the_run():
    mine = guard(max_skipped_steps=3)
    walk(mine, 2, was_applied=False, loss=NAN)
    walk(mine, 1, was_applied=True, first=3)
    walk(mine, 2, was_applied=False, loss=NAN, first=4)
    assert [step for step, _, _ in mine.log.skipped] == [1, 2, 4, 5]
    assert mine.log.skipped[0][1] == [3, 1]
    with pytest.raises(RunFailed, match="3 consecutive steps had a gradient that is not finite"):
        walk(mine, 1, was_applied=False, loss=NAN, first=6)


def test_fp16_may_search_for_its_loss_scale_for_more_steps():
    mine = guard(max_skipped_steps=3, has_loss_scaler=True)
    walk(mine, 15, was_applied=False, loss=2.0)
    with pytest.raises(RunFailed):
        walk(mine, 15, was_applied=False, loss=2.0, first=16)
    with pytest.raises(RunFailed):
        walk(guard(max_skipped_steps=3, has_loss_scaler=True), 3, was_applied=False, loss=NAN)


def test_one_adapter_tensor_without_gradient_stops_the_run_and_is_named():
    mine = guard(idle=["b"], expects_all_gradients=True)
    with pytest.raises(RunFailed, match=r"1 of 8 trainable tensors have had no gradient \(b\)"):
        walk(mine, GRADIENT_CHECK_UPDATES, was_applied=True)


def test_full_model_with_few_tensors_without_gradient_warns_and_with_most_fails():
    few = guard(idle=["b"])
    walk(few, GRADIENT_CHECK_UPDATES, was_applied=True)
    assert few.log.lines == ["warning: 1 of 8 trainable tensors have had no gradient (b)"]
    with pytest.raises(RunFailed, match="5 of 8"):
        walk(guard(idle="abcde"), GRADIENT_CHECK_UPDATES, was_applied=True)


def test_missing_gradients_can_be_allowed():
    mine = guard(idle="abcdefgh", expects_all_gradients=True, on_missing_gradient="warn")
    walk(mine, GRADIENT_CHECK_UPDATES, was_applied=True)
    assert mine.log.lines[0].startswith("warning: 8 of 8")


def test_loss_spike_is_detected_and_normal_variation_is_not():
    draw = np.random.Generator(np.random.Philox(key=[1, 2]))
    mine = guard(loss_spike={"threshold": 6.0, "window_steps": 50})
    losses = 2.0 + 0.1 * draw.standard_normal(60)
    for step, loss in enumerate(losses, start=1):
        walk(mine, 1, was_applied=True, loss=float(loss), first=step)
    with pytest.raises(LossSpike) as raised:
        walk(mine, 1, was_applied=True, loss=3.0, first=61)
    assert (raised.value.step, raised.value.loss, raised.value.examples) == (61, 3.0, [3, 1])
    assert raised.value.score > 6
    walk(guard(), 1, was_applied=True, loss=1e9, first=61)  # not configured


def test_spike_score_is_the_distance_in_scaled_median_absolute_deviations():
    before = [1.0, 2.0, 3.0, 4.0, 5.0] * 4
    # median 3, absolute deviations 2 1 0 1 2 each four times: median 1, scaled 1.4826
    assert spike_score(before, 3 + 2 * 1.4826) == pytest.approx(2.0)
    assert spike_score(before[:19], 100.0) == 0.0, "too few to tell"
    assert spike_score([2.0] * 30, 2.001) < 1, "a loss that never moves has no spread"


def test_step_after_rollback_is_logged_and_does_not_count_as_a_skip():
    mine = guard(max_skipped_steps=1, skip_steps=frozenset({4}))
    walk(mine, 1, was_applied=False, loss=NAN, first=4)
    assert mine.log.skipped == [(4, [3, 1], "the loss spiked here before")]
