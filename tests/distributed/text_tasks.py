"""Data and bases of text tasks: taggers, summarizers, preferences."""

from __future__ import annotations

from pathlib import Path

from tests import tiny
from tests.distributed.layouts import BATCH, RATE

TEXT_STEPS, TEXT_HELD_OUT = 4, 9  # in batches of 2: with two ranks, one has nothing at the end
TAGS = f"""
model: {{path: tagger, dtype: fp32}}
task: {{name: token_classification, max_length: 48}}
data: {{train: tagged.jsonl, eval: tagged_held_out.jsonl}}
strategy: full
optim: {{learning_rate: {RATE}, warmup: 0}}
train: {{steps: {TEXT_STEPS}, global_batch: {BATCH}, evaluation_batch: 2}}
"""
SUMMARY = f"""
model: {{path: summarizer, dtype: fp32}}
task: {{name: seq2seq, source_prefix: "shorten: ", max_new_tokens: 16}}
data: {{train: summaries.jsonl, eval: summaries_held_out.jsonl}}
strategy: full
optim: {{learning_rate: {RATE}, warmup: 0}}
train: {{steps: {TEXT_STEPS}, global_batch: {BATCH}, evaluation_batch: 2}}
"""
PAIRS = f"""
model: {{path: base, dtype: fp32}}
task: {{name: dpo, beta: 0.5, max_length: 64}}
data: {{train: pairs.jsonl, eval: pairs_held_out.jsonl}}
strategy: lora
optim: {{learning_rate: {RATE}, warmup: 0, gradient_clip: null}}
train: {{steps: {TEXT_STEPS}, global_batch: {BATCH}, evaluation_batch: 2}}
"""


# The other tasks on the same pairs.
PAIR_OPTIONS = {
    "ipo": "beta: 0.5",
    "cpo": "beta: 0.5, sft_weight: 0.5",
    "simpo": "gamma: 0.5",
    "orpo": "beta: 0.5",
}
JUDGED = PAIRS.replace("dpo", "kto").replace("pairs", "judged")
REWARD = PAIRS.replace("dpo, beta: 0.5", "reward, center_rewards_coefficient: 0.01")
EMBEDDING = f"""
model: {{path: encoder, dtype: fp32}}
task: {{name: embedding, max_length: 16, temperature: 0.1}}
data: {{train: searched.jsonl, eval: searched_held_out.jsonl}}
strategy: full
optim: {{learning_rate: {RATE}, warmup: 0, gradient_clip: null}}
train: {{steps: {TEXT_STEPS}, global_batch: {BATCH}, evaluation_batch: 2}}
"""
# Tasks that are compared on fewer layouts, and the strategy of each.
PREFERENCE_TASKS = {
    **dict.fromkeys((*PAIR_OPTIONS, "kto", "reward"), "lora"),
    "embedding": "full",
}
LABEL_SETS = f"""
model: {{path: labeler, dtype: fp32}}
task:
  name: text_classification
  problem_type: multi_label_classification
  class_weights: balanced
  focal_gamma: 1
data: {{train: label_sets.jsonl, eval: label_sets_held_out.jsonl}}
strategy: full
optim: {{learning_rate: {RATE}, warmup: 0}}
train: {{steps: {TEXT_STEPS}, global_batch: {BATCH}, evaluation_batch: 2}}
"""
NUMBERS = f"""
model: {{path: regressor, dtype: fp32}}
task: {{name: text_classification, problem_type: regression, labels: [words, labels]}}
data: {{train: numbers.jsonl, eval: numbers_held_out.jsonl}}
strategy: full
optim: {{learning_rate: {RATE}, warmup: 0}}
train: {{steps: {TEXT_STEPS}, global_batch: {BATCH}, evaluation_batch: 2}}
"""


def write_text_tasks(folder: Path) -> None:
    """Write configs, rows, and bases that have learned a little of them. Once is enough."""
    if (folder / "pairs.yaml").exists():
        return
    (folder / "tags.yaml").write_text(TAGS)
    (folder / "summary.yaml").write_text(SUMMARY)
    tiny.write_rows(folder / "pairs.jsonl", tiny.pairs(53, seed=1))
    tiny.write_rows(folder / "pairs_held_out.jsonl", tiny.pairs(TEXT_HELD_OUT, seed=2))
    tagged, summaries = tiny.tagged(53, seed=1), tiny.shortened(53, seed=1)
    for name, rows in {"tagged": tagged, "summaries": summaries}.items():
        tiny.write_rows(folder / f"{name}.jsonl", rows)
        # The base has seen six of these, so that it is partly right.
        tiny.write_rows(folder / f"{name}_held_out.jsonl", rows[:TEXT_HELD_OUT])
    tiny.encoder(folder / "untrained-tagger")
    tiny.teach_tags(folder / "untrained-tagger", tagged[:6], folder / "tagger")
    tiny.t5(folder / "untrained-summarizer")
    tiny.teach_summaries(folder / "untrained-summarizer", summaries[:6], folder / "summarizer")
    for task, options in PAIR_OPTIONS.items():
        text = PAIRS.replace("name: dpo, beta: 0.5", f"name: {task}, {options}")
        (folder / f"{task}.yaml").write_text(text)
    for task, text in {"kto": JUDGED, "reward": REWARD, "embedding": EMBEDDING}.items():
        (folder / f"{task}.yaml").write_text(text)
    for name, make in {"judged": tiny.judged, "searched": tiny.searched}.items():
        tiny.write_rows(folder / f"{name}.jsonl", make(53, seed=1))
        tiny.write_rows(folder / f"{name}_held_out.jsonl", make(TEXT_HELD_OUT, seed=2))
    _write_classifiers(folder)
    (folder / "pairs.yaml").write_text(PAIRS)


def _write_classifiers(folder: Path) -> None:
    (folder / "label_sets.yaml").write_text(LABEL_SETS)
    (folder / "numbers.yaml").write_text(NUMBERS)
    for name, make in {"label_sets": tiny.label_sets, "numbers": tiny.numbered}.items():
        tiny.write_rows(folder / f"{name}.jsonl", make(53, seed=1))
        tiny.write_rows(folder / f"{name}_held_out.jsonl", make(TEXT_HELD_OUT, seed=2))
    base = folder / "untrained-tagger"
    names = tuple(sorted(tiny.LABELS))
    tiny.classifier(base, names, "multi_label_classification", folder / "labeler")
    tiny.classifier(base, ("words", "labels"), "regression", folder / "regressor")
