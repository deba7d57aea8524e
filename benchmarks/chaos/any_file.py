"""Damage any file of a run, a cache, an export or a comparison: nothing is silently wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.chaos import commands
from benchmarks.chaos.setup import Setup
from benchmarks.chaos.table import count_values
from benchmarks.chaos.trials import TrialResult

NAME = "any file"
REQUIREMENT = "one message, or the same result; no traceback, hang, silent change or lost history"
SUBJECTS = ("interrupted", "finished", "interrupted", "finished", "comparison")
WAYS = ("bit", "bit", "bit", "cut", "empty")
STATUS = ("status", "runs")


def run_trial(setup: Setup, number: int) -> TrialResult:
    """Damage one file, drawn from all, and run the commands that read it."""
    rng, subject = setup.rng(NAME, number), SUBJECTS[number % len(SUBJECTS)]
    folder = setup.trial_folder("any-file", number)
    commands.copy_template(setup, subject, folder)
    file = rng.choice(list_files(folder))
    way = damage(file, rng)
    name = file.relative_to(folder).as_posix()
    result = TrialResult(NAME, number, injected=1, actions=[f"{subject}: {way} of {name}"])
    result.measurements = {"way": way, "place": f"{subject} {name.split('/')[0]}"}
    check = {"interrupted": _resume, "finished": _read, "comparison": _compare}[subject]
    for kind, text in check(setup, folder):
        if kind == "outcome":
            result.measurements["outcome"] = text
        else:
            result.violations.append(text)
    return result


def describe(trials: list[TrialResult]) -> str:
    """Return the text of the table."""
    return (
        f"{len(trials)} damages ({count_values(trials, 'way')}) of files drawn from all "
        f"({count_values(trials, 'place')}); outcomes: {count_values(trials, 'outcome')}"
    )


def list_files(folder: Path) -> list[Path]:
    """Return all files that dtl has written in the folder of a trial, and that are not empty."""
    files = [
        path
        for part in ("runs", "cache", "comparisons")
        for path in (folder / part).rglob("*")
        if path.is_file() and not path.is_symlink() and path.stat().st_size
    ]
    return sorted(files)


def damage(file: Path, rng: Random) -> str:
    """Flip a bit, cut or empty a file; return what was done."""
    data, way = bytearray(file.read_bytes()), rng.choice(WAYS)
    if way == "bit":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data if way == "bit" else data[: rng.randrange(len(data))] * (way == "cut"))
    return way


def _resume(setup: Setup, folder: Path) -> Iterator[tuple[str, str]]:
    """Resume a run; twice where the first time a folder of the cache was removed."""
    expected = _expected(setup)
    output = ""
    for argv in (STATUS, ("resume", "runs/run"), ("resume", "runs/run")):
        answer = commands.run(setup, folder, argv)
        output += answer.output
        yield from (("fault", text) for text in answer.violations)
        if argv == STATUS and answer.codes != [0]:
            yield "fault", f"dtl status shows no run: {answer.output[-200:]}"
    if answer.codes != [0]:
        yield "outcome", "refused"
        return
    found = commands.read_result(folder)
    yield from (
        ("fault", text) for text in commands.find_silent_differences(found, expected, output)
    )
    yield "outcome", "named" if "damaged" in output or "lost" in output else "same result"


def _read(setup: Setup, folder: Path) -> Iterator[tuple[str, str]]:
    """Use a finished run, of which every answer is the same or refused."""
    before = _answers(folder)
    outcome = "same result"
    for argv in (STATUS, commands.PREDICT, commands.EVALUATE, ("audit", "runs/run")):
        answer = commands.run(setup, folder, argv)
        yield from (("fault", text) for text in answer.violations)
        if answer.codes != [0]:
            outcome = "refused"
    if _answers(folder) != before:  # where dtl predict refuses, they are those of before
        yield "fault", "SILENT: the answers of dtl predict differ"
    yield "outcome", outcome


def _compare(setup: Setup, folder: Path) -> Iterator[tuple[str, str]]:
    """Compute the results of a comparison again, from its runs."""
    template = setup.folder / "templates" / "comparison"
    answer = commands.run(setup, folder, ("compare", "few.yaml"))
    yield from (("fault", text) for text in answer.violations)
    if answer.codes == [0] and _scores(folder) != _scores(template):
        yield "fault", "SILENT: the scores of the comparison differ"
    yield "outcome", "same result" if answer.codes == [0] else "refused"


def _expected(setup: Setup) -> dict[str, Any]:
    folder = setup.folder / "templates" / "finished"
    if not (folder / "ready").exists():
        commands.copy_template(setup, "finished", setup.folder / "templates" / "unused")
    return commands.read_result(folder)


def _answers(folder: Path) -> str:
    file = folder / "answers.jsonl"
    return file.read_text(encoding="utf-8") if file.exists() else ""


def _scores(folder: Path) -> list[Any]:
    """Return the scores of each cell of a comparison, without its times."""
    (file,) = folder.rglob("comparison.json")
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    return [[cell.get(key) for key in ("strategy", "seed", "labels", "score")] for cell in cells]
