"""The versions that a run depends on: packages, and the git commit."""

from __future__ import annotations

import subprocess
from importlib import metadata

PACKAGES = ("dtl", "torch", "deepspeed", "accelerate", "transformers", "peft", "bitsandbytes")


def find_package_versions() -> dict[str, str | None]:
    """Return the versions of dtl and the packages that it is built on; None: not installed."""
    return {name: _find_version(name) for name in PACKAGES}


def _find_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def find_git_commit() -> str | None:
    """Return the git commit of the current folder; None if it is not in a git checkout."""
    try:
        completed = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return completed.stdout.strip() or None
