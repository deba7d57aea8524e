"""Find the differences between two runs: config, code, data, versions, hardware, plan, results."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dtl.config.diff import flatten
from dtl.run.folder import RunFolder
from dtl.train.usage import read_usage

IGNORED_KEYS = ("run.", "compare.")  # of the config: they do not change what a run computes
DERIVED_PLAN_FIELDS = ("deepspeed", "decisions")  # they follow from the other fields
MAX_WIDTH = 48  # characters of a value in the table


@dataclass(frozen=True)
class RunDifference:
    """One value that differs. `first`, `second`: of each run; None where it has none."""

    section: str
    key: str
    first: Any
    second: Any


def diff_runs(first: RunFolder, second: RunFolder) -> list[RunDifference]:
    """Return all differences, by section.

    Measurements that are never equal, such as seconds and bytes, are not compared.
    """
    first_sections, second_sections = _run_sections(first), _run_sections(second)
    differences = []
    for section, first_values in first_sections.items():
        second_values = second_sections[section]
        for key in dict.fromkeys((*first_values, *second_values)):
            values = first_values.get(key), second_values.get(key)
            if values[0] != values[1]:
                differences.append(RunDifference(section, key, *values))
    return differences


def diff_to_dict(differences: list[RunDifference]) -> dict[str, dict[str, list[Any]]]:
    """Return the two values by section and key, as JSON values."""
    sections: dict[str, dict[str, list[Any]]] = {}
    for difference in differences:
        values = [difference.first, difference.second]
        sections.setdefault(difference.section, {})[difference.key] = values
    return sections


def format_diff_table(
    differences: list[RunDifference], names: tuple[str, str], *, max_width: int = MAX_WIDTH
) -> list[str]:
    """Return a line for each difference under the name of its section; long values are shortened.

    `names`: of the two runs. `max_width`: of a value, in characters.
    """
    rows = [
        (each.key, *(_shorten(value, max_width) for value in (each.first, each.second)))
        for each in differences
    ]
    header = ("", *names)
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(3)]

    def align(row: tuple[str, ...]) -> str:
        return "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))

    lines, section = [f"  {align(header)}".rstrip()], None
    for difference, row in zip(differences, rows, strict=True):
        if difference.section != section:
            section = difference.section
            lines.append(section)
        lines.append(f"  {align(row)}".rstrip())
    return lines


def _run_sections(run: RunFolder) -> dict[str, dict[str, Any]]:
    """Return the compared values of a run, by section and key."""
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
    """Return state and steps, and the scores of a finished run without its confusion matrix."""
    results: dict[str, Any] = {"state": run.state, "steps": run.last_step}
    if run.state == "finished":
        result = run.result
        results |= flatten({"scores": result["scores"], "best": result["best"]})
        results["weights"] = result["weights"]
    return {key: value for key, value in results.items() if ".confusion/" not in key}


def _shorten(value: Any, max_width: int) -> str:
    """Return the value as text, its middle replaced by an ellipsis where it is too long."""
    text = "-" if value is None else str(value)
    if len(text) <= max_width:
        return text
    half = (max_width - 1) // 2
    return f"{text[:half]}…{text[-half:]}"
