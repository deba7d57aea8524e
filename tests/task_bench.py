"""A tiny model and rows for every task, as its trials need them.

A new file in dtl/tasks/ needs an entry in CASES.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from dtl.config import registry
from dtl.config.schema import Model
from dtl.data.example import EncodedExample
from dtl.data.sources.rows import Row
from dtl.models.load import load_pretrained
from dtl.models.new_parameters import init_new_parameters
from dtl.models.pretrained_config import HeadConfig, load_model_config
from dtl.models.processor import get_pad_token_id, load_processor, set_pad_token_id
from tests import tiny, tiny_sound, tiny_speech, tiny_vision, tiny_whisper


@dataclass(frozen=True)
class Case:
    """A tiny model and rows for a task. `base`: a fixture; `rows`: uneven in length, and the last
    one is the longest; `classes`: between how many a head of zeros is undecided, or None where the
    loss is not that of a choice."""

    base: str
    rows: tuple[dict[str, Any], ...]
    classes: int | None
    options: dict[str, Any]


def make_text_rows(count: int) -> tuple[dict[str, Any], ...]:
    draw = random.Random(3)
    rows = [{"text": tiny.sentence(draw, 12)} for _ in range(count - 1)]
    return (*rows, {"text": " ".join(tiny.WORDS[:20])})


def make_labeled_rows(count: int) -> tuple[dict[str, Any], ...]:
    labels = ["early", "late", "never"]
    return tuple(
        {"text": f"{labels[index % 3]} {row['text']}", "label": labels[index % 3]}
        for index, row in enumerate(make_text_rows(count))
    )


def make_label_set_rows(count: int) -> tuple[dict[str, Any], ...]:
    """Each row has none, one or two of the labels."""
    sets = [["early"], ["early", "late"], [], ["never"], ["late", "never"]]
    return tuple(
        {"text": f"{' '.join(sets[index % 5])} {row['text']}", "label": sets[index % 5]}
        for index, row in enumerate(make_text_rows(count))
    )


def with_numbers(rows: Iterable[dict[str, Any]], *, size: int = 1) -> tuple[dict[str, Any], ...]:
    """Return the rows with one or several numbers instead of a class."""
    numbers = [[round(math.sin(index + place), 3) for place in range(size)] for index in range(99)]
    return tuple(
        {**row, "label": number if size > 1 else number[0]}
        for row, number in zip(rows, numbers, strict=False)
    )


def make_tagged_rows(count: int) -> tuple[dict[str, Any], ...]:
    return tuple(tiny.tag(row["text"]) for row in make_text_rows(count))


def make_summary_rows(count: int) -> tuple[dict[str, Any], ...]:
    return tuple(tiny.shorten(row["text"]) for row in make_text_rows(count))


def make_preference_rows(count: int) -> tuple[dict[str, Any], ...]:
    return tuple(
        {"prompt": row["text"], "chosen": f" {word} again", "rejected": f" {other} and {word}"}
        for row, word, other in zip(make_text_rows(count), tiny.WORDS, tiny.WORDS[9:], strict=False)
    )


def make_judged_rows(count: int) -> tuple[dict[str, Any], ...]:
    return tuple(
        {"prompt": row["text"], "completion": f" {word} again", "label": index % 2 == 0}
        for index, (row, word) in enumerate(zip(make_text_rows(count), tiny.WORDS, strict=False))
    )


def make_scored_rows(count: int) -> tuple[dict[str, Any], ...]:
    return tuple(
        {"prompt": row["text"], "completion": f" {word}", "score": index / 4 - 1}
        for index, (row, word) in enumerate(zip(make_text_rows(count), tiny.WORDS, strict=False))
    )


def make_retrieval_rows(count: int) -> tuple[dict[str, Any], ...]:
    return tuple(
        {"anchor": word, "positive": f"{row['text']} {word}", "negative": row["text"]}
        for row, word in zip(make_text_rows(count), tiny.WORDS[5:], strict=False)
    )


PROMPT_ROWS = tuple(
    {"prompt": f"{row['text']} ?", "completion": f" {tiny.WORDS[index]} {row['text']}"}
    for index, row in enumerate(make_text_rows(9))
)
CASES: dict[str, list[Case]] = {
    "asr_ctc": [
        Case("wav2vec2", tuple(tiny_speech.transcribed(9)), classes=None, options={}),
        Case("wav2vec2_bert", tuple(tiny_speech.transcribed(9)), classes=None, options={}),
    ],
    "audio_classification": [
        Case("wav2vec2", tuple(tiny_sound.tones(9)), classes=3, options={}),
        Case("spectrogram", tuple(tiny_sound.tones(9)), classes=3, options={}),
        Case(
            "wav2vec2",
            with_numbers(tiny_sound.tones(9), size=2),
            classes=None,
            options={"problem_type": "regression", "labels": ("valence", "arousal")},
        ),
    ],
    "causal_lm": [
        Case("decoder", make_text_rows(9), classes=320, options={}),
        Case("tied_decoder", PROMPT_ROWS, classes=None, options={"max_length": 64}),
    ],
    "dpo": [
        Case("decoder", make_preference_rows(9), classes=2, options={"beta": 1.0}),
        Case("tied_decoder", make_preference_rows(9), classes=None, options={"beta": 1.0}),
    ],
    "ipo": [Case("decoder", make_preference_rows(9), classes=None, options={"beta": 1.0})],
    "cpo": [Case("decoder", make_preference_rows(9), classes=None, options={})],
    "simpo": [Case("decoder", make_preference_rows(9), classes=None, options={})],
    "kto": [Case("decoder", make_judged_rows(9), classes=None, options={"beta": 5.0})],
    "orpo": [Case("decoder", make_preference_rows(9), classes=None, options={})],
    "embedding": [
        Case("encoder", make_retrieval_rows(9), classes=None, options={}),
        Case("decoder", make_retrieval_rows(9), classes=None, options={"pooling": "last"}),
    ],
    "reward": [
        Case("decoder", make_preference_rows(9), classes=None, options={}),
        Case("encoder", make_scored_rows(9), classes=None, options={"objective": "scalar"}),
    ],
    "text_classification": [
        Case("encoder", make_labeled_rows(9), classes=3, options={}),
        Case("decoder", make_labeled_rows(9), classes=3, options={}),
        Case(
            "encoder",
            make_label_set_rows(9),
            classes=2,
            options={"problem_type": "multi_label_classification"},
        ),
        Case(
            "decoder",
            make_label_set_rows(9),
            classes=None,
            options={
                "problem_type": "multi_label_classification",
                "class_weights": "balanced",
                "focal_gamma": 2.0,
                "threshold": {"late": 0.4},
            },
        ),
        Case(
            "encoder",
            with_numbers(make_text_rows(9)),
            classes=None,
            options={"problem_type": "regression"},
        ),
        Case(
            "encoder",
            make_labeled_rows(9),
            classes=None,
            options={"class_weights": {"early": 3.0}, "focal_gamma": 1.0},
        ),
    ],
    "token_classification": [
        Case("encoder", make_tagged_rows(9), classes=4, options={}),
        Case("decoder", make_tagged_rows(9), classes=5, options={"label_all_tokens": True}),
    ],
    "image_classification": [
        Case("vit", tuple(tiny_vision.pictures(9)), classes=3, options={}),
        Case("resnet", tuple(tiny_vision.pictures(9)), classes=3, options={}),
        Case(
            "vit",
            tuple({**row, "label": [row["label"]]} for row in tiny_vision.pictures(9)),
            classes=2,
            options={"problem_type": "multi_label_classification"},
        ),
    ],
    "seq2seq": [
        Case("t5", make_summary_rows(9), classes=320, options={"max_new_tokens": 24}),
        Case(
            "bart", make_summary_rows(9), classes=None, options={"metric": "bleu", "num_beams": 2}
        ),
    ],
    "asr_seq2seq": [
        Case("whisper", tiny_whisper.spoken(9), classes=None, options={"language": "de"}),
        Case("english_whisper", tiny_whisper.spoken(9), classes=None, options={"num_beams": 2}),
        Case("speech_to_text", tiny_whisper.spoken(9), classes=320, options={}),
    ],
}
TRIALS = [(name, index) for name in CASES for index in range(len(CASES[name]))]


@dataclass(frozen=True)
class Bench:
    """A task with its model, and its examples as the cache would give them."""

    task: Any
    model: Any
    dataset_stats: dict[str, Any]
    processor: Any
    encoded: list[EncodedExample]
    longest: int

    def values(self, index: int) -> dict[str, Any]:
        """Return the values of an example, with those of the next one where the task reads them."""
        values = self.encoded[index].values
        if not self.task.reads_partner:
            return values
        return {**values, "partner": self.encoded[(index + 1) % len(self.encoded)].values}

    def collate(self, indices: list[int]) -> dict[str, torch.Tensor]:
        shown = [
            self.task.transform(self.values(index), processor=self.processor, rng=None)
            for index in indices
        ]
        return self.task.collate(shown, pad_token_id=get_pad_token_id(self.processor) or 0)

    def loss(self, indices: list[int]) -> float:
        """Return the loss of some examples of the global batch, which has all."""
        with torch.no_grad():
            return self.task.loss(self.model, self.collate(indices) | self.shared(indices)).item()

    def shared(self, indices: list[int]) -> dict[str, torch.Tensor]:
        """Return what the loss of some examples reads of the global batch."""
        if not self.task.reads_global_batch:
            return {}
        values = self.task.global_values(self.model, self.collate(self.all))
        return {
            name: value[indices] for name, value in self.task.combine_global_values(values).items()
        }

    def eval_records(self, indices: list[int]) -> list[dict[str, Any]]:
        with torch.no_grad():
            return self.task.eval_records(
                self.model, self.collate(indices), processor=self.processor
            )

    def joined_records(self, indices: list[int]) -> list[dict[str, Any]]:
        """Return the records of some examples, as if no others were held out."""
        return self.task.join_records(self.eval_records(indices))

    @property
    def all(self) -> list[int]:
        return list(range(len(self.encoded)))


def make_task(name: str, **options: Any) -> Any:
    module = registry.load("tasks", name)
    return module.Plugin(module.Options(**options))


def make_rows(fields: tuple[dict[str, Any], ...] | list[dict[str, Any]]) -> list[Row]:
    return [Row(index, f"rows.jsonl:{index + 1}", row) for index, row in enumerate(fields)]


@cache
def make_bench(folder: Path, name: str, index: int) -> Bench:
    case = CASES[name][index]
    task = make_task(name, **case.options)
    source = Model(path=str(folder))
    processor, settings = load_processor(source, task.processor_kind), load_model_config(source)
    rows = make_rows(case.rows)
    processor, dataset_stats = task.adapt_processor(
        processor, task.collect_dataset_stats(rows, settings)
    )
    assert json.loads(json.dumps(dataset_stats)) == dataset_stats
    loaded = load_with_new_parameters(source, task, dataset_stats)
    if (padding := get_pad_token_id(processor)) is not None:
        set_pad_token_id(loaded.model.config, padding)
    task.configure_model(loaded.model, processor=processor)
    model = add_adapter(loaded.model) if task.compares_with_base else loaded.model
    encode = task.encoder(processor, dataset_stats, settings)
    encoded = [encode(row) for row in rows]
    assert all(isinstance(example, EncodedExample) for example in encoded)
    longest = task.max_length(processor, dataset_stats, settings)
    return Bench(task, model.eval(), dataset_stats, processor, encoded, longest)


def load_with_new_parameters(source: Model, task: Any, dataset_stats: dict[str, Any]) -> Any:
    """Return the base with the head of a task, whose new parameters are drawn, in fp32."""
    loaded = load_pretrained(
        source,
        head=HeadConfig(task.auto_class, task.head_config(dataset_stats)),
        random_init=False,
        seed=0,
        dtype="fp32",
    )
    init_new_parameters(
        loaded.model,
        loaded.new_parameters,
        seed=0,
        write_parameter=lambda p, value: p.data.copy_(value),
    )
    return loaded


def add_adapter(model: Any) -> Any:
    """A small adapter, for tasks that compare with the base beside it."""
    torch.manual_seed(0)
    lora = registry.load("strategies", "lora")
    return lora.Plugin(lora.Options(rank=4)).apply(model, new_parameters=frozenset())
