"""The check for GPUs: its page, its numbers, and every section at toy size on a CPU."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu.child import RESULTS, run_section
from benchmarks.gpu.numbers import largest_difference
from benchmarks.gpu.sections import GROUPS
from benchmarks.gpu.setup import LLAMA_8B, NotRun, Setup
from benchmarks.gpu.speed import count_weights
from benchmarks.gpu.table import format_page, read_results

SECTIONS = [name for sections in GROUPS.values() for name in sections]


@pytest.mark.slow
def test_dry_run_passes_every_section_on_a_cpu(tmp_path: Path) -> None:
    page = tmp_path / "results" / "gpu.md"
    assert command.main(["--out", str(page), "--dry-run", "--limit-seconds", "800"]) == 0
    text = page.read_text(encoding="utf-8")
    assert "A dry run: toy sizes on a CPU" in text
    results = read_results(text)
    assert list(results) == SECTIONS
    assert {status for status, _ in results.values()} == {"passed"}, results


def test_section_that_raises_has_failed_and_says_why() -> None:
    def broken(_: Setup) -> str:
        raise AssertionError("2.0 | instead of 1.0")

    def absent(_: Setup) -> str:
        raise NotRun("bitsandbytes is not installed")

    setup = Setup(Path("nowhere"), is_dry=True)
    results = [
        {"section": section.__name__, **run_section(section, setup)} for section in (broken, absent)
    ]
    read = read_results(format_page(results, is_dry=True, seconds=1.0))
    assert read["broken"] == ("failed", "AssertionError: 2.0 / instead of 1.0")
    assert read["absent"] == ("not run", "bitsandbytes is not installed")


def test_section_without_a_result_has_failed(tmp_path: Path) -> None:
    (tmp_path / RESULTS).write_text('{"section": "optimizer offload", "status": "passed"}\n')
    setup = Setup(tmp_path, is_dry=True)
    assert command.find_missing(setup, ["offload"]) == []
    missing = command.find_missing(setup, ["commands", "offload"])
    assert [each["section"] for each in missing] == list(GROUPS["commands"])
    assert {each["status"] for each in missing} == {"failed"}


@pytest.mark.parametrize(
    ("found", "expected", "difference"),
    [
        ([1.0, 2.2], [1.0, 2.0], 0.1),
        ([1.0], [1.0, 2.0], math.inf),
        ([1.0, math.nan], [1.0, 2.0], math.inf),
        ([None], [1.0], math.inf),
    ],
)
def test_missing_and_non_finite_numbers_are_differences(
    found: list[float], expected: list[float], difference: float
) -> None:
    assert largest_difference(found, expected) == pytest.approx(difference)


def test_weights_of_the_8b_shape_are_those_of_transformers() -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**LLAMA_8B))
    matrices = [value for value in model.parameters() if value.dim() == 2]
    embeddings = LLAMA_8B["vocab_size"] * LLAMA_8B["hidden_size"]  # a table: no product
    assert count_weights(LLAMA_8B) == sum(value.numel() for value in matrices) - embeddings
