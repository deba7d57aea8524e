"""Run groups of sections in this process: `python -m benchmarks.gpu.child FOLDER GROUP...`.

Each section adds a line to FOLDER/results.jsonl. The bases and rows are in FOLDER already.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from pathlib import Path

from benchmarks.gpu.runs import Section
from benchmarks.gpu.setup import NotRun, Setup

RESULTS = "results.jsonl"
MAX_DETAIL = 400  # characters of a failure in the table; its traceback is in the log


def main() -> int:
    """Run the sections that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--cpu-losses", metavar="DTYPE")
    parser.add_argument("folder", type=Path)
    parser.add_argument("groups", nargs="*")
    arguments = parser.parse_args()
    setup = Setup(arguments.folder, is_dry=arguments.dry_run)
    if arguments.cpu_losses:
        from benchmarks.gpu.numbers import print_cpu_losses

        print_cpu_losses(setup, arguments.cpu_losses)
        return 0
    from benchmarks.gpu.sections import GROUPS

    for group in arguments.groups:
        for name, section in GROUPS[group].items():
            result = {"section": name, **run_section(section, setup)}
            with (setup.folder / RESULTS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
            print(f"{result['status']:>8}  {name} ({result['seconds']:.0f} s): {result['detail']}")
    return 0


def run_section(section: Section, setup: Setup) -> dict[str, object]:
    """Return the status of a section ("passed", "failed", "not run"), its seconds and details."""
    start = time.monotonic()
    try:
        status, detail = "passed", section(setup)
    except NotRun as reason:
        status, detail = "not run", str(reason)
    except Exception as fault:
        traceback.print_exc()
        message = " ".join(str(fault).split())[:MAX_DETAIL]
        status, detail = "failed", f"{type(fault).__name__}: {message}"
    return {"status": status, "seconds": time.monotonic() - start, "detail": detail}


if __name__ == "__main__":
    raise SystemExit(main())
