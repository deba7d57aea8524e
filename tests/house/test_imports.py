"""Imports point down, and nothing heavy is imported before it is needed."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from time import perf_counter

import pytest
from packaging.version import Version

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "accelerate", "deepspeed", "peft", "datasets", "pyarrow", "numpy")
COMMANDS = (
    ["--help"],
    ["--version"],
    ["train", "--help"],
    ["list"],
    ["schema"],
    ["recipes", "list"],
)
# What no command can do without, and how many times longer one may take that needs no model.
BARE = "import pydantic, pydantic.types, typer.main, yaml"
TIMES, TIMES_OF_SCHEMA = 3, 4  # `dtl schema` imports every plugin


def test_imports_only_point_down():
    pytest.importorskip("importlinter")
    linted = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert linted.returncode == 0, linted.stdout + linted.stderr


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_light_commands_import_nothing_heavy(command):
    code = (
        "import sys; from dtl.cli.app import main; code = main(sys.argv[1:]); "
        f"print(code, *[name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, check=True
    )
    assert ran.stderr == "0\n"


@pytest.mark.serial
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_light_commands_answer_quickly(command):
    """The best of five counts: a busy machine slows some of them, never speeds one up."""
    times = TIMES_OF_SCHEMA if command == ["schema"] else TIMES
    limit = times * min(_seconds("-c", BARE) for _ in range(5))
    taken = []
    for _ in range(5):
        taken.append(_seconds("-m", "dtl", *command))
        if taken[-1] < limit:
            return
    pytest.fail(f"the fastest of five took {min(taken):.2f} s, and {limit:.2f} s are allowed")


def _seconds(*arguments: str) -> float:
    """Of a Python that finds what it has compiled before, as a user's does."""
    compiled = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    start = perf_counter()
    subprocess.run([sys.executable, *arguments], capture_output=True, check=True, env=compiled)
    return perf_counter() - start


def test_lowest_versions_are_the_lower_bounds_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounds = dict(re.findall(r"([\w-]+)>=([\d.]+)", " ".join(project["dependencies"])))
    lines = (ROOT / "tests" / "lowest-versions.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert {"transformers", "peft", "accelerate", "deepspeed"} <= set(pinned)
    for name, version in pinned.items():
        assert Version(version) == Version(bounds[name]), name
