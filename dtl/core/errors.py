"""Errors that the user can fix, and the one form of their messages."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Self

ELLIPSIS = " ..."
LONG_WORD = 400  # characters; paths may be nearly as long


@dataclass(frozen=True)
class Fault:
    """One fault.

    `location`: a config key, a file and line, or an option. `problem`: without a final full stop.
    `fix`: an imperative.
    """

    location: str
    problem: str
    fix: str

    def __str__(self) -> str:
        parts = (self.location, self.problem, self.fix)
        return without_secrets(
            sentence(*(_cut_long_words(escape_control_characters(part)) for part in parts))
        )


def _cut_long_words(text: str) -> str:
    """Return the text without the middle of words that no terminal can show."""
    return re.sub(
        rf"(\S{{{LONG_WORD // 2}}})\S{{{LONG_WORD},}}(\S{{{LONG_WORD // 4}}})", r"\1...\2", text
    )


def control_characters(text: str) -> list[str]:
    """Return the characters of a text that end a line or control a terminal."""
    return [
        character
        for character in text
        if unicodedata.category(character) in ("Cc", "Zl", "Zp") and character != "\t"
    ]


def escape_control_characters(text: str) -> str:
    """Return the text with line breaks and other control characters written as escapes."""
    for character in set(control_characters(text)):
        text = text.replace(character, repr(character)[1:-1])
    return text


def sentence(location: str, problem: str, fix: str) -> str:
    """Return *location: problem. Fix: fix.*; an empty part is left out."""
    text = f"{location}: {problem}" if location else problem
    return f"{text}. Fix: {fix}" if fix else text


class DtlError(Exception):
    """One or more faults of the user, one line each. The command ends with `exit_code`."""

    exit_code = 2

    def __init__(self, *faults: Fault) -> None:
        super().__init__(*faults)
        self.faults = faults

    @classmethod
    def of(cls, location: str, problem: str, fix: str) -> Self:
        """Return an error with one fault."""
        return cls(Fault(location, problem, fix))

    def __str__(self) -> str:
        return "\n".join(str(fault) for fault in self.faults)


class InvalidRowError(DtlError):
    """A row is invalid, which only the model's files or the complete media file show."""


class RunFailed(DtlError):
    """The run itself failed; the config was valid."""

    exit_code = 1


class RankFailed(RunFailed):
    """The run failed on this rank; the other ranks do not know."""


class StoppedEarly(DtlError):
    """The run stopped before its end and can be resumed."""

    exit_code = 75


def without_secrets(text: str) -> str:
    """Return the text with the secrets of URLs hidden: user and password, and the query."""
    hidden = re.sub(r"://[^\s/]*@", "://***@", text)
    return re.sub(r"(://[^\s?]*\?)\S*?(?=[:;]?(\s|$))", r"\1***", hidden)


def shorten_message(message: object, *, characters: int = 300) -> str:
    """Return an error's message, or a text, as one line that ends with a complete word."""
    line = " ".join(str(message).split())
    if len(line) <= characters:
        return line
    room = characters - len(ELLIPSIS)
    return (line[: room + 1].rpartition(" ")[0] or line[:room]) + ELLIPSIS


def near(name: str, known: Iterable[str]) -> str:
    """Return the hint "did you mean 'steps'?", or "" if no known name is similar."""
    by_lower_case = {candidate.lower(): candidate for candidate in known}
    matches = get_close_matches(name.lower(), by_lower_case, n=1, cutoff=0.6)
    return f"did you mean '{by_lower_case[matches[0]]}'?" if matches else ""
