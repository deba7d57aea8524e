"""What a step costs when only the head runs: `python -m benchmarks.features [--write]`. A minute.

A head learns on a frozen base, in one process, with and without kept features by turns: reading a
batch, forward, backward and update. Ratios of medians of the same minute, as times of a shared
machine say little. Pass: the time in which all features are made, in epochs without them.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from dtl.assembly.parts import Parts
from dtl.config.load import load_config
from dtl.config.schema import Model
from dtl.core.parallel_dims import ParallelDims
from dtl.data.loader import Loader
from dtl.engine.base import Engine
from dtl.models.locate import locate_model
from dtl.models.processor import get_pad_token_id
from dtl.prepare import preparation
from dtl.prepare.prepared_data import PreparedData
from dtl.train import optim
from dtl.train.feature_cache import use_cached_features
from dtl.train.feature_extraction import FeatureExtractor
from dtl.train.model import build_model
from dtl.train.setup import start_engine

HERE = Path(__file__).parent
TURNS, LEFT_OUT = 40, 5  # steps of each kind; the first ones build things
SETTINGS = """
strategy: {{name: frozen, cache_features: true}}
train: {{epochs: 3, global_batch: 16}}
layout: {{processes_per_node: 1, zero_stage: 0}}
run: {{name: measured, dir: {folder}}}
"""
CASES = {
    "mini:text, a sentence": """
model: {path: mini:text}
task: {name: text_classification, max_length: 64}
data: {train: mini:sentiment/train, eval: mini:sentiment/heldout}
""",
    "12 random blocks of width 512, a sentence": """
model: {path: large}
task: {name: text_classification, max_length: 64}
data: {train: mini:sentiment/train, eval: mini:sentiment/heldout}
""",
    "mini:vision, a picture": """
model: {path: mini:vision}
task: {name: image_classification, horizontal_flip: false, min_crop_scale: 1}
data: {train: mini:digits/train, eval: mini:digits/heldout}
""",
    "mini:speech, letters of a clip": """
model: {path: mini:speech}
task: asr_ctc
data: {train: mini:spoken/train, eval: mini:spoken/heldout}
""",
}


@dataclass(frozen=True)
class Measured:
    """Medians in seconds; what is kept of an example, in bytes."""

    with_base: float
    from_features: float
    making: float
    steps_an_epoch: int
    size: int


def measure(case: str, folder: Path) -> Measured:
    """Steps with and without the base, by turns, over one and the same engine."""
    if "path: large" in case:
        make_large(folder / "large")
        case = case.replace("path: large", f"path: {folder / 'large'}")
    path = folder / "config.yaml"
    path.write_text(case + SETTINGS.format(folder=folder), encoding="utf-8")
    prepared = preparation.prepare_run(load_config(path))
    config, plan, parts, examples = (
        prepared.config,
        prepared.plan,
        prepared.parts,
        prepared.data,
    )
    engine = start_engine(config, plan)
    adapted = build_model(config, plan, parts, examples, engine)
    optimizer = optim.build_optimizer(
        adapted.model,
        config.optim,
        learning_rate=1e-3,
        new_parameters=adapted.new_parameters,
        device="cpu",
        rate_factor=parts.strategy.learning_rate_factor,
    )
    engine.prepare(adapted.model, optimizer)
    source = FeatureExtractor(
        config,
        plan,
        parts,
        examples,
        engine,
        partial(parts.task.collate, pad_token_id=get_pad_token_id(examples.processor) or 0),
        check_stop=_print_nothing,
        print_line=_print_nothing,
    )
    start = time.perf_counter()
    kept_parts, kept_examples = use_cached_features(source)
    making = time.perf_counter() - start
    assert kept_parts is not parts, "the features were not kept"
    ways = [
        (some_parts, _loader(prepared.plan, engine, some_parts, some_examples))
        for some_parts, some_examples in ((parts, examples), (kept_parts, kept_examples))
    ]
    seconds: list[list[float]] = [[], []]
    for turn in range(LEFT_OUT + TURNS):
        for found, (some_parts, loader) in zip(seconds, ways, strict=True):
            start = time.perf_counter()
            _step(engine, some_parts, loader, turn + 1)
            found.append(time.perf_counter() - start)
    before, after = (statistics.median(found[LEFT_OUT:]) for found in seconds)
    size = sum(part.values.nbytes for part in kept_examples.train[0]["features"].values())
    return Measured(before, after, making, plan.steps_per_epoch, size)


def make_large(folder: Path) -> None:
    """The architecture and the tokenizer of mini:text, with more and wider blocks."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    small = locate_model(Model(path="mini:text"))
    settings = AutoConfig.from_pretrained(
        small,
        num_hidden_layers=12,
        hidden_size=512,
        intermediate_size=1536,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=64,
    )
    AutoModelForCausalLM.from_config(settings).save_pretrained(folder)
    AutoTokenizer.from_pretrained(small).save_pretrained(folder)


def _loader(plan: Any, engine: Engine, parts: Parts, examples: PreparedData) -> Loader:
    return Loader(
        data=examples.train,
        collate=partial(parts.task.collate, pad_token_id=get_pad_token_id(examples.processor) or 0),
        transform=partial(parts.task.transform, processor=examples.processor),
        batching=examples.batching,
        micro_batch=plan.layout.micro_batch,
        parallel_dims=ParallelDims(),
    )


def _step(engine: Engine, parts: Parts, loader: Loader, step: int) -> None:
    parts.set_training_mode(engine.unwrapped_model)
    engine.set_learning_rate(1.0)
    window = loader.load_step(step)
    for batch in window.batches:
        with engine.autocast():
            loss = parts.task.loss(engine.model, engine.to_device(batch.tensors))
        engine.backward(loss, targets=window.global_targets)
    engine.step()


def _print_nothing(_: str) -> None:
    return None


def table(found: dict[str, Measured]) -> list[str]:
    """Markdown."""
    lines = [
        "| base, and an example | step with the base | step from features | ratio | pass | kept |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in found.items():
        epochs = one.making / (one.with_base * one.steps_an_epoch)
        lines.append(
            f"| {name} | {one.with_base * 1e3:.1f} ms | {one.from_features * 1e3:.1f} ms | "
            f"{one.with_base / one.from_features:.1f} | {epochs:.2f} epochs | {one.size:,} bytes |"
        )
    return lines


def main() -> None:
    """Print the table, or keep it in results/."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="keep the table in results/")
    given = parser.parse_args()
    found = {}
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            os.environ["DTL_CACHE"] = f"{folder}/cache"
            found[name] = measure(case, Path(folder))
    lines = table(found)
    if given.write:
        stack = ("torch", "transformers", "accelerate")
        versions = ", ".join(f"{name} {metadata.version(name)}" for name in stack)
        text = [
            "# What a step costs when only the head runs",
            "",
            f"{datetime.date.today()}, {platform.machine()} CPU, Python "
            f"{platform.python_version()}, {versions}",
            "",
            "`python -m benchmarks.features --write`: steps of 16 examples in one process, with "
            f"and without kept features by turns, medians of {TURNS}.",
            "Ratio: how many times a step is quicker; the times are of a shared machine.",
            "Pass: the time in which the features of all examples (and held-out ones) are made,",
            "in epochs of training with the base. Kept: of the first example.",
            "",
            *lines,
        ]
        file = HERE / "results" / "features.md"
        file.write_text("\n".join(text) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
