"""Skips, parameters that do not learn, and jumps of the loss."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from dtl.config.schema import Train
from dtl.core.errors import RunFailed
from dtl.data.loader import StepBatches
from dtl.engine.base import Step
from dtl.train.guards import GRADIENT_CHECK_UPDATES, LossSpike, StepGuard, spike_score
from dtl.train.loop import Progress

WINDOW = StepBatches(1, 0, (), all_ids=np.array([3, 1]), all_targets=2, all_length=2)
NAN = float("nan")


@dataclass
class Engine:
    idle: list = field(default_factory=list)

    def without_gradient(self):
        return self.idle

    def learning(self):
        return [(name, None) for name in "abcdefgh"]


@dataclass
class Log:
    skipped: list = field(default_factory=list)
    said: list = field(default_factory=list)

    def skip(self, step, examples, *, reason):
        self.skipped.append((step, examples, reason))

    def say(self, text):
        self.said.append(text)


def guard(*, idle=(), **how):
    train = {key: how.pop(key) for key in ("skip_limit", "no_gradient", "spike") if key in how}
    return StepGuard(Engine(list(idle)), Log(), Train.model_validate({"steps": 99, **train}), **how)


def walk(mine, steps, *, taken, loss=1.0, first=1):
    for step in range(first, first + steps):
        mine(Progress(step=step, updates=step), Step(1.0 if taken else NAN, taken), WINDOW, loss)


def test_steps_that_are_not_finite_are_told_and_stop_the_run_when_too_many_follow():
    mine = guard(max_skipped_steps=3)
    walk(mine, 2, taken=False, loss=NAN)
    walk(mine, 1, taken=True, first=3)
    walk(mine, 2, taken=False, loss=NAN, first=4)
    assert [step for step, _, _ in mine.log.skipped] == [1, 2, 4, 5]
    assert mine.log.skipped[0][1] == [3, 1]
    with pytest.raises(RunFailed, match="3 steps in a row had a gradient that is not finite"):
        walk(mine, 1, taken=False, loss=NAN, first=6)


def test_fp16_may_look_for_its_loss_scale_for_longer():
    mine = guard(max_skipped_steps=3, finds_loss_scale=True)
    walk(mine, 15, taken=False, loss=2.0)
    with pytest.raises(RunFailed):
        walk(mine, 15, taken=False, loss=2.0, first=16)
    with pytest.raises(RunFailed):
        walk(guard(max_skipped_steps=3, finds_loss_scale=True), 3, taken=False, loss=NAN)


def test_one_adapter_tensor_without_gradient_stops_the_run_and_is_named():
    mine = guard(idle=["b"], every_tensor_learns=True)
    with pytest.raises(RunFailed, match=r"1 of 8 learning tensors have had no gradient \(b\)"):
        walk(mine, GRADIENT_CHECK_UPDATES, taken=True)


def test_of_a_whole_model_a_few_are_told_and_most_stop_the_run():
    few = guard(idle=["b"])
    walk(few, GRADIENT_CHECK_UPDATES, taken=True)
    assert few.log.said == ["warning: 1 of 8 learning tensors have had no gradient (b)"]
    with pytest.raises(RunFailed, match="5 of 8"):
        walk(guard(idle="abcde"), GRADIENT_CHECK_UPDATES, taken=True)


def test_it_can_be_meant_so():
    mine = guard(idle="abcdefgh", every_tensor_learns=True, on_missing_gradient="warn")
    walk(mine, GRADIENT_CHECK_UPDATES, taken=True)
    assert mine.log.said[0].startswith("warning: 8 of 8")


def test_a_jump_of_the_loss_is_found_and_lesser_ones_are_not():
    draw = np.random.Generator(np.random.Philox(key=[1, 2]))
    mine = guard(loss_spike={"threshold": 6.0, "window": 50})
    losses = 2.0 + 0.1 * draw.standard_normal(60)
    for step, loss in enumerate(losses, start=1):
        walk(mine, 1, taken=True, loss=float(loss), first=step)
    with pytest.raises(LossSpike) as found:
        walk(mine, 1, taken=True, loss=3.0, first=61)
    assert (found.value.step, found.value.loss, found.value.examples) == (61, 3.0, [3, 1])
    assert found.value.score > 6
    walk(guard(), 1, taken=True, loss=1e9, first=61)  # nobody asked for it


def test_the_score_is_the_distance_in_scaled_median_absolute_deviations():
    before = [1.0, 2.0, 3.0, 4.0, 5.0] * 4
    # median 3, absolute deviations 2 1 0 1 2 each four times: median 1, scaled 1.4826
    assert spike_score(before, 3 + 2 * 1.4826) == pytest.approx(2.0)
    assert spike_score(before[:19], 100.0) == 0.0, "too few to tell"
    assert spike_score([2.0] * 30, 2.001) < 1, "a loss that never moves has no spread"


def test_a_batch_that_is_left_out_is_told_and_does_not_count_as_a_skip():
    mine = guard(max_skipped_steps=1, leave_out=frozenset({4}))
    walk(mine, 1, taken=False, loss=NAN, first=4)
    assert mine.log.skipped == [(4, [3, 1], "its loss jumped before")]
