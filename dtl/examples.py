"""The rows that a config names, encoded for its model; done once, before any process group."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from dtl.assemble import Parts
from dtl.config.schema import RunConfig
from dtl.data.encoded import EncodedData, cache_key, encode, wait_for
from dtl.data.order import order
from dtl.data.source import Row, Rows, open_rows
from dtl.mini.cache import folder as cache_folder
from dtl.models.load import load_settings, load_tokenizer, locate
from dtl.tasks import Facts

HELD_OUT_SEED = 20_000_003  # of the split, so that train.seed does not change who is held out


@dataclass(frozen=True)
class Examples:
    """Encoded data, and what the training rows said. `held_out` is None where nothing is scored."""

    train: EncodedData
    held_out: EncodedData | None
    facts: Facts
    processor: Any
    settings: Any  # the base model's config

    @property
    def data(self) -> dict[str, Any]:
        """What a run notes of its training data."""
        return {"key": self.train.key, "examples": len(self.train)}


def prepare(config: RunConfig, parts: Parts, *, writes: bool = True) -> Examples:
    """Read, survey and encode, or find it in the cache. `writes`: this process does the encoding;
    the others wait for it.

    Raises DtlError for rows at fault, each with its place.
    """
    locate(config.model)  # what needs no model is found out first: it takes no time
    train, held_out = _rows(config)
    _read_through(train)
    if held_out is not None:
        _read_through(held_out)
    settings = load_settings(config.model)
    processor = load_tokenizer(config.model)
    facts = parts.task.survey(train, settings)
    encoder = parts.task.encoder(processor, facts, settings)
    fingerprint = _fingerprint(processor)  # once: a tokenizer keeps how it was last asked to cut

    def encoded(rows: Rows | _Part, place: str) -> EncodedData:
        key = cache_key(
            rows=rows.fingerprint,
            processor=fingerprint,
            base=[getattr(settings, "max_position_embeddings", None)],
            task=config.task.model_dump(mode="json"),
            facts=facts,
        )
        return encode(rows, encoder, key=key, place=place) if writes else wait_for(key)

    return Examples(
        train=encoded(train, "data.train"),
        held_out=encoded(held_out, "data.eval") if held_out else None,
        facts=facts,
        processor=processor,
        settings=settings,
    )


def _read_through(rows: Rows | _Part) -> None:
    """Find a row that cannot be read before a library is loaded, which takes seconds; once for the
    same content."""
    mark = cache_folder() / "read" / hashlib.sha256(rows.fingerprint.encode()).hexdigest()
    if mark.exists():
        return
    for _ in rows:
        pass
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()


def _rows(config: RunConfig) -> tuple[Rows | _Part, Rows | _Part | None]:
    data = config.data
    train = open_rows(data.train, data.columns, "data.train")
    if data.eval is not None:
        return train, open_rows(data.eval, data.columns, "data.eval")
    if data.holdout is None:
        return train, None
    total = sum(1 for _ in train)
    shuffled = order(total, seed=HELD_OUT_SEED, epoch=0, global_batch=max(1, total))[0]
    chosen = frozenset(shuffled[: max(1, round(total * data.holdout))].tolist())
    return _Part(train, chosen, inside=False), _Part(train, chosen, inside=True)


@dataclass(frozen=True)
class _Part:
    """The rows of a source that are held out, or the others."""

    rows: Rows
    chosen: frozenset[int]
    inside: bool

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr((sorted(self.chosen), self.inside)).encode()).hexdigest()
        return f"{self.rows.fingerprint}/{digest}"

    def __iter__(self) -> Iterator[Row]:
        return (row for row in self.rows if (row.index in self.chosen) == self.inside)


def _fingerprint(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    special: Iterable[Any] = (
        tokenizer.chat_template,
        tokenizer.special_tokens_map,
        tokenizer.model_max_length,
    )
    return hashlib.sha256(f"{vocabulary}{special}".encode()).hexdigest()
