"""Compare the results of two runs bitwise: what was learned and scored, not what was measured.

Names are those of the tree after a refactor; `renamed` maps the older names of metrics, keys, files
and folders to them.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

METRICS, RESULT, EVALUATIONS, EXPORT = "metrics.jsonl", "result.json", "evaluations", "export"
MEASURED = {"seconds", "tokens_per_second", "memory_bytes", "bytes"}  # by the clock or the machine
WORDS = {"kind", "model", "reason", "weights", "export"}  # names and paths, which may change
IGNORED = MEASURED | WORDS | {"digest"}  # of rows and options; a new name of an option changes it
GROUPS = ("losses", "step values", "scores", "example values", "tensors")
SHOWN_DIFFERENCES = 5  # of each run

Value = Any  # float, str or torch.Tensor; None where it is missing
Results = dict[str, dict[str, Value]]  # group -> place -> value


@dataclass
class Comparison:
    """Number of values that both sides have, per group, and where they differ."""

    counts: dict[str, int]
    differences: list[str] = field(default_factory=list)
    worst: float = 0.0

    def add(self, text: str, *, by: float = math.inf) -> None:
        """Record that something differs, and by how much."""
        self.differences.append(text)
        self.worst = max(self.worst, by)


def leaves(
    value: Any, *, place: str, renamed: Mapping[str, str]
) -> Iterator[tuple[str, float | str]]:
    """Yield the place and value of each number and text, but for what is measured; null is NaN."""
    if isinstance(value, dict):
        for key, item in value.items():
            name = "/".join(renamed.get(part, part) for part in key.split("/"))
            if name not in IGNORED:
                yield from leaves(item, place=f"{place} {name}", renamed=renamed)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from leaves(item, place=f"{place} {number}", renamed=renamed)
    elif isinstance(value, str):
        yield place, value
    else:
        yield place, math.nan if value is None else float(value)


def read_lines(path: Path) -> list[Any]:
    """Return the JSON lines of a file; none where it does not exist."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines()]


def read_results(run: Path, *, renamed: Mapping[str, str]) -> Results:
    """Return every compared value of a run folder; groups are empty where files are missing."""
    old_names = {new: old for old, new in renamed.items()}
    metrics, result, evaluations, export = (
        run / old_names.get(name, name) for name in (METRICS, RESULT, EVALUATIONS, EXPORT)
    )
    prefix = f"{EVALUATIONS}/"  # names that are renamed in the records of examples alone
    in_records = {
        **renamed,
        **{old.removeprefix(prefix): new for old, new in renamed.items() if old.startswith(prefix)},
    }
    results: Results = {group: {} for group in GROUPS}
    for number, line in enumerate(read_lines(metrics), start=1):
        found = dict(leaves(line, place=f"{METRICS}:{number}", renamed=renamed))
        is_step = any(place.endswith(" learning_rate") for place in found)
        for place, value in found.items():
            step_group = "losses" if place.endswith(" loss") else "step values"
            results[step_group if is_step else "scores"][place] = value
    if result.is_file():
        content = json.loads(result.read_text(encoding="utf-8"))
        results["scores"] |= leaves(content, place=RESULT, renamed=renamed)
    for file, path in enumerate(sorted(evaluations.glob("*.jsonl"))):
        for number, line in enumerate(read_lines(path), start=1):
            place = f"{EVALUATIONS}[{file}]:{number}"
            results["example values"] |= leaves(line, place=place, renamed=in_records)
    results["tensors"] |= read_tensors(export)
    return results


def read_tensors(export: Path) -> dict[str, Value]:
    """Return the tensors in the safetensors files below a folder, by file and name."""
    from safetensors.torch import load_file

    return {
        f"{path.relative_to(export)} {name}": tensor
        for path in export.rglob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


def difference(*, old: Value, new: Value) -> float:
    """Return 0 where two values have the same bits, else the largest difference; infinity where
    they cannot be subtracted."""
    import torch

    if type(old) is not type(new) or old is None:
        return math.inf
    if isinstance(old, str):
        return 0.0 if old == new else math.inf
    if isinstance(old, float):
        old, new = (torch.tensor(value, dtype=torch.float64) for value in (old, new))
    if old.dtype != new.dtype or old.shape != new.shape:
        return math.inf
    if torch.equal(*(value.reshape(-1).view(torch.uint8) for value in (old, new))):
        return 0.0
    largest = float((old.double() - new.double()).abs().max())
    return max(largest, sys.float_info.min) if math.isfinite(largest) else math.inf


def describe_value(value: Value) -> str:
    """Return a number or text as it is, and the dtype and shape of a tensor."""
    if value is None:
        return "missing"
    return f"{value.dtype} {list(value.shape)}" if hasattr(value, "shape") else repr(value)


def compare(*, old: Results, new: Results, failures: Sequence[str]) -> Comparison:
    """Compare all values of a run, place by place. A group without values is a difference too, and
    so is a failure, after which no value is looked at."""
    comparison = Comparison({group: len(old[group].keys() & new[group].keys()) for group in GROUPS})
    for failure in failures:
        comparison.add(failure)
    if failures:
        return comparison
    for group in GROUPS:
        if not comparison.counts[group]:
            comparison.add(f"no {group} to compare")
        for place in old[group] | new[group]:
            values = old[group].get(place), new[group].get(place)
            by = difference(old=values[0], new=values[1])
            if by:
                before, after = map(describe_value, values)
                comparison.add(f"{place}: old {before}, new {after}, by {by:g}", by=by)
    return comparison


def print_table(comparisons: Mapping[str, Comparison]) -> None:
    """Print a row per run, then the first differences."""
    print(f"\n{'run':12}", *(f"{group:>14}" for group in GROUPS), "  worst difference  result")
    for name, comparison in comparisons.items():
        counts = (f"{comparison.counts[group]:>14}" for group in GROUPS)
        outcome = "DIFFERS" if comparison.differences else "ok"
        print(f"{name:12}", *counts, f"{comparison.worst:>18g}  {outcome}")
    for name, comparison in comparisons.items():
        for line in comparison.differences[:SHOWN_DIFFERENCES]:
            print(f"{name}: {line}")
        if (more := len(comparison.differences) - SHOWN_DIFFERENCES) > 0:
            print(f"{name}: {more} more differences")
