"""A launch saves and ends before its time limit."""

import time

import pytest

from dtl.config.schema import Train
from dtl.train import deadline
from dtl.train.deadline import START_TIME, Deadline, find_end_time


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test moves."""

    class Clock:
        now = 1000.0

        def time(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(deadline, "time", clock)
    return clock


def test_wall_time_counts_from_the_start_of_the_command():
    options = Train(steps=1, wall_time="1h")
    assert find_end_time(options, {START_TIME: "5000.0"}) == 5000 + 3600
    assert find_end_time(options, {}) == pytest.approx(time.time() + 3600, abs=5)


def test_the_earlier_of_wall_time_and_slurms_end_counts():
    slurm = {START_TIME: "5000.0", "SLURM_JOB_END_TIME": "6000"}
    assert find_end_time(Train(steps=1, wall_time="1h"), slurm) == 6000
    assert find_end_time(Train(steps=1, wall_time="10min"), slurm) == 5600
    assert find_end_time(Train(steps=1), slurm) == 6000
    assert find_end_time(Train(steps=1), {"SLURM_JOB_END_TIME": "Unknown"}) is None


def test_deadline_is_near_when_a_step_and_two_saves_would_not_fit(clock):
    mine = Deadline(1100.0, checkpoint_bytes=0)
    mine.record_save(10.0)
    for _ in range(3):
        clock.now += 20
        assert not mine.is_near()  # at 1060: a step of 20 s, two saves of 10 s and 5 s end at 1105
        if clock.now == 1040:
            break
    clock.now += 20
    assert mine.is_near()


def test_duration_of_first_save_is_estimated_from_its_size(clock):
    slow = Deadline(1100.0, checkpoint_bytes=int(deadline.ASSUMED_BYTES_PER_SECOND * 60))
    assert slow.is_near(), "two saves of 60 s do not fit into 100 s"
    for _ in range(4):
        slow.record_save(1.0)
    assert not slow.is_near(), "after measured saves the estimate is short"


def test_deadline_without_end_time_is_never_near(clock):
    mine = Deadline(None, checkpoint_bytes=10**15)
    clock.now += 10**9
    assert not mine.is_near()
