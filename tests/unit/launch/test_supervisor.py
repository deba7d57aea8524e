"""Restarts after a crash; after an out-of-memory kill, a message says what to change."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from dtl.launch import supervisor
from dtl.launch.supervisor import CRASHED, Supervisor
from dtl.plan.records import Layout, ParameterCounts, Plan

LAYOUT = Layout(1, 2, 2, "none", 4, 2, False, "fp32", "cpu")
HEARTBEAT = {
    "rank": 1,
    "host": "h",
    "pid": 2,
    "count": 9,
    "activity_start": 0.0,
    "last_alive": 1.0,
}


@pytest.fixture
def folder(tmp_path):
    heartbeat = {**HEARTBEAT, "activity": "step 7, micro-batch 1"}
    (tmp_path / "rank-1.json").write_text(json.dumps(heartbeat))
    return SimpleNamespace(
        path=tmp_path,
        logs=tmp_path,
        heartbeats=tmp_path,
        last_step=6,
        plan=Plan(LAYOUT, ParameterCounts(1, 1), {}, (), 5, 5, None),
        config=SimpleNamespace(strategy=SimpleNamespace(name="full")),
    )


@pytest.mark.parametrize(
    ("device", "processes", "starts"), [("cpu", 1, "fork"), ("cuda", 1, "command")]
)
def test_only_a_process_on_the_cpu_is_a_fork_of_the_command(
    folder, monkeypatch, device, processes, starts
):
    layout = replace(LAYOUT, device=device, processes_per_node=processes)
    folder.plan = replace(folder.plan, layout=layout)
    folder.state, folder.write_exit_code = "finished", lambda _: None
    started = []
    monkeypatch.setattr(Supervisor, "_run_fork", lambda *_: started.append("fork") or 0)
    monkeypatch.setattr(Supervisor, "_run_command", lambda *_: started.append("command") or 0)
    with Supervisor(print, can_fork=True) as supervising:
        assert supervising.launch(folder, None) == 0
    assert started == [starts]


def launch(folder, monkeypatch, *, codes, kills):
    """Return what is printed while launches end with these codes, and the exit code."""
    codes, kills, lines = iter(codes), iter(kills), []
    monkeypatch.setattr(supervisor, "count_oom_kills", lambda: next(kills))
    monkeypatch.setattr(Supervisor, "_launch_once", lambda *_: next(codes))
    monkeypatch.setattr(Supervisor, "_sleep", lambda *_: None)
    with Supervisor(lines.append, can_fork=False) as supervising:
        return lines, supervising.launch(folder, None)


def test_oom_kill_is_reported_with_the_activity_and_what_to_change(folder, monkeypatch):
    lines, code = launch(folder, monkeypatch, codes=[CRASHED, 0], kills=[3, 4, 4])
    assert code == 0
    assert (
        "main memory was full; the last activity of the run was step 7, micro-batch 1" in lines[0]
    )
    assert lines[0].endswith("resume with layout.micro_batch=2; the result stays the same")
    assert lines[1] == "crashed after step 6; restarting in 1 s"


def test_three_crashes_after_one_step_end_the_run(folder, monkeypatch):
    lines, code = launch(folder, monkeypatch, codes=[CRASHED] * 3, kills=[3] * 6)
    assert code == 1
    assert lines[:2] == [f"crashed after step 6; restarting in {n} s" for n in (1, 2)]
    assert lines[2].startswith("crashed 3 times after step 6")
