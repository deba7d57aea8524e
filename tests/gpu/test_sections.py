"""Every section of `python -m benchmarks.gpu` passes on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu.sections import GROUPS
from benchmarks.gpu.table import read_results

SECTIONS = [name for sections in GROUPS.values() for name in sections]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU on this machine"),
    pytest.mark.timeout(1200),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """The status and the details of each section, by its name."""
    page: Path = tmp_path_factory.mktemp("gpu") / "gpu.md"
    command.main(["--out", str(page)])
    return read_results(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("section", SECTIONS)
def test_section_passes(section: str, results: dict[str, tuple[str, str]]) -> None:
    status, detail = results[section]
    if status == "not run":
        pytest.skip(detail)
    assert status == "passed", detail
