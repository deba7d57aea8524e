"""A comparison on a real Slurm gives the table of a local one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dtl.compare.records import load_comparison
from tests.cluster.conftest import REPOSITORY, SITE, slurm, until
from tests.distributed.launching import environment
from tests.unit.compare.test_compare import deterministic_values

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
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a comparison")
    (folder / "few.yaml").write_text(CONFIG, encoding="utf-8")
    (folder / "site.yaml").write_text(SITE % 'node[2-3]", "--exclusive', encoding="utf-8")
    return folder


def compare(workdir: Path, *arguments: str, code: int = 0) -> str:
    root, cache = os.environ.get("PYTHONPATH", str(REPOSITORY)), str(workdir / "cache")
    done = subprocess.run(
        [sys.executable, "-m", "dtl", "compare", *arguments],
        cwd=workdir,
        env=environment(PYTHONPATH=root, DTL_CACHE=cache),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_table_equals_that_of_a_local_comparison(lab: Callable[..., str], workdir: Path) -> None:
    output = compare(workdir, "few.yaml", "--cluster", "site.yaml", "--time", "8min")
    searches, cells, table = (line.split(":")[0] for line in output.splitlines()[:3])
    assert "shows the results after" in output and searches < cells < table
    assert "of its jobs are pending or running" in compare(workdir, "comparisons/few", code=2)
    compare(workdir, "few.yaml", "--out", "comparisons/here")
    until(lambda: slurm("squeue", "--noheader") == "", "the end of all jobs")
    found, here = (load_comparison(workdir / "comparisons" / name) for name in ("few", "here"))
    assert deterministic_values(found) == deterministic_values(here)
    hosts = (path.read_text() for path in workdir.glob("comparisons/few/jobs/*/launches"))
    assert {line.split()[-1] for one in hosts for line in one.splitlines() if "begin" in line} == {
        "node0",
        "node1",
    }
    assert "With 1 label per class, " in compare(workdir, "comparisons/few")
    lines = [path.read_text() for path in workdir.glob("comparisons/*/cells/*/logs/terminal.log")]
    folders = re.findall(r"examples: extracted and cached in (.+)", "\n".join(lines))
    assert len(folders) == len(set(folders)) == 3, (
        "more than one run has extracted the same features"
    )
