"""Kill ranks, launchers and supervisors of runs, and check that the runs recover."""

from __future__ import annotations

import signal
import time

from benchmarks.chaos import moments
from benchmarks.chaos.faults import Kill, draw_kills
from benchmarks.chaos.outputs import find_differences, reference_output
from benchmarks.chaos.runs import END_SECONDS, Processes, Run, TimedOut, kill
from benchmarks.chaos.setup import SCENARIOS, Setup
from benchmarks.chaos.table import collect, count_values, median_seconds, total
from benchmarks.chaos.trials import TrialResult

NAME = "kill"
REQUIREMENT = "recovers by itself from SIGKILL, ends bitwise equal"
COMMANDS = 12  # more than any run here needs
ORDER = (0, 1, 0, 2, 0, 3, 0, 4, 0, 5)  # every second run where a start is quickest
GAVE_UP = ("crashed 3 times", "crashed 4 times")


def run_trial(setup: Setup, number: int) -> TrialResult:
    """Run one training with several kills."""
    scenario = SCENARIOS[ORDER[number % len(ORDER)]]
    result = TrialResult(NAME, number, actions=[scenario.name])
    expected = reference_output(setup, scenario)
    run = Run(setup, setup.trial_folder(NAME, number), scenario)
    run.remove()
    result.measurements |= {
        "resume_seconds": [],
        "phases": [],
        "victims": [],
        "gave_up": 0,
        "again": 0,
    }
    try:
        run.start()
        for planned in draw_kills(setup.rng(NAME, number), scenario)[: setup.most_kills]:
            _kill(run, planned, result)
        while _continue(run, result):
            run.wait()
        result.violations += find_differences(run, expected)
    except TimedOut as timeout:
        result.violations.append(str(timeout))
    finally:
        result.violations += [f"left: {left}" for left in run.find_leftovers(seconds=5.0)]
        run.kill_all()
    if not result.violations:
        run.remove()
    return result


def describe(trials: list[TrialResult]) -> str:
    """Return the text of the table."""
    back = sum(
        not result.violations and not result.measurements.get("gave_up") for result in trials
    )
    equal = sum(not result.violations for result in trials)
    injected = sum(result.injected for result in trials)
    in_saves = collect(trials, "phases").count("save")
    return (
        f"{injected} kills in {len(trials)} runs, {in_saves} of them inside a save "
        f"(phases: {count_values(trials, 'phases')}; victims: {count_values(trials, 'victims')}). "
        f"{back} of {len(trials)} runs recovered by themselves, {equal} ended bitwise equal. "
        f"The command was started again {total(trials, 'again')} times because the supervisor had "
        f"been killed, and {total(trials, 'gave_up')} times because it had reached its limit of "
        "restarts. Time from a kill to the next new step, with back-off and other runs at the same "
        f"time: median {median_seconds(collect(trials, 'resume_seconds'))}"
    )


def _kill(run: Run, planned: Kill, result: TrialResult) -> None:
    """Wait for the moment, kill, wait until the run has ended, and time its recovery."""
    if not _continue(run, result):
        return
    living = moments.wait_for_moment(run, planned.moment, planned.victim)
    if living is None:
        _continue(run, result)
        return
    victims = living.ids_of(planned.victim)
    phase, saving, step = run.phase, run.is_saving, run.step
    hit = [kill(process, signal.SIGKILL) for process in victims]
    start = time.monotonic()
    if not any(hit) or phase == "finished":
        return
    phase = "steps" if saving and not run.is_saving else phase
    result.injected += 1
    result.measurements["phases"].append(phase)
    result.measurements["victims"].append(planned.victim)
    result.actions.append(f"{planned.victim} in {phase} after step {step}")
    _wait_for_deaths(run, living, planned.victim)
    run.record_stale_saves()
    continues = _continue(run, result) and run.wait_until(
        lambda: run.step > step or run.is_finished
    )
    if continues and run.step > step:
        result.measurements["resume_seconds"].append(time.monotonic() - start)


def _wait_for_deaths(run: Run, living: Processes, victim: str) -> None:
    """Wait until no rank runs without the others, its launcher and its supervisor.

    Raises TimedOut.
    """
    dying = [*living.ranks.values(), *([living.launcher] if living.launcher else [])]
    if victim in ("supervisor", "all"):
        run.wait(END_SECONDS)
    left = run.wait_until_ended(dying)
    if left:
        raise TimedOut(f"{victim} was killed, {left} still ran after {END_SECONDS:.0f} s")


def _continue(run: Run, result: TrialResult) -> bool:
    """Return whether the command runs; start it again where it was killed or gave up."""
    code = run.exit_code
    if code is None:
        return True
    if code == 0:
        return False
    if code == 1 and any(words in run.output[-300:] for words in GAVE_UP):
        result.measurements["gave_up"] += 1
    elif code == -signal.SIGKILL:
        result.measurements["again"] += 1
    else:
        raise TimedOut(f"the command ended with {code}: {run.last_output}")
    if run.starts >= COMMANDS:
        raise TimedOut(f"not finished after {run.starts} starts")
    run.start()
    return True
