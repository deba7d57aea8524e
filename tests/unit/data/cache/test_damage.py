"""Damaged caches: every change of every file is found, the cache is named, and made again."""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from dtl.config.schema import Source
from dtl.core.checksums import DamagedFolder, open_intact
from dtl.data.cache.encoder import encode_rows, wait_for_encoded_data
from dtl.data.cache.feature_cache import (
    CachedFeature,
    FeatureCache,
    FeatureField,
    FeatureWriter,
    finalize_feature_cache,
)
from dtl.data.cache.row_index import open_row_index
from dtl.data.example import EncodedExample, Skip
from dtl.data.sources.rows import Row, open_rows


@dataclass(frozen=True)
class CacheKind:
    """`read`: open the cache, making it where it is absent or damaged, and read all of it."""

    name: str
    read: Callable[[Any], Any]


def read_encoded(cache):
    def encoder(row):
        if row.index % 5 == 4:
            return Skip("too long")
        values = {"input_ids": list(range(row.index + 1)), "labels": row.index % 2}
        return EncodedExample(values, row.index + 1, 1)

    rows = [Row(n, f"rows.jsonl:{n + 1}", {"dialect": f"d{n % 3}"}) for n in range(30)]
    data = encode_rows(rows, encoder, key="k", location="data.train", group_by="dialect")
    examples = [{name: np.asarray(v).tolist() for name, v in data[n].items()} for n in range(24)]
    notes = data.row_notes
    return (
        examples,
        data.groups,
        data.skipped_rows,
        notes,
        data.rows.tolist(),
        data.targets.tolist(),
    )


def read_features(cache):
    folder, fields = cache / "features" / "k", (FeatureField("states", "all", "float32", (4,)),)
    opened = open_intact(folder, FeatureCache)
    if opened is None:
        staged = folder.with_name("k.staged")
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        parts, values = [], np.arange(400, dtype="<f4").reshape(10, 10, 4)
        for part in range(2):
            with FeatureWriter(staged, fields, part=part) as writer:
                for example in range(part, 10, 2):
                    feature = CachedFeature(values[example, : example + 1], example + 1)
                    writer.add(example, {"states": feature})
            parts.append(writer.written)
        finalize_feature_cache(staged, folder, fields, parts, examples=10)
        opened = FeatureCache(folder)
    features = [opened[number]["states"] for number in range(10)]
    return [(each.values.tolist(), each.positions) for each in features]


def read_index(cache):
    cache.mkdir(exist_ok=True)
    path = cache / "train.jsonl"
    if not path.exists():
        path.write_text(
            "".join(json.dumps({"text": "x" * n, "label": "a"}) + "\n" for n in range(20))
        )
    source = Source(path=str(path), streaming=True)
    rows = open_rows(source, {})
    index = open_row_index(rows, rows.open_readers("data.train"), key="k", writes=True)
    return [index.locate(number) for number in range(20)]


KINDS = [
    CacheKind("encoded", read_encoded),
    CacheKind("features", read_features),
    CacheKind("indexed", read_index),
]


def damages(content, rng):
    """Yield what becomes of a file: flipped bits, cuts, nothing."""
    for _ in range(6 if content else 0):
        changed = bytearray(content)
        changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        yield bytes(changed)
    if content:
        yield content[: rng.randrange(len(content))]
        yield b""
    yield None


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_damaged_cache_is_named_and_made_again(cache, kind, capsys):
    """Where the damage is found while values are read, the next start makes it again."""
    expected, rng = kind.read(cache), random.Random(3)
    folder = cache / kind.name / "k"
    for name in sorted(file.name for file in folder.iterdir()):
        for damage in damages((folder / name).read_bytes(), rng):
            if damage is None:
                (folder / name).unlink()
            else:
                (folder / name).write_bytes(damage)
            try:
                found, named = kind.read(cache), capsys.readouterr().err
            except DamagedFolder as fault:
                assert not folder.exists()
                found, named = kind.read(cache), str(fault)
            assert found == expected
            assert str(folder) in named and (name in named or "checksums.json" in named)


def test_a_process_that_only_reads_waits_for_the_one_that_makes_it_again(cache):
    from concurrent.futures import ThreadPoolExecutor

    read_encoded(cache)
    (cache / "encoded" / "k" / "length.numbers").write_bytes(b"")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait_for_encoded_data, "k", timeout_seconds=30)
        read_encoded(cache)
        assert len(waiting.result()) == 24
