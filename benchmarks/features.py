"""Measure steps with and without cached features: `python -m benchmarks.features [--write]`.

A head is trained on a frozen base in one process. Steps with and without cached features alternate:
loading a batch, forward, backward and update. Only ratios of medians of the same minute are
comparable, because the machine is shared. Extraction: the time to extract all features, in epochs
without a cache. It takes a minute.
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
from dtl.prepare import prepared_run
from dtl.prepare.prepared_data import PreparedData
from dtl.train import optim
from dtl.train.features.cache import use_cached_features
from dtl.train.features.extraction import FeatureExtractor
from dtl.train.model import build_model
from dtl.train.setup import start_engine

HERE = Path(__file__).parent
STEPS, WARMUP_STEPS = 40, 5  # of each kind
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
    "mini:vision, an image": """
model: {path: mini:vision}
task: {name: image_classification, horizontal_flip: false, min_crop_scale: 1}
data: {train: mini:digits/train, eval: mini:digits/heldout}
""",
    "mini:speech, characters of a clip": """
model: {path: mini:speech}
task: asr_ctc
data: {train: mini:spoken/train, eval: mini:spoken/heldout}
""",
}


@dataclass(frozen=True)
class Measurement:
    """Median seconds per step, seconds of extraction, and cached bytes per example."""

    with_base: float
    from_features: float
    extraction: float
    steps_per_epoch: int
    bytes_per_example: int


def measure(case: str, folder: Path) -> Measurement:
    """Measure steps with and without the base, alternating, with the same engine."""
    if "path: large" in case:
        save_large_model(folder / "large")
        case = case.replace("path: large", f"path: {folder / 'large'}")
    path = folder / "config.yaml"
    path.write_text(case + SETTINGS.format(folder=folder), encoding="utf-8")
    prepared = prepared_run.prepare_run(load_config(path))
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
        rate_factor=parts.strategy.learning_rate_factor,
    )
    engine.prepare(adapted.model, optimizer)
    extractor = FeatureExtractor(
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
    cached_parts, cached_data = use_cached_features(extractor)
    extraction = time.perf_counter() - start
    assert cached_parts is not parts, "the features were not cached"
    variants = [
        (some_parts, _loader(prepared.plan, engine, some_parts, some_examples))
        for some_parts, some_examples in ((parts, examples), (cached_parts, cached_data))
    ]
    seconds: list[list[float]] = [[], []]
    for step in range(WARMUP_STEPS + STEPS):
        for times, (some_parts, loader) in zip(seconds, variants, strict=True):
            start = time.perf_counter()
            _step(engine, some_parts, loader, step + 1)
            times.append(time.perf_counter() - start)
    before, after = (statistics.median(times[WARMUP_STEPS:]) for times in seconds)
    size = sum(feature.values.nbytes for feature in cached_data.train[0]["features"].values())
    return Measurement(before, after, extraction, plan.steps_per_epoch, size)


def save_large_model(folder: Path) -> None:
    """Save a model with the architecture and tokenizer of mini:text, with more and wider blocks."""
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
    batches = loader.load_step(step)
    for batch in batches.batches:
        with engine.autocast():
            loss = parts.task.loss(engine.model, engine.to_device(batch.tensors))
        engine.backward(loss, targets=batches.global_targets)
    engine.step()


def _print_nothing(_: str) -> None:
    return None


def format_table(measurements: dict[str, Measurement]) -> list[str]:
    """Return the table as Markdown."""
    lines = [
        "| base, and an example | step with base | with features | ratio | extraction | cached |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in measurements.items():
        epochs = one.extraction / (one.with_base * one.steps_per_epoch)
        lines.append(
            f"| {name} | {one.with_base * 1e3:.1f} ms | {one.from_features * 1e3:.1f} ms | "
            f"{one.with_base / one.from_features:.1f} | {epochs:.2f} epochs | "
            f"{one.bytes_per_example:,} bytes |"
        )
    return lines


def main() -> None:
    """Print the table, and with --write save it in results/."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the table to results/")
    options = parser.parse_args()
    measurements = {}
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            os.environ["DTL_CACHE"] = f"{folder}/cache"
            measurements[name] = measure(case, Path(folder))
    lines = format_table(measurements)
    if options.write:
        stack = ("torch", "transformers", "accelerate")
        versions = ", ".join(f"{name} {metadata.version(name)}" for name in stack)
        text = [
            "# Cost of a step with cached features",
            "",
            f"{datetime.date.today()}, {platform.machine()} CPU, Python "
            f"{platform.python_version()}, {versions}",
            "",
            "`python -m benchmarks.features --write`: steps of 16 examples in one process, with "
            f"and without cached features, alternating, medians of {STEPS}.",
            "Ratio: how many times faster a step is; the machine is shared.",
            "Extraction: the time to extract the features of all examples (and held-out ones),",
            "in epochs of training with the base. Cached: of the first example.",
            "",
            *lines,
        ]
        file = HERE / "results" / "features.md"
        file.write_text("\n".join(text) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
