"""The quickstart shows that transfer pays: the adapted base scores better than base and scratch."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from dtl.run.folder import RunFolder

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "quickstart.py"


@pytest.fixture(scope="module")
def quickstart() -> ModuleType:
    """benchmarks/quickstart.py, which prints the table in the README."""
    spec = importlib.util.spec_from_file_location("quickstart", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ratios(quickstart: ModuleType, folder: Path, *, seed: int, steps: int) -> dict[str, float]:
    """Perplexity of LoRA and full tuning over the better of scratch and the unadapted base."""
    scores = {
        strategy: quickstart.perplexities(strategy, seed=seed, steps=steps, folder=folder)
        for strategy in quickstart.STRATEGIES
    }
    bar = min(scores["scratch"]["adapted"], scores["lora"]["unadapted"])
    return {name: scores[name]["adapted"] / bar for name in ("lora", "full")}


@pytest.mark.slow
def test_a_few_steps_already_pay(quickstart: ModuleType, tmp_path: Path) -> None:
    found = ratios(quickstart, tmp_path, seed=0, steps=24)
    assert found["lora"] <= 0.9
    assert found["full"] <= 0.8
    run = RunFolder(tmp_path / "lora-0")
    (newest, *_) = sorted(run.checkpoints.glob("step-*"), reverse=True)
    size = sum(file.stat().st_size for file in newest.iterdir())
    assert size <= 1.2 * 12 * run.plan.parameters.trainable, "a LoRA checkpoint is small"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_lora_and_full_take_a_quarter_off(
    quickstart: ModuleType, tmp_path: Path, seed: int
) -> None:
    found = ratios(quickstart, tmp_path, seed=seed, steps=100)
    assert found["lora"] <= 0.75
    assert found["full"] <= 0.75
