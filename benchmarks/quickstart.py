"""Compare LoRA and full fine-tuning of the quickstart with scratch and the unadapted base.

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
    """Return the held-out perplexity of the adapted model, and of the base where it is scored."""
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
    result = dtl.train(dtl.load_config(CONFIG, overrides), print_line=lambda line: None)
    if result.exit_code:
        raise SystemExit(f"{strategy}, seed {seed}: exit code {result.exit_code}")
    scores = result.run.result["scores"]
    return {model: score["perplexity"] for model, score in scores.items()}


def format_table(perplexities_by_strategy: dict[str, list[float]], base: float) -> list[str]:
    """Return Markdown: mean, each seed, and the ratio to the better of scratch and base."""
    reference = min(base, statistics.mean(perplexities_by_strategy["scratch"]))
    lines = ["| model | perplexity (mean) | each seed | ratio |", "|---|---|---|---|"]
    lines.append(f"| unadapted base | {base:.1f} | | {base / reference:.2f} |")
    for strategy, per_seed in perplexities_by_strategy.items():
        mean = statistics.mean(per_seed)
        seeds = ", ".join(f"{value:.1f}" for value in per_seed)
        lines.append(f"| {strategy} | {mean:.1f} | {seeds} | {mean / reference:.2f} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--write", action="store_true", help="write the table to results/")
    options = parser.parse_args()
    values: dict[str, list[float]] = {strategy: [] for strategy in STRATEGIES}
    base = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            for strategy in STRATEGIES:
                scores = perplexities(strategy, seed=seed, steps=options.steps, folder=Path(folder))
                values[strategy].append(scores["adapted"])
                base = scores.get("unadapted", base)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in STACK)
    lines = [
        "# Transfer of the quickstart",
        "",
        f"{datetime.date.today()}, {platform.machine()} CPU, Python {platform.python_version()}, "
        f"{versions}",
        "",
        f"`python benchmarks/quickstart.py --steps {options.steps} --seeds "
        f"{' '.join(map(str, options.seeds))} --write`: 200 rows of mini:graphs, {options.steps} "
        "steps of 16, scored on 101 rows of other files. The ratio is to the better of scratch "
        "and base.",
        "",
        *format_table(values, base),
    ]
    print("\n".join(lines))
    if options.write:
        (HERE / "results" / "quickstart.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
