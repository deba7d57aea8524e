"""Kill ranks, launcher and desk of running commands, and see whether the runs come back."""

from __future__ import annotations

import signal
import time

from benchmarks.chaos import moments
from benchmarks.chaos.bed import SCENES, Bed
from benchmarks.chaos.ends import faults_of_end, reference
from benchmarks.chaos.faults import Kill, draw_kills
from benchmarks.chaos.runs import GONE_SECONDS, Hung, Processes, Run, kill
from benchmarks.chaos.table import counted, listed, median_seconds, total
from benchmarks.chaos.trials import Trial

NAME = "kill"
HOLDS = "comes back by itself from SIGKILL, ends bitwise"
COMMANDS = 12  # more than any run here needs
ORDER = (0, 1, 0, 2, 0, 3, 0, 4, 0, 5)  # every second run where a start is quickest
GAVE_UP = ("crashed 3 times", "crashed 4 times")


def trial(bed: Bed, number: int) -> Trial:
    """One run with several kills."""
    scene = SCENES[ORDER[number % len(ORDER)]]
    found = Trial(NAME, number, did=[scene.name])
    expected = reference(bed, scene)
    run = Run(bed, bed.place(NAME, number), scene)
    run.remove()
    found.found |= {"resume_seconds": [], "phases": [], "victims": [], "gave_up": 0, "again": 0}
    try:
        run.start()
        for planned in draw_kills(bed.draw(NAME, number), scene)[: bed.most_kills]:
            _kill(run, planned, found)
        while _go_on(run, found):
            run.wait()
        found.broken += faults_of_end(run, expected)
    except Hung as hung:
        found.broken.append(str(hung))
    finally:
        found.broken += [f"left: {left}" for left in run.leftovers(seconds=5.0)]
        run.end_all()
    if not found.broken:
        run.remove()
    return found


def line(trials: list[Trial]) -> str:
    """What the table says."""
    back = sum(not found.broken and not found.found.get("gave_up") for found in trials)
    equal = sum(not found.broken for found in trials)
    landed = sum(found.landed for found in trials)
    in_saves = listed(trials, "phases").count("save")
    return (
        f"{landed} kills in {len(trials)} runs, {in_saves} of them inside a save "
        f"(phases: {counted(trials, 'phases')}; victims: {counted(trials, 'victims')}). "
        f"{back} of {len(trials)} runs came back by themselves, {equal} ended bitwise equal. "
        f"The command was given again {total(trials, 'again')} times as the desk itself had been "
        f"killed, and {total(trials, 'gave_up')} times as the supervisor had given up after its "
        "limit of restarts. Kill to next new step in the log, back-off and other runs beside it "
        f"included: median {median_seconds(listed(trials, 'resume_seconds'))}"
    )


def _kill(run: Run, planned: Kill, found: Trial) -> None:
    """Wait for the moment, kill, wait until those who must die are dead, measure the way back."""
    if not _go_on(run, found):
        return
    living = moments.reach(run, planned.moment, planned.victim)
    if living is None:
        _go_on(run, found)
        return
    victims = living.of(planned.victim)
    phase, saving, step = run.phase, run.saving, run.step
    hit = [kill(process, signal.SIGKILL) for process in victims]
    at = time.monotonic()
    if not any(hit) or phase == "finished":
        return
    phase = "steps" if saving and not run.saving else phase
    found.landed += 1
    found.found["phases"].append(phase)
    found.found["victims"].append(planned.victim)
    found.did.append(f"{planned.victim} in {phase} after step {step}")
    _see_them_end(run, living, planned.victim)
    run.note_torn()
    goes_on = _go_on(run, found) and run.until(lambda: run.step > step or run.finished)
    if goes_on and run.step > step:
        found.found["resume_seconds"].append(time.monotonic() - at)


def _see_them_end(run: Run, living: Processes, victim: str) -> None:
    """No rank outlives a rank, its launcher or its desk. Raises Hung."""
    dying = [*living.ranks.values(), *([living.launcher] if living.launcher else [])]
    if victim in ("desk", "all"):
        run.wait(GONE_SECONDS)
    left = run.gone(dying)
    if left:
        raise Hung(f"{victim} was killed, {left} lived on for {GONE_SECONDS:.0f} s")


def _go_on(run: Run, found: Trial) -> bool:
    """Whether the command runs; where its desk was killed, or gave up, it is given again."""
    code = run.exit_code
    if code is None:
        return True
    if code == 0:
        return False
    if code == 1 and any(words in run.told[-300:] for words in GAVE_UP):
        found.found["gave_up"] += 1
    elif code == -signal.SIGKILL:
        found.found["again"] += 1
    else:
        raise Hung(f"the command ended with {code}: {run.last_words}")
    if run.starts >= COMMANDS:
        raise Hung(f"not finished after {run.starts} commands")
    run.start()
    return True
