"""The same kills and damages on a plain transformers Trainer: a baseline without requirements."""

from __future__ import annotations

import shutil
import signal
import time
from random import Random

from benchmarks.chaos import damage
from benchmarks.chaos.faults import Kill, Moment, draw_kills
from benchmarks.chaos.peer_runs import (
    SCENARIO,
    is_peer_saving,
    last_error,
    peer_end,
    peer_losses,
    peer_reference,
    peer_run,
    peer_step,
)
from benchmarks.chaos.runs import Processes, Run, TimedOut, kill
from benchmarks.chaos.setup import Setup
from benchmarks.chaos.table import collect, count_values, total
from benchmarks.chaos.trials import TrialResult

TRIES = 3  # the same command again, before a run counts as one that never comes back
SAVE_EVERY, INTERRUPTED_AFTER = 10, 23  # of the run whose checkpoints are damaged
FILES = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]


class Kills:
    """A run of two processes with several kills; the same command is started again after each."""

    NAME = "peer-kill"
    REQUIREMENT = "plain Trainer, 2 processes, the same kills: recovers, ends bitwise equal"

    @staticmethod
    def run_trial(setup: Setup, number: int) -> TrialResult:
        result = TrialResult(
            Kills.NAME, number, measurements={"phases": [], "orphans": 0, "back": 1}
        )
        expected = peer_reference(setup, processes=2)
        run = peer_run(setup, setup.trial_folder(Kills.NAME, number), processes=2)
        run.remove()
        try:
            run.start()
            for planned in draw_kills(setup.rng("kill", number), SCENARIO):
                if not _kill(run, planned, result):
                    break
            code = run.wait()
            for _ in range(TRIES):
                if code:
                    run.start()
                    code = run.wait()
        except TimedOut as timeout:
            result.violations.append(str(timeout))
            code = 1
        finally:
            run.kill_all()
        if code:
            result.measurements["back"] = 0
            result.violations.append(f"did not recover: {last_error(run)}")
        elif peer_end(run) != expected:
            result.violations.append("ended with another result")
        run.remove()
        return result

    @staticmethod
    def describe(trials: list[TrialResult]) -> str:
        dead = len(trials) - total(trials, "back")
        in_saves = collect(trials, "phases").count("save")
        return (
            f"{sum(result.injected for result in trials)} kills in {len(trials)} runs, {in_saves} "
            f"of them inside a save ({count_values(trials, 'phases')}); {dead} runs did not "
            f"recover, "
            f"{sum(not result.violations for result in trials)} ended bitwise equal; "
            f"{total(trials, 'orphans')} times ranks continued without their launcher"
        )


class Corruptions:
    """Damages to the newest checkpoint of an interrupted run, file by file."""

    NAME = "peer-corruption"
    REQUIREMENT = "plain Trainer, the same damages to files: harmless or detected"

    @staticmethod
    def run_trial(setup: Setup, number: int) -> TrialResult:
        expected = peer_reference(setup, processes=1, save_every=SAVE_EVERY)
        mine = _interrupted(setup)
        ways = [damage.Damage(way, file) for file in FILES for way in damage.FILE_DAMAGES]
        chosen = ways[number % len(ways)]
        result = TrialResult(Corruptions.NAME, number, injected=1, actions=[str(chosen)])
        run = peer_run(
            setup, setup.trial_folder(Corruptions.NAME, number), processes=1, save_every=SAVE_EVERY
        )
        run.remove()
        shutil.copytree(mine.workdir / "out", run.workdir / "out")
        older, newest = sorted((run.workdir / "out").glob("checkpoint-*"))[-2:]
        rng: Random = setup.rng(Corruptions.NAME, number)
        damage.damage_file(chosen, rng, newest=newest, older=older)
        try:
            run.start()
            code = run.wait()
        except TimedOut:
            code = 1
        finally:
            run.kill_all()
        equal = code == 0 and peer_end(run) == expected
        result.measurements["end"] = (
            "harmless" if equal else "died" if code else "wrong without an error"
        )
        if not equal:
            result.violations.append(result.measurements["end"])
        run.remove()
        return result

    @staticmethod
    def describe(trials: list[TrialResult]) -> str:
        return f"{len(trials)} damaged files: {count_values(trials, 'end')}"


def _kill(run: Run, planned: Kill, result: TrialResult) -> bool:
    """Wait, kill, start again; return False when the run ended by itself."""
    if planned.moment.phase == "export":
        return True
    before = peer_step(run)
    if before >= SCENARIO.steps:
        return False
    living = _wait_for_step(run, planned.moment, before)
    if living is None:
        return False
    victim = "supervisor" if planned.victim == "launcher" else planned.victim  # here they are one
    saving, step = is_peer_saving(run), peer_step(run)
    if not any([kill(process, signal.SIGKILL) for process in living.ids_of(victim)]):
        return True
    result.injected += 1
    phase = "save" if saving and is_peer_saving(run) else "start-up" if step <= before else "steps"
    result.measurements["phases"].append(phase)
    result.actions.append(f"{planned.victim} in {phase} after step {step}")
    run.wait()
    if run.wait_until_ended([*living.ranks.values()], seconds=5.0):
        result.measurements["orphans"] += 1
    run.kill_all()
    run.start()
    return True


def _wait_for_step(run: Run, moment: Moment, before: int) -> Processes | None:
    """Wait for a moment, as for dtl; phases that the script does not have count as a step."""
    living = run.wait_for_ranks()
    if living is None:
        return None
    target = max(moment.step, before + 1)
    torn = is_peer_saving(run)
    if moment.phase == "save":
        there = run.wait_until(
            lambda: peer_step(run) >= target and is_peer_saving(run) and not torn
        )
    else:
        there = moment.phase == "start-up" or run.wait_until(lambda: peer_step(run) >= target)
    if not there:
        return None
    time.sleep(moment.delay)
    return living


def _interrupted(setup: Setup) -> Run:
    """Return a single-process run that was killed between two saves; it is created once."""
    place = setup.folder / "references" / "plain-trainer-interrupted"
    run = peer_run(setup, place, processes=1, save_every=SAVE_EVERY)
    done = place / "interrupted"
    with setup.lock("plain trainer interrupted"):
        while not done.exists():
            run.remove()
            run.start()
            run.wait_until(lambda: peer_step(run) >= INTERRUPTED_AFTER)
            run.kill_all()
            if max(peer_losses(run)) < 3 * SAVE_EVERY and not is_peer_saving(run):
                done.touch()
    return run
