"""Faults that the user can fix, and the one form of their messages."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Self


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: `location` (a config key, a file and line, an option), `problem` and `fix`."""

    location: str
    problem: str
    fix: str

    def __str__(self) -> str:
        return without_secrets(sentence(self.location, self.problem, self.fix))


def sentence(location: str, problem: str, fix: str) -> str:
    """Return *location: problem. Fix: fix.*; an empty part is left out."""
    text = f"{location}: {problem}" if location else problem
    return f"{text}. Fix: {fix}" if fix else text


class DtlError(Exception):
    """The user's fault: every fault found, one line each. The command ends with exit_code."""

    exit_code = 2

    def __init__(self, *faults: Fault) -> None:
        super().__init__(*faults)
        self.faults = faults

    @classmethod
    def of(cls, place: str, problem: str, fix: str) -> Self:
        """An error of one fault."""
        return cls(Fault(place, problem, fix))

    def __str__(self) -> str:
        return "\n".join(str(fault) for fault in self.faults)


class RunFailed(DtlError):
    """The run itself failed; the config was fine."""

    exit_code = 1


class RankFailed(RunFailed):
    """The run failed on this rank; the others do not know."""


class StoppedEarly(DtlError):
    """The run stopped before its end and can be resumed."""

    exit_code = 75


def without_secrets(text: str) -> str:
    """The text with what an address may carry hidden: user and password, and the query."""
    hidden = re.sub(r"://[^\s/]*@", "://***@", text)
    return re.sub(r"(://[^\s?]*\?)\S*?(?=[:;]?(\s|$))", r"\1***", hidden)


def near(name: str, known: Iterable[str]) -> str:
    """The hint "did you mean 'steps'?", or "" when nothing known is near."""
    by_lower_case = {candidate.lower(): candidate for candidate in known}
    found = get_close_matches(name.lower(), by_lower_case, n=1, cutoff=0.6)
    return f"did you mean '{by_lower_case[found[0]]}'?" if found else ""
