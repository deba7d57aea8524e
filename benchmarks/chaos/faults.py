"""Faults as pure records, drawn from a seed: whom to kill or ask, when, and what to damage."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from benchmarks.chaos.bed import EVALUATE_EVERY, Scene

VICTIMS = ("rank 0", "rank 1", "launcher", "desk", "all")
ASKED = ("rank 0", "rank 1", "launcher", "desk")
SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
MOMENTS = ("steps", "save", "start-up", "evaluation", "export", "tokenising")
RESTARTS = 3  # by the supervisor, a command
SHARE_IN_SAVES = 0.4  # some of these miss the save by a moment
SECOND_SIGNAL = 0.3  # share of the trials with a second signal


@dataclass(frozen=True)
class Moment:
    """When: `phase` from `step` on, and so many seconds after it was seen."""

    phase: str
    step: int
    delay: float

    def __str__(self) -> str:
        return f"{self.phase} from step {self.step}, {self.delay * 1000:.0f} ms in"


@dataclass(frozen=True)
class Kill:
    """SIGKILL of a victim at a moment."""

    victim: str
    moment: Moment


@dataclass(frozen=True)
class Ask:
    """A signal to a victim at a moment, and perhaps a second one some seconds later."""

    victim: str
    signal: str
    moment: Moment
    second: str | None
    second_after: float


def draw_kills(draw: Random, scene: Scene) -> list[Kill]:
    """Several kills of one run, in the order of their steps; some hit its start-up or its end."""
    steps = sorted(draw.randint(1, scene.steps - 1) for _ in range(draw.randint(5, 7)))
    kills: list[Kill] = []
    for step in steps:
        shares = {"save": SHARE_IN_SAVES, "steps": 0.25, "start-up": 0.2, "evaluation": 0.15}
        (phase,) = draw.choices(list(shares), list(shares.values()))
        kills.append(Kill(_victim(draw, kills), _moment(draw, phase, step)))
    if draw.random() < 0.4:
        kills.append(Kill(_victim(draw, kills), _moment(draw, "export", scene.steps)))
    return kills


def _victim(draw: Random, before: list[Kill]) -> str:
    """The supervisor starts a run again so many times a command: then the desk's turn has come."""
    last = [kill.victim for kill in before[-RESTARTS:]]
    spent = len(last) == RESTARTS and not {"desk", "all"} & set(last)
    return draw.choice(("desk", "all") if spent else VICTIMS)


def draw_ask(draw: Random, scene: Scene, number: int) -> Ask:
    """Moments take turns, so that none is left out; the rest is drawn."""
    phase = MOMENTS[number % len(MOMENTS)]
    victim = "desk" if phase == "tokenising" else draw.choice(ASKED)
    second = draw.choice(SIGNALS) if draw.random() < SECOND_SIGNAL else None
    step = scene.steps if phase == "export" else draw.randint(1, scene.steps * 2 // 3)
    return Ask(
        victim,
        draw.choice(SIGNALS),
        _moment(draw, phase, step),
        second,
        draw.uniform(0.02, 0.5),
    )


def _moment(draw: Random, phase: str, step: int) -> Moment:
    longest = {"start-up": 3.0, "tokenising": 0.5, "save": 0.006, "evaluation": 0.02}
    if phase == "evaluation":  # the next step after which the model is scored
        step = -(-step // EVALUATE_EVERY) * EVALUATE_EVERY
    return Moment(phase, step, draw.uniform(0.0, longest.get(phase, 0.05)))
