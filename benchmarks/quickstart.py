"""Does the quickstart's transfer pay off? LoRA and full tuning against scratch and the base.

    python benchmarks/quickstart.py [--seeds 0 1 2] [--steps 100] [--write]

Each strategy adapts mini:text to 200 rows of mini:graphs. Learning rates were chosen on rows 1000
to 1099 of mini:graphs/train, which no run here reads. Prints a table of held-out perplexity.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import dtl

HERE = Path(__file__).parent
CONFIG = HERE.parent / "configs" / "quickstart" / "text.yaml"
STRATEGIES = {
    "scratch": ["strategy=scratch", "optim.learning_rate=0.001"],
    "lora": ["optim.learning_rate=0.003"],
    "full": ["strategy=full", "optim.learning_rate=0.001"],
}
STACK = ("torch", "transformers", "peft", "accelerate", "deepspeed")


def perplexities(strategy: str, *, seed: int, steps: int, folder: Path) -> dict[str, float]:
    """Held-out perplexity of the adapted model, and of the unadapted base where it was scored."""
    overrides = [
        *STRATEGIES[strategy],
        f"train.steps={steps}",
        f"train.seed={seed}",
        "train.evaluate_every=null",
        "layout.processes_per_node=1",
        "layout.zero_stage=0",
        f"run.name={strategy}-{seed}",
        f"run.dir={folder}",
    ]
    outcome = dtl.train(dtl.load_config(CONFIG, overrides), say=lambda line: None)
    if outcome.exit_code:
        raise SystemExit(f"{strategy}, seed {seed}: exit code {outcome.exit_code}")
    scores = outcome.run.result["scores"]
    return {model: found["perplexity"] for model, found in scores.items()}


def table(found: dict[str, list[float]], base: float) -> list[str]:
    """Markdown: mean over seeds, each seed, and the ratio to the better of scratch and base."""
    bar = min(base, statistics.mean(found["scratch"]))
    lines = ["| model | perplexity (mean) | each seed | ratio |", "|---|---|---|---|"]
    lines.append(f"| unadapted base | {base:.1f} | | {base / bar:.2f} |")
    for strategy, each in found.items():
        mean = statistics.mean(each)
        seeds = ", ".join(f"{value:.1f}" for value in each)
        lines.append(f"| {strategy} | {mean:.1f} | {seeds} | {mean / bar:.2f} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--write", action="store_true", help="keep the table in results/")
    given = parser.parse_args()
    found: dict[str, list[float]] = {strategy: [] for strategy in STRATEGIES}
    base = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for seed in given.seeds:
            for strategy in STRATEGIES:
                scores = perplexities(strategy, seed=seed, steps=given.steps, folder=Path(folder))
                found[strategy].append(scores["adapted"])
                base = scores.get("unadapted", base)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in STACK)
    lines = [
        "# The quickstart's transfer",
        "",
        f"{datetime.date.today()}, {platform.machine()} CPU, Python {platform.python_version()}, "
        f"{versions}",
        "",
        f"`python benchmarks/quickstart.py --steps {given.steps} --seeds "
        f"{' '.join(map(str, given.seeds))} --write`: 200 rows of mini:graphs, {given.steps} steps "
        "of 16, scored on 101 rows of other files. The ratio is to the better of scratch and base.",
        "",
        *table(found, base),
    ]
    print("\n".join(lines))
    if given.write:
        (HERE / "results" / "quickstart.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
