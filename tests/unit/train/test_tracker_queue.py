"""A tracker receives the lines of metrics.jsonl, and cannot slow the run down or end it."""

import importlib.util
import io
import json
import subprocess
import sys
import threading
import time

import pytest

from dtl.cli.app import main
from dtl.config.diff import changed_keys
from dtl.config.load import load_config
from dtl.core.errors import DtlError
from dtl.prepare import prepared_run
from dtl.train import tracker_queue
from dtl.train.log import RunLog
from dtl.train.tracker_queue import Trackers, read_metrics
from tests.tiny_run import line, stopped_run

HAS_TENSORBOARD = importlib.util.find_spec("tensorboard") is not None
needs_tensorboard = pytest.mark.skipif(
    not HAS_TENSORBOARD, reason="no tensorboard: pip install 'dtl[tracking]' brings it"
)


@pytest.fixture
def run(tmp_path):
    return stopped_run(tmp_path, [{"text": f"text {n}"} for n in range(8)], labels=["a", "b"])


class FakeTracker:
    """A tracker; `hold` is waited for before each line, `fault` is raised at that step."""

    def __init__(self, *, hold=None, fault=None, run_id=None):
        self.run_id, self.hold, self.fault = run_id, hold, fault
        self.starts, self.lines, self.config, self.finished = [], [], None, False

    def open(self, name, *, folder, run_id, first_step):
        self.starts.append((run_id, first_step))
        self.run_id = self.run_id and (run_id or self.run_id)
        return self

    def log_config(self, values):
        self.config = values

    def log(self, values, step):
        if self.hold is not None:
            self.hold.wait(30)
        if step == self.fault:
            raise ConnectionError("the server is down")
        self.lines.append((step, values))

    def finish(self):
        self.finished = True


def start_trackers(run, fake, printed):
    return Trackers.start(["fake"], run, printed.append, open_tracker=fake.open)


def test_metrics_are_the_numbers_by_kind_and_model():
    assert read_metrics({**line(7), "digest": "abc"}) == {
        "train/epoch": 0.0,
        "train/learning_rate": 0.01,
        "train/gradient_norm": 2.0,
        "train/seconds": 0.5,
        "train/tokens_per_second": 900.0,
        "train/memory_bytes": 3 * 2**30 + 7,
    }, "the loss of that step is not finite"
    scores = {"wer": 0.5, "confusion/a/b": 3, "group/who/d'Arc é/wer": 0.25}
    assert read_metrics({"kind": "eval", "step": 9, "model": "adapted", **scores}) == {
        "held-out adapted/wer": 0.5,
        "held-out adapted/group/who/d_Arc _/wer": 0.25,
    }
    assert read_metrics({"kind": "skip", "step": 3, "examples": [1], "reason": "inf"}) == {
        "skip": 1.0
    }


def test_tracker_receives_what_the_log_writes(run):
    fake, printed = FakeTracker(run_id="one"), []
    log = RunLog(run, io.StringIO(), 120, trackers=start_trackers(run, fake, printed))
    log.skip(1, [4], reason="inf")
    log.scores(20, {"accuracy": 0.5}, model="adapted")
    log.close()
    assert [step for step, _ in fake.lines] == [1, 20] and fake.finished and printed == []
    assert [one["step"] for one in list(run.read_metrics())[-2:]] == [1, 20]
    assert fake.config["train.steps"] == 120 and fake.config["model.path"] == "mini:text"
    again = FakeTracker(run_id="another")
    trackers = start_trackers(run, again, printed)
    trackers.put(line(21))
    trackers.close()
    assert again.starts == [("one", 21)] and again.config is None, "it resumes its run"
    assert json.loads((run.path / "trackers.json").read_text())["fake"] == "one"


def test_slow_tracker_does_not_slow_the_run_down(run, monkeypatch):
    monkeypatch.setattr(tracker_queue, "CLOSING_SECONDS", 0.2)
    hold, printed = threading.Event(), []
    slow = FakeTracker(hold=hold)
    trackers = start_trackers(run, slow, printed)
    start = time.monotonic()
    for step in range(1, 2 * tracker_queue.MAX_QUEUED_LINES):
        trackers.put(line(step))
    assert time.monotonic() - start < 5 and slow.lines == []
    trackers.close()
    assert time.monotonic() - start < 6
    (message,) = printed
    assert (
        "is slower than the run" in message
        and f"`dtl track {run.path} --to fake` sends all" in message
    )
    assert tracker_queue.is_any_thread_alive()
    hold.set()
    for thread in threading.enumerate():
        if thread.name == tracker_queue.THREAD_NAME:
            thread.join(20)
    assert not tracker_queue.is_any_thread_alive() and slow.finished, "it ends when it can"


def test_process_does_not_wait_for_exit_handlers_of_a_tracker():
    code = """
import atexit, threading, time
from dtl.train import tracker_queue
from dtl.launch.worker import exit_process
threading.Thread(target=time.sleep, args=(60,), name=tracker_queue.THREAD_NAME, daemon=True).start()
atexit.register(time.sleep, 60)
exit_process(7)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=40).returncode == 7


def test_failure_of_a_tracker_is_printed_once(run):
    printed = []
    broken = FakeTracker(fault=3)

    def unreachable(name, *, folder, run_id, first_step):
        raise OSError("no route to host")

    trackers = start_trackers(run, broken, printed)
    dead = Trackers.start(["dead"], run, printed.append, open_tracker=unreachable)
    for step in range(1, 50):
        trackers.put(line(step))
        dead.put(line(step))
    trackers.close()
    dead.close()
    assert [step for step, _ in broken.lines] == [1, 2] and broken.finished
    assert len(printed) == 2
    assert any(
        "tracker fake failed (ConnectionError: the server is down)" in one for one in printed
    )
    assert any("tracker dead failed (OSError: no route to host)" in one for one in printed)


def test_missing_tracker_package_is_refused_before_the_launch(tmp_path, monkeypatch, run, capsys):
    monkeypatch.setattr(prepared_run.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DtlError) as caught:
        prepared_run.check_trackers(["tensorboard", "wandb"])
    assert str(caught.value).splitlines() == [
        "tracking: tensorboard is not installed. Fix: pip install 'dtl[tracking]'",
        "tracking: wandb is not installed. Fix: pip install wandb",
    ]
    config = tmp_path / "c.yaml"
    config.write_text((run.path / "config.yaml").read_text())
    assert main(["plan", str(config), "tracking=[mlflow]"]) == 2
    assert "mlflow is not installed. Fix: pip install mlflow" in capsys.readouterr().err
    assert main(["track", str(run.path), "--to", "trackio"]) == 2


def test_tracking_is_no_change_of_the_training(run, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text((run.path / "config.yaml").read_text())
    assert changed_keys(load_config(config), load_config(config, ["tracking=[tensorboard]"])) == []


@needs_tensorboard
def test_tensorboard_has_every_step_once(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from dtl.engine.accelerate_trackers import open_tracker

    printed = []
    for steps in (range(1, 31), range(21, 41)):  # killed at 30, saved at 20
        trackers = Trackers.start(["tensorboard"], run, printed.append, open_tracker=open_tracker)
        for step in steps:
            trackers.put(line(step))
        trackers.close()
        time.sleep(1.1)  # the name of its file has the second, and its order counts
    assert printed == []
    found = EventAccumulator(str(run.path / "tensorboard")).Reload()
    assert [one.step for one in found.Scalars("train/loss")] == [n for n in range(1, 41) if n != 7]
    assert found.Scalars("train/loss")[-1].value == pytest.approx(3.0 / 40)
    assert main(["track", str(run.path)]) == 0
    replayed = EventAccumulator(str(run.path / "tensorboard")).Reload()
    assert [one.step for one in replayed.Scalars("train/seconds")] == list(range(1, 61))
    (scored,) = replayed.Scalars("held-out adapted/accuracy")
    logged = next(one["accuracy"] for one in run.read_metrics() if one["kind"] == "eval")
    assert (scored.step, scored.value) == (60, pytest.approx(logged))
