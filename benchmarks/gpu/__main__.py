"""Check on a GPU what tests on a CPU cannot: `python -m benchmarks.gpu --out FILE [--dry-run]`.

Sections pass or fail, each with one row of the table that is written to FILE. It takes at most
eight minutes on one GPU of the H200 class and needs no network: all models are drawn at random.
`--dry-run` runs the code of every section at toy size on the CPU, which proves nothing about a GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.gpu.bases import write_bases
from benchmarks.gpu.child import RESULTS
from benchmarks.gpu.runs import ROOT, environment
from benchmarks.gpu.sections import GROUPS
from benchmarks.gpu.setup import Setup
from benchmarks.gpu.table import format_page

LIMIT_SECONDS = 470.0


def main(arguments: list[str] | None = None) -> int:
    """Return 0 where no section has failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="Markdown file to write")
    parser.add_argument("--dry-run", action="store_true", help="at toy size, on the CPU")
    parser.add_argument("--groups", nargs="*", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument("--limit-seconds", type=float, default=LIMIT_SECONDS)
    options = parser.parse_args(arguments)
    end = time.monotonic() + options.limit_seconds
    with tempfile.TemporaryDirectory(prefix="dtl-gpu-") as folder:
        setup = Setup(Path(folder), is_dry=options.dry_run)
        if not setup.is_dry:
            _check_gpu()
        write_bases(setup)
        # On a GPU each group is a process of its own: an error of CUDA ends only its group.
        processes = [options.groups] if setup.is_dry else [[group] for group in options.groups]
        for groups in processes:
            _run_groups(setup, groups, seconds=end - time.monotonic())
        results = [*_read_results(setup), *find_missing(setup, options.groups)]
        options.out.parent.mkdir(parents=True, exist_ok=True)
        seconds = options.limit_seconds - (end - time.monotonic())
        page = format_page(results, is_dry=setup.is_dry, seconds=seconds)
        options.out.write_text(page, encoding="utf-8")
    failed = [result["section"] for result in results if result["status"] == "failed"]
    print(f"{options.out}: {len(results) - len(failed)} of {len(results)} sections without failure")
    return 1 if failed else 0


def _check_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("there is no GPU here. Fix: run it on one, or add --dry-run")


def _run_groups(setup: Setup, groups: list[str], *, seconds: float) -> None:
    """Run groups in a child process, for so many seconds at most."""
    argv = [sys.executable, "-m", "benchmarks.gpu.child", str(setup.folder), *groups]
    argv += ["--dry-run"] * setup.is_dry
    try:
        subprocess.run(
            argv, cwd=ROOT, env=environment(is_cpu=setup.is_dry), timeout=max(1.0, seconds)
        )
    except subprocess.TimeoutExpired:
        print(f"{', '.join(groups)}: stopped, because the time is over")


def _read_results(setup: Setup) -> list[dict[str, object]]:
    file = setup.folder / RESULTS
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    return [json.loads(line) for line in text.splitlines()]


def find_missing(setup: Setup, groups: list[str]) -> list[dict[str, object]]:
    """Return a failure for each section that has left no result."""
    found = {result["section"] for result in _read_results(setup)}
    absent = [name for group in groups for name in GROUPS[group] if name not in found]
    detail = "it did not finish: its process ended, or the time was over"
    return [
        {"section": name, "status": "failed", "seconds": 0.0, "detail": detail} for name in absent
    ]


if __name__ == "__main__":
    raise SystemExit(main())
