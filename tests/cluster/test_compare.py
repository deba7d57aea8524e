"""A comparison in the queue of a real Slurm gives the table of one that ran here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dtl.compare.records import load_comparison
from tests.cluster.conftest import HOUSE, SITE, slurm, until
from tests.distributed.launching import environment
from tests.unit.compare.test_compare import comparison_values

CONFIG = """\
model: {path: "mini:vision"}
task: {name: image_classification, min_crop_scale: 1.0, horizontal_flip: false}
data:
  train: {path: "mini:digits/train", limit: 60}
  eval: {path: "mini:digits/heldout", limit: 30}
strategy: frozen
train: {steps: 6}
compare:
  strategies: [scratch, frozen]
  train_sizes: [1, 2]
  seeds: 1
  learning_rates: {scratch: 0.003, frozen: [0.003, 0.01]}
"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a comparison")
    (folder / "few.yaml").write_text(CONFIG, encoding="utf-8")
    (folder / "site.yaml").write_text(SITE % 'node[2-3]", "--exclusive', encoding="utf-8")
    return folder


def compare(desk: Path, *arguments: str, code: int = 0) -> str:
    house, cache = os.environ.get("PYTHONPATH", str(HOUSE)), str(desk / "cache")
    done = subprocess.run(
        [sys.executable, "-m", "dtl", "compare", *arguments],
        cwd=desk,
        env=environment(PYTHONPATH=house, DTL_CACHE=cache),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_its_table_is_that_of_this_machine(lab: Callable[..., str], desk: Path) -> None:
    told = compare(desk, "few.yaml", "--cluster", "site.yaml", "--time", "8min")
    searches, cells, table = (line.split(":")[0] for line in told.splitlines()[:3])
    assert "shows the table when" in told and searches < cells < table
    assert "of its jobs wait or run" in compare(desk, "comparisons/few", code=2)
    compare(desk, "few.yaml", "--out", "comparisons/here")
    until(lambda: slurm("squeue", "--noheader") == "", "the end of all jobs")
    found, here = (load_comparison(desk / "comparisons" / name) for name in ("few", "here"))
    assert comparison_values(found) == comparison_values(here)
    hosts = (path.read_text() for path in desk.glob("comparisons/few/jobs/*/launches"))
    assert {line.split()[-1] for one in hosts for line in one.splitlines() if "begin" in line} == {
        "node0",
        "node1",
    }
    assert "take" in compare(desk, "comparisons/few")
    told = [path.read_text() for path in desk.glob("comparisons/*/cells/*/logs/terminal.log")]
    made = re.findall(r"examples: made, and kept in (.+)", "\n".join(told))
    assert len(made) == len(set(made)) == 3, "more than one run has made the same features"
