"""What differs between two runs: config, code, data, versions, hardware, plan and results."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dtl.config.diff import flatten
from dtl.run.folder import RunFolder
from dtl.train.usage import read_usage

IGNORED_KEYS = ("run.", "compare.")  # keys of the config: its folder, and what is run beside it
DERIVED_PLAN_FIELDS = (
    "deepspeed",
    "decisions",
)  # parts of the plan that follow from the others, and words


@dataclass(frozen=True)
class RunDifference:
    """`part`: config, code, ...; `key`: what of it. None: that run has none."""

    section: str
    key: str
    first: Any
    second: Any


def diff_runs(first: RunFolder, second: RunFolder) -> list[RunDifference]:
    """All that differs, in the order of the parts. What is never twice the same, as seconds and
    bytes that were measured, is left out."""
    found = []
    told = [_run_sections(first), _run_sections(second)]
    for part in told[0]:
        one, other = (parts[part] for parts in told)
        for key in dict.fromkeys((*one, *other)):
            if one.get(key) != other.get(key):
                found.append(RunDifference(part, key, one.get(key), other.get(key)))
    return found


def diff_to_dict(found: list[RunDifference]) -> dict[str, dict[str, list[Any]]]:
    """As plain values: by part and key, the value of each run."""
    parts: dict[str, dict[str, list[Any]]] = {}
    for one in found:
        parts.setdefault(one.section, {})[one.key] = [one.first, one.second]
    return parts


def format_diff_table(
    found: list[RunDifference], names: tuple[str, str], *, widest: int = 48
) -> list[str]:
    """A line a difference under the heading of its part; long values are cut in the middle."""
    cells = [
        (one.key, *(_shorten(value, widest) for value in (one.first, one.second))) for one in found
    ]
    heads = ("", *names)
    widths = [max(len(row[at]) for row in [heads, *cells]) for at in range(3)]

    def aligned(row: tuple[str, ...]) -> str:
        return "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))

    lines, part = [f"  {aligned(heads)}".rstrip()], None
    for one, row in zip(found, cells, strict=True):
        if one.section != part:
            part = one.section
            lines.append(part)
        lines.append(f"  {aligned(row)}".rstrip())
    return lines


def _run_sections(run: RunFolder) -> dict[str, dict[str, Any]]:
    config = flatten(run.config.model_dump(mode="json"))
    usage = read_usage(run.usage)
    plan = {key: value for key, value in asdict(run.plan).items() if key not in DERIVED_PLAN_FIELDS}
    plan["phases"] = {str(number): phase for number, phase in enumerate(plan["phases"], start=1)}
    return {
        "config": {key: value for key, value in config.items() if not key.startswith(IGNORED_KEYS)},
        "code": {"git commit": run.commit},
        "data": flatten(run.data),
        "versions": run.versions,
        "hardware": {} if usage is None else {"devices": list(usage.hardware)},
        "plan": flatten(plan),
        "results": _result_section(run),
    }


def _result_section(run: RunFolder) -> dict[str, Any]:
    """Of a finished run its scores, else how far it has come; confusions make no table."""
    told: dict[str, Any] = {"state": run.state, "steps": run.last_step}
    if run.state == "finished":
        result = run.result
        told |= flatten({"scores": result["scores"], "best": result["best"]})
        told["weights"] = result["weights"]
    return {key: value for key, value in told.items() if ".confusion/" not in key}


def _shorten(value: Any, widest: int) -> str:
    text = "-" if value is None else str(value)
    if len(text) <= widest:
        return text
    half = (widest - 1) // 2
    return f"{text[:half]}…{text[-half:]}"
