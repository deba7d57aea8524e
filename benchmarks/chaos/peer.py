"""The same kills and damages on a plain transformers Trainer: a yardstick, nothing has to hold."""

from __future__ import annotations

import shutil
import signal
import time
from random import Random

from benchmarks.chaos import damage
from benchmarks.chaos.bed import Bed
from benchmarks.chaos.faults import Kill, Moment, draw_kills
from benchmarks.chaos.peer_runs import (
    SCENE,
    last_error,
    peer_end,
    peer_losses,
    peer_reference,
    peer_run,
    peer_saving,
    peer_step,
)
from benchmarks.chaos.runs import Hung, Processes, Run, kill
from benchmarks.chaos.table import counted, listed, total
from benchmarks.chaos.trials import Trial

TRIES = 3  # the same command again, before a run counts as one that never comes back
SAVE_EVERY, INTERRUPTED_AFTER = 10, 23  # of the run whose checkpoints are damaged
FILES = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]


class Kills:
    """One run of two processes with several kills; the same command again after each."""

    NAME = "peer-kill"
    HOLDS = "plain Trainer, 2 processes, the same kills: comes back, ends bitwise"

    @staticmethod
    def trial(bed: Bed, number: int) -> Trial:
        found = Trial(Kills.NAME, number, found={"phases": [], "orphans": 0, "back": 1})
        expected = peer_reference(bed, processes=2)
        run = peer_run(bed, bed.place(Kills.NAME, number), processes=2)
        run.remove()
        try:
            run.start()
            for planned in draw_kills(bed.draw("kill", number), SCENE):
                if not _kill(run, planned, found):
                    break
            code = run.wait()
            for _ in range(TRIES):
                if code:
                    run.start()
                    code = run.wait()
        except Hung as hung:
            found.broken.append(str(hung))
            code = 1
        finally:
            run.end_all()
        if code:
            found.found["back"] = 0
            found.broken.append(f"never came back: {last_error(run)}")
        elif peer_end(run) != expected:
            found.broken.append("came back with another result")
        run.remove()
        return found

    @staticmethod
    def line(trials: list[Trial]) -> str:
        dead = len(trials) - total(trials, "back")
        in_saves = listed(trials, "phases").count("save")
        return (
            f"{sum(found.landed for found in trials)} kills in {len(trials)} runs, {in_saves} of "
            f"them inside a save ({counted(trials, 'phases')}); {dead} runs never came back, "
            f"{sum(not found.broken for found in trials)} ended bitwise equal; "
            f"{total(trials, 'orphans')} times ranks trained on without their launcher"
        )


class Corruptions:
    """The newest checkpoint of an interrupted run is damaged, file by file."""

    NAME = "peer-corruption"
    HOLDS = "plain Trainer, the same damages to files: harmless or found out"

    @staticmethod
    def trial(bed: Bed, number: int) -> Trial:
        expected = peer_reference(bed, processes=1, save_every=SAVE_EVERY)
        mine = _interrupted(bed)
        ways = [damage.Damage(way, file) for file in FILES for way in damage.OF_FILES]
        chosen = ways[number % len(ways)]
        found = Trial(Corruptions.NAME, number, landed=1, did=[str(chosen)])
        run = peer_run(bed, bed.place(Corruptions.NAME, number), processes=1, save_every=SAVE_EVERY)
        run.remove()
        shutil.copytree(mine.place / "out", run.place / "out")
        older, newest = sorted((run.place / "out").glob("checkpoint-*"))[-2:]
        draw: Random = bed.draw(Corruptions.NAME, number)
        damage.of_file(chosen, draw, newest=newest, older=older)
        try:
            run.start()
            code = run.wait()
        except Hung:
            code = 1
        finally:
            run.end_all()
        equal = code == 0 and peer_end(run) == expected
        found.found["end"] = "harmless" if equal else "died" if code else "wrong without a word"
        if not equal:
            found.broken.append(found.found["end"])
        run.remove()
        return found

    @staticmethod
    def line(trials: list[Trial]) -> str:
        return f"{len(trials)} damaged files: {counted(trials, 'end')}"


def _kill(run: Run, planned: Kill, found: Trial) -> bool:
    """Wait, kill, start again; False when the run ended by itself, well or not."""
    if planned.moment.phase == "export":
        return True
    before = peer_step(run)
    if before >= SCENE.steps:
        return False
    living = _reach(run, planned.moment, before)
    if living is None:
        return False
    victim = "desk" if planned.victim == "launcher" else planned.victim  # here they are one
    saving, step = peer_saving(run), peer_step(run)
    if not any([kill(process, signal.SIGKILL) for process in living.of(victim)]):
        return True
    found.landed += 1
    phase = "save" if saving and peer_saving(run) else "start-up" if step <= before else "steps"
    found.found["phases"].append(phase)
    found.did.append(f"{planned.victim} in {phase} after step {step}")
    run.wait()
    if run.gone([*living.ranks.values()], seconds=5.0):
        found.found["orphans"] += 1
    run.end_all()
    run.start()
    return True


def _reach(run: Run, moment: Moment, before: int) -> Processes | None:
    """As for dtl; what the script has no part for counts as a step."""
    living = run.wait_for_ranks()
    if living is None:
        return None
    target = max(moment.step, before + 1)
    torn = peer_saving(run)
    if moment.phase == "save":
        there = run.until(lambda: peer_step(run) >= target and peer_saving(run) and not torn)
    else:
        there = moment.phase == "start-up" or run.until(lambda: peer_step(run) >= target)
    if not there:
        return None
    time.sleep(moment.delay)
    return living


def _interrupted(bed: Bed) -> Run:
    """A run of one process that was killed between two saves; made once."""
    place = bed.folder / "references" / "plain-trainer-interrupted"
    run = peer_run(bed, place, processes=1, save_every=SAVE_EVERY)
    done = place / "interrupted"
    with bed.once("plain trainer interrupted"):
        while not done.exists():
            run.remove()
            run.start()
            run.until(lambda: peer_step(run) >= INTERRUPTED_AFTER)
            run.end_all()
            if max(peer_losses(run)) < 3 * SAVE_EVERY and not peer_saving(run):
                done.touch()
    return run
