"""Signals that stop a run: it saves, ends with 75, leaves no process, and resumes."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

from benchmarks.chaos import moments
from benchmarks.chaos.faults import StopRequest, draw_stop_request
from benchmarks.chaos.outputs import find_differences, reference_output
from benchmarks.chaos.runs import Run, TimedOut, kill
from benchmarks.chaos.setup import SCENARIOS, Setup
from benchmarks.chaos.table import collect, count_values, median_seconds
from benchmarks.chaos.trials import TrialResult
from tests import tiny

NAME = "signal"
REQUIREMENT = (
    "saves and ends with 75, loses at most one step, leaves no process, resumes bitwise equal"
)
STOPPED = 75
STOP_SECONDS = 60.0
ROWS = 20_000  # so that tokenizing takes some time


def run_trial(setup: Setup, number: int) -> TrialResult:
    """Stop one run by one signal, or by two in quick succession, and resume it."""
    scenario = SCENARIOS[number % len(SCENARIOS)]
    request = draw_stop_request(
        setup.rng(NAME, number), scenario, number // len(SCENARIOS) + number
    )
    result = TrialResult(NAME, number, actions=[scenario.name])
    tokenizing = request.moment.phase == "tokenizing"
    overrides = (f"data.train={_many_rows(setup)}",) if tokenizing else ()
    expected = reference_output(setup, scenario, overrides)
    run = Run(setup, setup.trial_folder(NAME, number), scenario, overrides)
    run.remove()
    if tokenizing:  # a cache of its own, so that there is something to do
        run.environment = {"DTL_CACHE": str(run.workdir / "cache")}
    try:
        run.start()
        if _send_signals(run, request, result):
            _check_end(run, result)
            run.start()
            code = run.wait()
            if code:
                result.violations.append(f"the same command ended with {code}: {run.last_output}")
            else:
                result.violations += find_differences(run, expected)
    except TimedOut as timeout:
        result.violations.append(str(timeout))
    finally:
        run.kill_all()
    if not result.violations:
        run.remove()
    return result


def describe(trials: list[TrialResult]) -> str:
    """Return the text of the table."""
    lost = max(collect(trials, "lost"), default=0)
    signals, seconds = count_values(trials, "signals"), collect(trials, "seconds")
    return (
        f"{len(trials)} runs were stopped (phases: {count_values(trials, 'phase')}; targets: "
        f"{count_values(trials, 'victim')}; signals: {signals}); most steps lost: {lost}; "
        f"median time from signal to exit {median_seconds(seconds)}"
    )


def _send_signals(run: Run, request: StopRequest, result: TrialResult) -> bool:
    """Send the signals; return False when the run was finished, or nearly, before the first."""
    living = moments.wait_for_moment(run, request.moment, request.victim, after_imports=True)
    if living is None:
        if run.exit_code:
            result.injected = 1
            result.violations.append(f"ended with {run.exit_code} by itself: {run.last_output}")
        return False
    victims, phase, step = living.ids_of(request.victim), run.phase, run.step
    if not victims or phase == "finished":
        return False
    for process in victims:
        kill(process, signal.Signals[request.signal])
    result.measurements |= {
        "phase": phase,
        "victim": request.victim,
        "signals": [request.signal],
        "step": step,
    }
    result.measurements["at"] = time.monotonic()
    result.actions.append(f"{request.signal} to {request.victim} in {phase} after step {step}")
    if request.second is not None:
        time.sleep(request.second_after)
        sent = [kill(process, signal.Signals[request.second]) for process in victims]
        if any(sent) and run.exit_code is None:
            result.measurements["signals"].append(request.second)
            result.actions.append(f"{request.second} {request.second_after:.2f} s later")
    result.injected = 1
    return True


def _check_end(run: Run, result: TrialResult) -> None:
    """Check that the command ends with 75, leaves no process, and has saved its last step."""
    code = run.wait(STOP_SECONDS)
    result.measurements["seconds"] = time.monotonic() - result.measurements.pop("at")
    left = run.find_leftovers()
    result.violations += left
    if code == 0 and run.is_finished and result.measurements["step"] >= run.scenario.steps - 1:
        result.injected = 0  # it was over before anyone could stop it
        result.actions.append("finished before it could stop")
    elif code != STOPPED:
        result.violations.append(f"exit code {code}: {run.last_output}")
    saved, logged = newest_saved(run.checkpoints), last_train_step(run)
    result.measurements["lost"] = max(0, logged - saved)
    if result.measurements["lost"] > 1:
        result.violations.append(f"{logged} steps are logged, {saved} are saved")


def newest_saved(folder: Path) -> int:
    """Return the step of the newest checkpoint, by its name; 0 where there is none."""
    return max((int(path.name.removeprefix("step-")) for path in folder.glob("step-*")), default=0)


def last_train_step(run: Run) -> int:
    """Return the last optimizer step in the log; 0 before the first."""
    path = run.folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    steps = [json.loads(text) for text in lines]
    return max((entry["step"] for entry in steps if entry["kind"] == "train"), default=0)


def _many_rows(setup: Setup) -> Path:
    """So many rows that tokenizing them takes seconds."""
    path = setup.folder / "many.jsonl"
    with setup.lock("many rows"):
        if not path.exists():
            tiny.write_texts(path, ROWS)
    return path
