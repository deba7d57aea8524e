"""The page that shows what passed."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from typing import Any

STACK = ("torch", "transformers", "peft", "accelerate", "deepspeed", "bitsandbytes")
DRY_NOTE = (
    "**A dry run: toy sizes on a CPU.** It shows that the code of every section runs, and nothing "
    "about a GPU."
)


def format_page(results: Sequence[dict[str, Any]], *, is_dry: bool, seconds: float) -> str:
    """Return the page in Markdown, one row for each section."""
    rows = [
        f"| {each['section']} | {each['status']} | {each['seconds']:.0f} | "
        f"{str(each['detail']).replace('|', '/')} |"
        for each in results
    ]
    command = "python -m benchmarks.gpu --out FILE" + " --dry-run" * is_dry
    return "\n".join(
        [
            "# On a GPU",
            "",
            *([DRY_NOTE, ""] if is_dry else []),
            "| section | result | seconds | details |",
            "|---|---|---|---|",
            *rows,
            "",
            f"- date: {datetime.datetime.now(datetime.UTC).date()}",
            f"- hardware: {_describe_hardware(is_dry=is_dry)}",
            f"- versions: Python {platform.python_version()}, {', '.join(_versions())}",
            f"- command: `{command}`, {seconds:.0f} seconds",
            "",
        ]
    )


def read_results(page: str) -> dict[str, tuple[str, str]]:
    """Return the status and the details of each section of a page, by the section's name."""
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    return {name: (status, detail) for name, status, _, detail in rows[1:]}


def _versions() -> list[str]:
    return [f"{name} {metadata.version(name)}" for name in STACK if find_spec(name) is not None]


def _describe_hardware(*, is_dry: bool) -> str:
    cores = f"{os.cpu_count()} CPU cores"
    if is_dry:
        return cores
    import torch

    device = torch.cuda.get_device_properties(0)
    return f"{device.name}, {device.total_memory / 2**30:.0f} GiB, {cores}"
