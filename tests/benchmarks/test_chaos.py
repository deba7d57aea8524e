"""Fault injection: the faults that are drawn, the outputs that are compared, and the table."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from benchmarks.chaos import __main__ as command
from benchmarks.chaos import cost, damage, faults, table
from benchmarks.chaos.frozen_rank import names_late_rank
from benchmarks.chaos.outputs import read_output
from benchmarks.chaos.setup import EVALUATE_EVERY, SCENARIOS, Setup
from benchmarks.chaos.trials import Kind, Store, TrialResult, run_kind


def make_rng(number: int, seed: int = 0) -> random.Random:
    return Setup(Path("nowhere"), seed).rng("kill", number)


def test_seed_determines_the_faults() -> None:
    scenario = SCENARIOS[0]
    first = faults.draw_kills(make_rng(3), scenario)
    assert faults.draw_kills(make_rng(3), scenario) == first
    assert faults.draw_kills(make_rng(4), scenario) != first
    assert faults.draw_kills(make_rng(3, seed=1), scenario) != first


def test_kills_are_in_the_order_of_steps_and_stay_within_the_restarts() -> None:
    plans = [
        faults.draw_kills(make_rng(number), scenario)
        for number in range(50)
        for scenario in SCENARIOS
    ]
    for plan in plans:
        victims = [kill.victim for kill in plan]
        starts = [place for place, name in enumerate(victims) if name in ("supervisor", "all")]
        gaps = [after - before - 1 for before, after in zip([-1, *starts], starts, strict=False)]
        assert max(gaps, default=0) <= faults.RESTARTS
        assert len(victims) - 1 - max(starts, default=-1) <= faults.RESTARTS
    kills = [kill for plan in plans for kill in plan]
    assert {kill.victim for kill in kills} == set(faults.VICTIMS)
    phases = [kill.moment.phase for kill in kills]
    assert set(phases) == {"save", "steps", "start-up", "evaluation", "export"}
    assert phases.count("save") > len(phases) / 3
    scored = [kill.moment.step for kill in kills if kill.moment.phase == "evaluation"]
    assert all(step % EVALUATE_EVERY == 0 for step in scored)


def test_every_phase_gets_equally_many_signals() -> None:
    requests = [
        faults.draw_stop_request(make_rng(number), SCENARIOS[0], number) for number in range(60)
    ]
    phases = [request.moment.phase for request in requests]
    assert all(phases.count(phase) == 10 for phase in faults.MOMENTS)
    assert {request.signal for request in requests} == set(faults.SIGNALS)
    assert {request.victim for request in requests} == set(faults.SIGNAL_TARGETS)
    assert any(request.second for request in requests) and not all(
        request.second for request in requests
    )


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """Three checkpoints of one run and the later ones of another, as plain files."""
    for name, steps in (("mine", (10, 20, 23)), ("foreign", (10, 20, 33))):
        for step in steps:
            folder = tmp_path / "run" / name / f"step-{step:08d}"
            folder.mkdir(parents=True)
            files = {"progress.json": {"bytes": 3, "sha256": name}}
            manifest = {"step": step, "files": files}
            (folder / "manifest.json").write_text(json.dumps(manifest))
            (folder / "progress.json").write_text(f"{name} {step}")
            (folder / "part-00001.safetensors").write_bytes(f"{name} {step} tensors".encode())
    return tmp_path / "run" / "mine"


def content(folder: Path) -> dict[str, str]:
    """Return files, links and folders, with the content of files."""
    return {
        str(path.relative_to(folder)): "link"
        if path.is_symlink()
        else path.read_bytes().hex()
        if path.is_file()
        else "folder"
        for path in sorted(folder.rglob("*"))
    }


FILES = ["manifest.json", "progress.json", "part-00001.safetensors"]


@pytest.mark.parametrize("way", damage.list_damages(FILES), ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_each_damage_changes_one_checkpoint_and_leaves_the_fallback(
    checkpoints: Path, way: damage.Damage, seed: int
) -> None:
    before = content(checkpoints)
    foreign = checkpoints.with_name("foreign")
    found = damage.damage_checkpoint(
        way, random.Random(seed), checkpoints=checkpoints, foreign=foreign
    )
    after = content(checkpoints)
    assert after != before
    fallback = {
        name: value for name, value in before.items() if name.startswith(found.fallback.name)
    }
    assert fallback.items() <= after.items()
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert any(name.startswith(found.checkpoint.name) for name in changed)


def finished_run(folder: Path, losses: list[float]) -> Path:
    last = folder / "checkpoints" / "step-00000002"
    last.mkdir(parents=True)
    (last / "part-00001.safetensors").write_bytes(b"tensors")
    manifest = {"step": 2, "files": {}, "run": folder.name}
    (last / "manifest.json").write_text(json.dumps(manifest))
    (folder / "export").mkdir()
    (folder / "export" / "model.safetensors").write_bytes(b"weights")
    lines = [
        {"kind": "train", "step": step, "loss": loss, "gradient_norm": 1.0, "digest": f"{step}"}
        for step, loss in enumerate(losses, start=1)
    ]
    text = "".join(json.dumps({**line, "seconds": 0.5}) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    return folder


def test_outputs_are_equal_only_bit_by_bit(tmp_path: Path) -> None:
    """The name of the run and its times may differ, and nothing else."""
    one = read_output(finished_run(tmp_path / "one", [3.0, 2.0]), step=2)
    assert one.differences(read_output(finished_run(tmp_path / "two", [3.0, 2.0]), step=2)) == []
    three = finished_run(tmp_path / "three", [3.0, 2.0000000000000004])
    assert one.differences(read_output(three, step=2)) == ["losses differ"]
    (three / "checkpoints" / "step-00000002" / "part-00001.safetensors").write_bytes(b"tensort")
    (three / "export" / "model.safetensors").write_bytes(b"weightt")
    found = one.differences(read_output(three, step=2))
    assert found == ["losses differ", "checkpoint differ", "export differ"]
    shutil.rmtree(three / "checkpoints")
    assert "checkpoint differ" in one.differences(read_output(three, step=2))


def kind(trial, *, required: int = 4, is_baseline: bool = False) -> Kind:
    return Kind("kill", "holds", trial, required, lambda trials: "seen", is_baseline=is_baseline)


def test_trials_run_until_enough_faults_are_injected_and_are_stored(tmp_path: Path) -> None:
    made = []

    def run_trial(setup: Setup, number: int) -> TrialResult:
        made.append(number)
        if number == 1:
            raise OSError("no such file")
        return TrialResult("kill", number, injected=number % 2)

    setup, store = Setup(tmp_path, 0), Store(tmp_path / "trials.jsonl", 0)
    found = run_kind(kind(run_trial), setup, store, jobs=1)
    assert made == list(range(8)), "trials without a fault do not count"
    assert found[1].violations == ["OSError: no such file"]
    assert run_kind(kind(run_trial), setup, store, jobs=2) == found
    assert made == list(range(8)), "stored trials do not run again"
    other = Store(tmp_path / "trials.jsonl", seed=1)
    assert other.trials("kill") == {}


def test_table_counts_injected_faults_and_names_failed_trials() -> None:
    trials = [
        TrialResult(
            "kill", 0, injected=3, measurements={"phases": ["save", "steps"], "seconds": 1.0}
        ),
        TrialResult(
            "kill",
            1,
            injected=1,
            actions=["rank 0"],
            violations=["losses differ"],
            measurements={"phases": []},
        ),
        TrialResult("kill", 2),
    ]
    results = [(kind(None), trials)]
    page = "\n".join(table.report(results, seed=5, minutes=2.0))
    assert "| kill | holds | 1 of 2 | seen |" in page
    assert "- `--seed 5 --repeat kill:1`: rank 0: **losses differ**" in page
    assert not table.all_passed(results)
    assert table.all_passed([(kind(None, is_baseline=True), trials)])
    assert not table.all_passed([(kind(None, required=9), trials[:1])]), "too few were injected"
    assert table.count_values(trials, "phases") == "1 save, 1 steps"
    assert table.total(trials, "seconds") == 1.0
    missing = [(kind(None), [TrialResult("kill", 0, skip_reason="no disk")])]
    assert "| not run | no disk |" in "\n".join(table.report(missing, seed=0, minutes=0.0))


def test_cost_of_a_save_is_computed_from_the_log() -> None:
    """By hand: steps of 1 s, a save that the log has with 0.4 s, and 0.1 s in the step after it."""
    lines = [
        {"kind": "train", "step": step, "seconds": 1.1 if step in (11, 21) else 1.0}
        for step in range(1, 31)
    ]
    alone = cost.measure(lines, save_every=10)
    assert alone["stall"] == pytest.approx(0.1)
    saves = [{"kind": "save", "step": step, "seconds": 0.4} for step in (10, 20, 30)]
    found = cost.measure([*lines, *saves], save_every=10)
    assert found["stall"] == pytest.approx(0.5)
    assert found["share"] == pytest.approx(0.05)


def test_late_rank_is_the_one_that_is_named() -> None:
    text = (
        "rank 1 has made no progress for 6 s in step 9; rank 0 is silent; the stack is in its log"
    )
    assert names_late_rank(text, 0)
    assert not names_late_rank(text, 1)
    assert not names_late_rank("rank 0 failed", 0)


@pytest.mark.slow
def test_run_recovers_from_two_kills(tmp_path: Path) -> None:
    few = ["--only", "kill", "--kills", "2", "--most-kills", "2", "--jobs", "1"]
    code = command.main([*few, "--folder", str(tmp_path), "--out", str(tmp_path / "table.md")])
    page = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert code == 0, page
    assert "2 kills in 1 runs" in page and "1 ended bitwise equal" in page
