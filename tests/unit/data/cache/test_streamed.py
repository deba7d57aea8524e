"""Streamed rows give the same run as encoded rows, and resume exactly."""

from __future__ import annotations

import json
import os
import random
import time

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file

from dtl.assembly.parts import assemble
from dtl.config.load import load_config
from dtl.config.schema import Source
from dtl.core.errors import DtlError, RankFailed
from dtl.core.parallel_dims import ParallelDims
from dtl.data.loader import Loader
from dtl.data.sources import digests
from dtl.data.sources import rows as source
from dtl.inspect.audit import audit_run
from dtl.prepare import prepared_run
from dtl.prepare.prepared_data import prepare_data
from tests import tiny, tiny_sound, tiny_speech
from tests.unit.jobs.test_adapter_runs import train_in_this_process

EMPTY_ROW = {"text": ""}  # is skipped


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DTL_CACHE", str(tmp_path_factory.mktemp("cache")))
        folder = tmp_path_factory.mktemp("streamed")
        tiny.write_texts(folder / "rows.jsonl", 23)
        tiny.write_texts(folder / "held_out.jsonl", 5, seed=2)
        tiny.write_labelled(folder / "labelled.jsonl", 23)
        yield folder


def configure(folder, base, name, *overrides, task="causal_lm", rows="rows.jsonl", streaming=True):
    config = {
        "run": {"dir": str(folder / "runs"), "name": name},
        "model": {"path": str(base), "dtype": "fp32"},
        "task": task,
        "data": {
            "train": {"path": str(folder / rows), "streaming": streaming},
            "eval": str(folder / "held_out.jsonl"),
        },
        "strategy": "lora",
        "optim": {"learning_rate": 0.03},
        "train": {"steps": 6, "global_batch": 8, "packing": False},  # as streamed rows are
        "layout": {"processes_per_node": 1, "zero_stage": 0, "micro_batch": 3},
    }
    (folder / f"{name}.yaml").write_text(json.dumps(config))
    return load_config(folder / f"{name}.yaml", list(overrides))


def comparable_metrics(run):
    """Return the metrics of a run without times and memory."""
    ignored = ("seconds", "tokens_per_second", "memory_bytes", "bytes")
    lines = (line for line in run.read_metrics() if line["kind"] != "save")
    return [{k: v for k, v in line.items() if k not in ignored} for line in lines]


def load_weights(run):
    return load_file(run.export / "adapter_model.safetensors")


def equal_weights(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def streamed(folder, decoder):
    """Two epochs, in micro-batches of 3, the last global batch of each smaller."""
    return train_in_this_process(configure(folder, decoder, "streamed"))


def test_streamed_run_is_bitwise_equal_to_encoded_run(folder, decoder, streamed):
    encoded = train_in_this_process(configure(folder, decoder, "encoded", streaming=False))
    assert comparable_metrics(streamed) == comparable_metrics(encoded)
    assert [line["epoch"] for line in comparable_metrics(streamed) if line["kind"] == "train"] == [
        0
    ] * 3 + [1] * 3
    assert equal_weights(load_weights(streamed), load_weights(encoded))
    assert audit_run(streamed).fault is None


def test_resumed_streamed_run_is_bitwise_equal(folder, decoder, streamed):
    config = configure(folder, decoder, "resumed")
    stopped = train_in_this_process(
        config, stop_after=3
    )  # also checked before each evaluation batch
    assert 0 < stopped.last_step < 6
    assert equal_weights(load_weights(train_in_this_process(config)), load_weights(streamed))
    assert audit_run(stopped).fault is None


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_read_disjoint_parts_of_the_global_batches(folder, decoder, ranks):
    config = configure(folder, decoder, f"shares-{ranks}")
    parts = assemble(config)
    examples = prepare_data(config, parts)

    def step_batches(ranks, step):
        return [
            Loader(
                examples.train,
                lambda rows: {"count": torch.tensor(len(rows))},
                examples.batching,
                micro_batch=2,
                parallel_dims=ParallelDims(ranks, rank),
            ).load_step(step)
            for rank in range(ranks)
        ]

    for step in range(1, 7):
        (alone,), shared = step_batches(1, step), step_batches(ranks, step)
        read = [id_ for batches in shared for batch in batches.batches for id_ in batch.ids]
        assert sorted(read) == sorted(alone.global_ids.tolist())
        assert sum(batches.global_targets for batches in shared) == alone.global_targets
        assert sum(batches.global_length for batches in shared) == alone.global_length
        assert len({len(batches.batches) for batches in shared}) == 1
        assert all(len(batch.ids) <= 2 for batches in shared for batch in batches.batches)


def test_row_is_encoded_only_in_its_step(folder, decoder, monkeypatch):
    """Each row is read once for the index; after that, a step reads only its own rows."""
    tiny.write_texts(folder / "many.jsonl", 400, seed=9)
    seen = []
    validate_row = source.Rows.validate_row
    monkeypatch.setattr(
        source.Rows,
        "validate_row",
        lambda self, *args: seen.append(args) or validate_row(self, *args),
    )
    config = configure(folder, decoder, "many", "data.eval=null", rows="many.jsonl")
    prepared = prepared_run.prepare_run(config)
    assert len(seen) == 401  # the first row is also validated when the file is opened
    seen.clear()
    again = prepared_run.prepare_run(config)  # from the index
    assert (len(seen), again.data.train.key) == (1, prepared.data.train.key)
    seen.clear()
    streamed_examples = again.data.train.read_examples(np.array([399, 7, 120]))
    assert [at[0] for at in seen] == [7, 120, 399] and len(streamed_examples.ids) == 3


def test_planner_uses_the_longest_possible_row(folder, decoder):
    config = configure(folder, decoder, "planned", "task.max_length=40")
    prepared = prepared_run.prepare_run(config)
    assert set(prepared.data.train.lengths.tolist()) == {40}


def test_labels_are_collected_once(folder, encoder, monkeypatch):
    config = configure(
        folder,
        encoder,
        "labels",
        "data.eval=null",
        task="text_classification",
        rows="labelled.jsonl",
    )
    dataset_stats = prepare_data(config, assemble(config)).dataset_stats
    assert (
        dataset_stats["labels"] == sorted(dataset_stats["labels"])
        and len(dataset_stats["labels"]) > 1
    )
    parts = assemble(config)
    monkeypatch.setattr(type(parts.task), "collect_dataset_stats", None)  # it would fail
    assert prepare_data(config, parts, writes=False).dataset_stats == dataset_stats


def test_held_out_rows_are_none_of_those_streamed(folder, decoder):
    config = configure(folder, decoder, "split", "data.eval=null", "data.eval_fraction=0.2")
    examples = prepare_data(config, assemble(config))
    encoded_config = configure(
        folder,
        decoder,
        "encoded_config",
        "data.eval=null",
        "data.eval_fraction=0.2",
        streaming=False,
    )
    encoded = prepare_data(encoded_config, assemble(encoded_config))
    assert (len(examples.train), len(examples.held_out)) == (18, 5)
    for number in range(18):
        streamed_examples = examples.train.read_examples(np.array([number]))
        expected = encoded.train[number]
        assert {name: list(value) for name, value in streamed_examples[number].items()} == {
            name: list(value) for name, value in expected.items()
        }
    assert examples.train.key == encoded.train.key


def test_skipped_rows_are_counted_and_listed_once(folder, decoder, capsys):
    """Three of 8 rows are empty: they do not count, and a batch of only empty rows is skipped."""
    good = [{"text": tiny.sentence(random.Random(n), 9)} for n in range(5)]
    tiny.write_rows(folder / "gaps.jsonl", [EMPTY_ROW, *good[:2], EMPTY_ROW, *good[2:], EMPTY_ROW])
    overrides = ("train.global_batch=2", "train.steps=8", "data.eval=null", "layout.micro_batch=1")
    run = train_in_this_process(configure(folder, decoder, "gaps", *overrides, rows="gaps.jsonl"))
    message = capsys.readouterr().out
    places = [f"{folder / 'gaps.jsonl'}:{line}" for line in (1, 4, 8)]
    listed = list(run.read_skipped_rows())
    assert sorted(line["location"] for line in listed) == places
    assert {(line["source"], line["reason"]) for line in listed} == {("data.train", "empty text")}
    assert message.count("skipped (empty text)") == 1 and "skipped: 3 rows" in message
    steps = [line for line in run.read_metrics() if line["kind"] == "train"]
    assert sum(line.get("skipped_rows", 0) for line in steps) == 6
    empty = [line["step"] for line in steps if line.get("skipped_rows") == 2]
    skipped = [line["step"] for line in run.read_metrics() if line["kind"] == "skip"]
    assert skipped == empty
    assert all((line["targets"] == 0) == (line["loss"] is None) for line in steps)
    examples = prepare_data(
        configure(folder, decoder, "gaps", *overrides, rows="gaps.jsonl"), assemble(run.config)
    )
    streamed_examples = examples.train.read_examples(np.array([0, 3]))
    assert (
        len(streamed_examples.ids),
        streamed_examples.shortest_example,
        len(streamed_examples.skipped_rows),
    ) == (0, 1, 2)


def test_changed_file_is_an_error_with_its_name(folder, decoder):
    tiny.write_texts(folder / "changing.jsonl", 9)
    config = configure(folder, decoder, "changing", "data.eval=null", rows="changing.jsonl")
    examples = prepare_data(config, assemble(config))
    tiny.write_texts(folder / "changing.jsonl", 9, seed=3)
    with pytest.raises(
        RankFailed, match=r"changing\.jsonl: the file has changed since the run was started"
    ):
        examples.train.read_examples(np.arange(9))


def test_file_digest_is_cached_until_the_file_changes(folder, tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n')

    def fingerprint(streaming=True):
        return source.open_rows(Source(path=str(path), streaming=streaming), {}).fingerprint

    monkeypatch.setattr(digests, "MIN_FILE_AGE_SECONDS", -1.0)
    first = fingerprint()
    assert first == fingerprint(streaming=False)
    with monkeypatch.context() as patch:
        patch.setattr(digests, "_digest_file", None)  # a call would fail
        assert fingerprint() == first
    retained = path.stat()
    time.sleep(0.02)  # the tick of time stamps is a hundredth
    path.write_text('{"text": "b"}\n')
    os.utime(path, ns=(retained.st_atime_ns, retained.st_mtime_ns))  # another one in its place
    assert fingerprint() == fingerprint(streaming=False) != first
    monkeypatch.setattr(digests, "MIN_FILE_AGE_SECONDS", 60.0)
    notes = list((folder / os.environ["DTL_CACHE"] / "digests").iterdir())
    path.write_text('{"text": "c"}\n')
    assert fingerprint() == fingerprint(streaming=False)
    assert list((folder / os.environ["DTL_CACHE"] / "digests").iterdir()) == notes, "too young"


def test_row_that_cannot_be_encoded_fails_the_run_with_its_location(folder, wav2vec2):
    """Its header is valid, so that the row check passes."""
    torn = tiny_sound.wav(tiny_speech.spoken("seamen sat"), kind="FLAC")
    torn = torn[: len(torn) // 2] + bytes(len(torn) // 2)
    rows = [*tiny_speech.transcribed(2), {"audio": torn, "text": "seamen sat"}]
    parquet.write_table(pa.Table.from_pylist(rows), folder / "torn.parquet")
    config = configure(
        folder,
        wav2vec2,
        "torn",
        "data.eval=null",
        "train.steps=1",
        task="asr_ctc",
        rows="torn.parquet",
    )
    with pytest.raises(RankFailed, match=r"torn\.parquet: row 3: `audio`"):
        train_in_this_process(config)


def test_run_does_not_resume_with_other_rows(folder, decoder):
    tiny.write_texts(folder / "moved.jsonl", 9)
    config = configure(folder, decoder, "moved", "data.eval=null", rows="moved.jsonl")
    run = train_in_this_process(config, stop_after=1)
    tiny.write_texts(folder / "moved.jsonl", 9, seed=4)
    with pytest.raises(DtlError, match="the data, or its tokenizer, has changed"):
        prepared_run.reopen_run(run, writes=True)


NOT_STREAMABLE = [
    (
        ["train.global_batch=64 tokens"],
        "train.global_batch: the number of tokens of a row is unknown",
    ),
    (["train.group_by_length=true"], "train.group_by_length: the length of a row is unknown"),
    (["data.eval.streaming=true"], "data.eval.streaming: only data.train is streamed"),
    (["data.train.weight=2"], "data.train.streaming: streamed rows are read once"),
    (["data.mix=[rows.jsonl]"], "data.train.streaming: streamed rows are read once"),
    (
        ["data.train.streaming=false", "data.mix=[{path: rows.jsonl, streaming: true}]"],
        "data.mix.streaming: only data.train is streamed",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), NOT_STREAMABLE)
def test_option_that_needs_encoded_rows_is_an_error(folder, decoder, overrides, message):
    with pytest.raises(DtlError, match=message):
        configure(folder, decoder, "refused", *overrides)


def test_streaming_a_class_folder_is_an_error(folder, vit):
    from PIL import Image

    for kind in ("one", "two"):
        (folder / "pictures" / kind).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "pictures" / kind / "a.png")
    config = configure(
        folder, vit, "pictures", "data.eval=null", task="image_classification", rows="pictures"
    )
    with pytest.raises(
        DtlError, match=r"data.train.streaming: .*Fix: list its files in a JSON Lines file"
    ):
        prepare_data(config, assemble(config))


def test_streaming_a_hub_dataset_is_an_error(folder, decoder):
    config = configure(folder, decoder, "hub", "data.train.path=owner/name")
    with pytest.raises(
        DtlError, match=r"data.train.streaming: owner/name .*Fix: download it as Parquet"
    ):
        prepare_data(config, assemble(config))
