"""After a crash a run starts again; where the kernel killed it, it is said what to change."""

import json
from types import SimpleNamespace

import pytest

from dtl.launch import supervisor
from dtl.launch.supervisor import CRASHED, Supervisor
from dtl.plan.records import Layout, Parameters, Plan

LAYOUT = Layout(1, 2, 2, "none", 4, 2, False, "fp32", "cpu")
BEAT = {"rank": 1, "host": "h", "process": 2, "number": 9, "since": 0.0, "alive": 1.0}


@pytest.fixture
def folder(tmp_path):
    beat = {**BEAT, "doing": "step 7, micro-batch 1"}
    (tmp_path / "rank-1.json").write_text(json.dumps(beat))
    return SimpleNamespace(
        path=tmp_path,
        logs=tmp_path,
        heartbeats=tmp_path,
        last_step=6,
        plan=Plan(LAYOUT, Parameters(1, 1), {}, (), 5, 5, None),
        config=SimpleNamespace(strategy=SimpleNamespace(name="full")),
    )


def launch(folder, monkeypatch, *, codes, kills):
    """What is said while launches end with these codes, and the exit code."""
    ended, counted, said = iter(codes), iter(kills), []
    monkeypatch.setattr(supervisor, "memory_kills", lambda: next(counted))
    monkeypatch.setattr(Supervisor, "_launch_once", lambda *_: next(ended))
    monkeypatch.setattr(Supervisor, "_wait", lambda *_: None)
    with Supervisor(said.append, fork=False) as mine:
        return said, mine.launch(folder, None)


def test_a_kill_for_want_of_memory_is_told_with_where_and_what_to_change(folder, monkeypatch):
    said, code = launch(folder, monkeypatch, codes=[CRASHED, 0], kills=[3, 4, 4])
    assert code == 0
    assert "for want of main memory; the run was last seen in step 7, micro-batch 1" in said[0]
    assert said[0].endswith("resume with layout.micro_batch=2; the result stays the same")
    assert said[1] == "crashed after step 6; starting again in 1 s"


def test_any_other_crash_is_only_a_crash_and_the_same_step_three_times_ends_it(folder, monkeypatch):
    said, code = launch(folder, monkeypatch, codes=[CRASHED] * 3, kills=[3] * 6)
    assert code == 1
    assert said[:2] == [f"crashed after step 6; starting again in {n} s" for n in (1, 2)]
    assert said[2].startswith("crashed 3 times after step 6")
