"""A task, a strategy and a tiny base, for the tests of strategies."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from dtl.assembly.parts import Parts
from dtl.config import registry
from dtl.config.schema import Model
from dtl.data.sources.rows import Row
from dtl.models.load import LoadedModel, load_pretrained
from dtl.models.new_parameters import init_new_parameters
from dtl.models.pretrained_config import HeadConfig, load_model_config
from dtl.models.processor import get_pad_token_id, load_processor
from tests import tiny_speech, tiny_vision, tiny_whisper

TEXTS = ("the old river turns", "a letter", "one small ship carries light", "never again")
LABELS = ("early", "late", "never", "early")
ROWS = {
    "causal_lm": [{"text": text} for text in TEXTS],
    "text_classification": [
        {"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)
    ],
    "asr_ctc": [tiny_speech.row(text) for text in ("tea", "net", "moon", "sea")],
    "asr_seq2seq": tiny_whisper.spoken(4),
    "image_classification": tiny_vision.pictures(4),
}
OPTIONS = {"asr_seq2seq": {"language": "de"}}


@dataclass(frozen=True)
class Bench:
    """A task, a strategy, and the folder of a tiny base."""

    folder: Path
    task: Any
    strategy: Any
    dataset_stats: dict[str, Any]
    processor: Any
    examples: dict[str, torch.Tensor]

    @property
    def source(self) -> Model:
        return Model(path=str(self.folder))

    @property
    def parts(self) -> Parts:
        return Parts(self.task, (self.strategy,))

    def load(self, *, seed: int = 0) -> LoadedModel:
        """Return the model as a run loads it, without the strategy."""
        loaded = load_pretrained(
            self.source,
            head=HeadConfig(self.task.auto_class, self.task.head_config(self.dataset_stats)),
            random_init=self.strategy.starts_from == "random",
            seed=seed,
            dtype="fp32",
        )
        init_new_parameters(
            loaded.model, loaded.new_parameters, seed=seed, write_parameter=write_parameter
        )
        if (padding := get_pad_token_id(self.processor)) is not None:
            loaded.model.config.pad_token_id = padding
        self.task.configure_model(loaded.model, processor=self.processor)
        return loaded

    def apply(self, loaded: LoadedModel) -> Any:
        torch.manual_seed(0)
        return self.parts.apply_strategy(loaded)

    def set_training_mode(self, model: Any) -> None:
        self.parts.set_training_mode(model)

    def batch(self) -> dict[str, torch.Tensor]:
        return dict(self.examples)

    def step(self, model: Any, optimizer: Any, batch: dict[str, torch.Tensor]) -> None:
        (self.task.loss(model, batch) / 4).backward()
        optimizer.step()
        optimizer.zero_grad()

    def logits(self, model: Any) -> torch.Tensor:
        inner = model.get_base_model() if hasattr(model, "peft_config") else model
        known = set(inspect.signature(inner.forward).parameters)
        if not getattr(inner.config, "is_encoder_decoder", False):
            known -= {"labels"}  # an encoder-decoder reads them
        inputs = {name: tensor for name, tensor in self.batch().items() if name in known}
        with torch.no_grad():
            return model.eval()(**inputs).logits


def write_parameter(parameter: Any, value: torch.Tensor) -> None:
    parameter.data.copy_(value)


def plugin(folder: str, name: str, **options: Any) -> Any:
    module = registry.load(folder, name)
    return module.Plugin(module.Options(**options))


@cache
def prepare(folder: Path, name: str) -> tuple[Any, dict[str, Any], Any, dict[str, torch.Tensor]]:
    """Return a task, its dataset stats, the processor, and the rows as one batch."""
    task, source = plugin("tasks", name, **OPTIONS.get(name, {})), Model(path=str(folder))
    rows, settings = (
        [Row(n, "", row) for n, row in enumerate(ROWS[name])],
        load_model_config(source),
    )
    processor = load_processor(source, task.processor_kind)
    processor, dataset_stats = task.adapt_processor(
        processor, task.collect_dataset_stats(rows, settings)
    )
    encode = task.encoder(processor, dataset_stats, settings)
    examples = [task.transform(encode(row).values, processor=processor, rng=None) for row in rows]
    return (
        task,
        dataset_stats,
        processor,
        task.collate(examples, pad_token_id=get_pad_token_id(processor) or 0),
    )


def make_bench(folder: Path, task: str, strategy: str, **options: Any) -> Bench:
    made, dataset_stats, processor, batch = prepare(folder, task)
    return Bench(
        folder, made, plugin("strategies", strategy, **options), dataset_stats, processor, batch
    )


def trainable(model: Any) -> dict[str, Any]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def adamw(model: Any) -> Any:
    return torch.optim.AdamW(trainable(model).values(), lr=1e-3, weight_decay=0.1)


def state(model: Any) -> dict[str, torch.Tensor]:
    """Every parameter and buffer, also those that are not saved."""
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
