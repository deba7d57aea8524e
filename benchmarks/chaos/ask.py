"""Signals that ask a run to stop: it saves, ends with 75, leaves nobody behind, and goes on."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

from benchmarks.chaos import moments
from benchmarks.chaos.bed import SCENES, Bed
from benchmarks.chaos.ends import faults_of_end, reference
from benchmarks.chaos.faults import Ask, draw_ask
from benchmarks.chaos.runs import Hung, Run, kill
from benchmarks.chaos.table import counted, listed, median_seconds
from benchmarks.chaos.trials import Trial
from tests import tiny

NAME = "signal"
HOLDS = "saves and ends with 75, at most one step lost, nobody left, goes on bitwise"
STOPPED = 75
STOP_SECONDS = 60.0
ROWS = 20_000  # to keep the desk busy with tokenising


def trial(bed: Bed, number: int) -> Trial:
    """One run that is asked to stop once, or twice in short order."""
    scene = SCENES[number % len(SCENES)]
    ask = draw_ask(bed.draw(NAME, number), scene, number // len(SCENES) + number)
    found = Trial(NAME, number, did=[scene.name])
    tokenising = ask.moment.phase == "tokenising"
    overrides = (f"data.train={_many_rows(bed)}",) if tokenising else ()
    expected = reference(bed, scene, overrides)
    run = Run(bed, bed.place(NAME, number), scene, overrides)
    run.remove()
    if tokenising:  # a cache of its own, so that there is something to do
        run.environment = {"DTL_CACHE": str(run.place / "cache")}
    try:
        run.start()
        if _ask(run, ask, found):
            _see_it_end(run, found)
            run.start()
            code = run.wait()
            if code:
                found.broken.append(f"the same command ended with {code}: {run.last_words}")
            else:
                found.broken += faults_of_end(run, expected)
    except Hung as hung:
        found.broken.append(str(hung))
    finally:
        run.end_all()
    if not found.broken:
        run.remove()
    return found


def line(trials: list[Trial]) -> str:
    """What the table says."""
    lost = max(listed(trials, "lost"), default=0)
    return (
        f"{len(trials)} runs were asked to stop (phases: {counted(trials, 'phase')}; asked: "
        f"{counted(trials, 'victim')}; signals: {counted(trials, 'signals')}); most steps lost: "
        f"{lost}; median time from signal to exit {median_seconds(listed(trials, 'seconds'))}"
    )


def _ask(run: Run, ask: Ask, found: Trial) -> bool:
    """Send the signals; False when the run was finished, or nearly, before the first landed."""
    living = moments.reach(run, ask.moment, ask.victim, listening=True)
    if living is None:
        if run.exit_code:
            found.landed = 1
            found.broken.append(f"ended with {run.exit_code} by itself: {run.last_words}")
        return False
    victims, phase, step = living.of(ask.victim), run.phase, run.step
    if not victims or phase == "finished":
        return False
    for process in victims:
        kill(process, signal.Signals[ask.signal])
    found.found |= {"phase": phase, "victim": ask.victim, "signals": [ask.signal], "step": step}
    found.found["at"] = time.monotonic()
    found.did.append(f"{ask.signal} to {ask.victim} in {phase} after step {step}")
    if ask.second is not None:
        time.sleep(ask.second_after)
        sent = [kill(process, signal.Signals[ask.second]) for process in victims]
        if any(sent) and run.exit_code is None:
            found.found["signals"].append(ask.second)
            found.did.append(f"{ask.second} {ask.second_after:.2f} s later")
    found.landed = 1
    return True


def _see_it_end(run: Run, found: Trial) -> None:
    """The command ends as it should, alone, and with what it had learnt."""
    code = run.wait(STOP_SECONDS)
    found.found["seconds"] = time.monotonic() - found.found.pop("at")
    left = run.leftovers()
    found.broken += left
    if code == 0 and run.finished and found.found["step"] >= run.scene.steps - 1:
        found.landed = 0  # it was over before anyone could stop it
        found.did.append("was finished before it could stop")
    elif code != STOPPED:
        found.broken.append(f"exit code {code}: {run.last_words}")
    saved, logged = newest_saved(run.checkpoints), last_train_step(run)
    found.found["lost"] = max(0, logged - saved)
    if found.found["lost"] > 1:
        found.broken.append(f"{logged} steps were told, {saved} are saved")


def newest_saved(folder: Path) -> int:
    """The step of the newest checkpoint by its name; 0 where there is none."""
    return max((int(path.name.removeprefix("step-")) for path in folder.glob("step-*")), default=0)


def last_train_step(run: Run) -> int:
    """The newest optimizer step that the log tells of; 0 before the first."""
    path = run.folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    steps = [json.loads(text) for text in lines]
    return max((found["step"] for found in steps if found["kind"] == "train"), default=0)


def _many_rows(bed: Bed) -> Path:
    """So many rows that tokenising them takes seconds."""
    path = bed.folder / "many.jsonl"
    with bed.once("many rows"):
        if not path.exists():
            tiny.write_texts(path, ROWS)
    return path
