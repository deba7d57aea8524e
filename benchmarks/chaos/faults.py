"""Faults as records, drawn from a seed: which process gets which signal, and when."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from benchmarks.chaos.setup import EVALUATE_EVERY, Scenario

VICTIMS = ("rank 0", "rank 1", "launcher", "supervisor", "all")
SIGNAL_TARGETS = ("rank 0", "rank 1", "launcher", "supervisor")
SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
MOMENTS = ("steps", "save", "start-up", "evaluation", "export", "tokenizing")
RESTARTS = 3  # by the supervisor, a command
SHARE_IN_SAVES = 0.4  # some of these miss the save by a moment
SECOND_SIGNAL = 0.3  # share of the trials with a second signal


@dataclass(frozen=True)
class Moment:
    """A moment of a run: the first `phase` from `step` on, and `delay` seconds later."""

    phase: str
    step: int
    delay: float

    def __str__(self) -> str:
        return f"{self.phase} from step {self.step}, {self.delay * 1000:.0f} ms in"


@dataclass(frozen=True)
class Kill:
    """SIGKILL to a victim at a moment."""

    victim: str
    moment: Moment


@dataclass(frozen=True)
class StopRequest:
    """A signal to a victim at a moment, and possibly a second one some seconds later."""

    victim: str
    signal: str
    moment: Moment
    second: str | None
    second_after: float


def draw_kills(rng: Random, scenario: Scenario) -> list[Kill]:
    """Draw several kills of one run, in the order of their steps; some hit its start or its end."""
    steps = sorted(rng.randint(1, scenario.steps - 1) for _ in range(rng.randint(5, 7)))
    kills: list[Kill] = []
    for step in steps:
        shares = {"save": SHARE_IN_SAVES, "steps": 0.25, "start-up": 0.2, "evaluation": 0.15}
        (phase,) = rng.choices(list(shares), list(shares.values()))
        kills.append(Kill(_victim(rng, kills), _moment(rng, phase, step)))
    if rng.random() < 0.4:
        kills.append(Kill(_victim(rng, kills), _moment(rng, "export", scenario.steps)))
    return kills


def _victim(rng: Random, before: list[Kill]) -> str:
    """Draw a victim. After as many restarts as the supervisor allows, it is killed itself."""
    last = [kill.victim for kill in before[-RESTARTS:]]
    spent = len(last) == RESTARTS and not {"supervisor", "all"} & set(last)
    return rng.choice(("supervisor", "all") if spent else VICTIMS)


def draw_stop_request(rng: Random, scenario: Scenario, number: int) -> StopRequest:
    """Draw a stop request. Its phase depends on the number, so that every phase occurs."""
    phase = MOMENTS[number % len(MOMENTS)]
    victim = "supervisor" if phase == "tokenizing" else rng.choice(SIGNAL_TARGETS)
    second = rng.choice(SIGNALS) if rng.random() < SECOND_SIGNAL else None
    step = scenario.steps if phase == "export" else rng.randint(1, scenario.steps * 2 // 3)
    return StopRequest(
        victim,
        rng.choice(SIGNALS),
        _moment(rng, phase, step),
        second,
        rng.uniform(0.02, 0.5),
    )


def _moment(rng: Random, phase: str, step: int) -> Moment:
    longest = {"start-up": 3.0, "tokenizing": 0.5, "save": 0.006, "evaluation": 0.02}
    if phase == "evaluation":  # the next step after which the model is scored
        step = -(-step // EVALUATE_EVERY) * EVALUATE_EVERY
    return Moment(phase, step, rng.uniform(0.0, longest.get(phase, 0.05)))
