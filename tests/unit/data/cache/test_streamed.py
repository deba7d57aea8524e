"""Streamed rows: the same run as of encoded ones, exactly resumed; what cannot be is refused."""

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
from dtl.data.sources import rows as source
from dtl.inspect.audit import audit_run
from dtl.prepare import preparation
from dtl.prepare.prepared_data import prepare_data
from tests import tiny, tiny_sound, tiny_speech
from tests.unit.jobs.test_adapter_runs import run_here

NOTHING = {"text": ""}  # no example


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
        "train": {"steps": 6, "global_batch": 8},
        "layout": {"processes_per_node": 1, "zero_stage": 0, "micro_batch": 3},
    }
    (folder / f"{name}.yaml").write_text(json.dumps(config))
    return load_config(folder / f"{name}.yaml", list(overrides))


def told(run):
    """All that a run has said of its steps and scores, but times and memory."""
    unlike = ("seconds", "tokens_per_second", "memory_bytes", "bytes")
    lines = (line for line in run.read_metrics() if line["kind"] != "save")
    return [{k: v for k, v in line.items() if k not in unlike} for line in lines]


def weights(run):
    return load_file(run.export / "adapter_model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def streamed(folder, decoder):
    """Two epochs, in micro-batches of 3, the last global batch of each smaller."""
    return run_here(configure(folder, decoder, "streamed"))


def test_the_run_is_bitwise_the_one_of_encoded_rows(folder, decoder, streamed):
    encoded = run_here(configure(folder, decoder, "encoded", streaming=False))
    assert told(streamed) == told(encoded)
    assert [line["epoch"] for line in told(streamed) if line["kind"] == "train"] == [0] * 3 + [
        1
    ] * 3
    assert same(weights(streamed), weights(encoded))
    assert audit_run(streamed).fault is None


def test_stopped_and_resumed_it_is_bitwise_the_same(folder, decoder, streamed):
    config = configure(folder, decoder, "resumed")
    stopped = run_here(config, stop_after=3)  # it is also asked before each scored batch
    assert 0 < stopped.last_step < 6
    assert same(weights(run_here(config)), weights(streamed))
    assert audit_run(stopped).fault is None


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_read_their_own_shares_of_the_same_global_batches(folder, decoder, ranks):
    config = configure(folder, decoder, f"shares-{ranks}")
    parts = assemble(config)
    examples = prepare_data(config, parts)

    def windows(ranks, step):
        return [
            Loader(
                examples.train,
                lambda rows: {"count": torch.tensor(len(rows))},
                examples.batching,
                micro_batch=2,
                parallel_dims=ParallelDims(ranks, rank),
            ).window(step)
            for rank in range(ranks)
        ]

    for step in range(1, 7):
        (alone,), shared = windows(1, step), windows(ranks, step)
        read = [id_ for window in shared for batch in window.batches for id_ in batch.ids]
        assert sorted(read) == sorted(alone.all_ids.tolist())
        assert sum(window.all_targets for window in shared) == alone.all_targets
        assert sum(window.all_length for window in shared) == alone.all_length
        assert len({len(window.batches) for window in shared}) == 1
        assert all(len(batch.ids) <= 2 for window in shared for batch in window.batches)


def test_a_row_is_encoded_in_its_step_and_not_before(folder, decoder, monkeypatch):
    """At the desk each row is read once, for the index; then a step reads its own."""
    tiny.write_texts(folder / "many.jsonl", 400, seed=9)
    seen = []
    judge = source.Rows.validate_row
    monkeypatch.setattr(source.Rows, "judge", lambda self, *at: seen.append(at) or judge(self, *at))
    config = configure(folder, decoder, "many", "data.eval=null", rows="many.jsonl")
    prepared = preparation.prepare_run(config)
    assert len(seen) == 401  # the first row is also looked at when the file is opened
    seen.clear()
    again = preparation.prepare_run(config)  # from the index
    assert (len(seen), again.data.train.key) == (1, prepared.data.train.key)
    seen.clear()
    share = again.data.train.take(np.array([399, 7, 120]))
    assert [at[0] for at in seen] == [7, 120, 399] and len(share.ids) == 3


def test_the_planner_counts_the_longest_row_there_may_be(folder, decoder):
    config = configure(folder, decoder, "planned", "task.max_length=40")
    prepared = preparation.prepare_run(config)
    assert set(prepared.data.train.lengths.tolist()) == {40}


def test_labels_are_found_once(folder, encoder, monkeypatch):
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
    monkeypatch.setattr(type(parts.task), "survey", None)  # it would fail
    assert prepare_data(config, parts, writes=False).dataset_stats == dataset_stats


def test_held_out_rows_are_none_of_those_streamed(folder, decoder):
    config = configure(folder, decoder, "split", "data.eval=null", "data.eval_fraction=0.2")
    examples = prepare_data(config, assemble(config))
    whole = configure(
        folder, decoder, "whole", "data.eval=null", "data.eval_fraction=0.2", streaming=False
    )
    encoded = prepare_data(whole, assemble(whole))
    assert (len(examples.train), len(examples.held_out)) == (18, 5)
    for number in range(18):
        share = examples.train.take(np.array([number]))
        expected = encoded.train[number]
        assert {name: list(value) for name, value in share[number].items()} == {
            name: list(value) for name, value in expected.items()
        }
    assert examples.train.key == encoded.train.key


def test_rows_that_are_no_examples_are_counted_told_and_listed_once(folder, decoder, capsys):
    """Of 8 rows three are empty: they add nothing, in either epoch, and batches of nothing but them
    are not learnt from."""
    good = [{"text": tiny.sentence(random.Random(n), 9)} for n in range(5)]
    tiny.write_rows(folder / "gaps.jsonl", [NOTHING, *good[:2], NOTHING, *good[2:], NOTHING])
    overrides = ("train.global_batch=2", "train.steps=8", "data.eval=null", "layout.micro_batch=1")
    run = run_here(configure(folder, decoder, "gaps", *overrides, rows="gaps.jsonl"))
    said = capsys.readouterr().out
    places = [f"{folder / 'gaps.jsonl'}:{line}" for line in (1, 4, 8)]
    listed = list(run.read_skipped_rows())
    assert sorted(line["place"] for line in listed) == places
    assert {(line["source"], line["reason"]) for line in listed} == {("data.train", "empty text")}
    assert said.count("left out (empty text)") == 1 and "left out: 3 rows" in said
    steps = [line for line in run.read_metrics() if line["kind"] == "train"]
    assert sum(line.get("left_out", 0) for line in steps) == 6
    empty = [line["step"] for line in steps if line.get("left_out") == 2]
    skipped = [line["step"] for line in run.read_metrics() if line["kind"] == "skip"]
    assert skipped == empty
    assert all((line["targets"] == 0) == (line["loss"] is None) for line in steps)
    examples = prepare_data(
        configure(folder, decoder, "gaps", *overrides, rows="gaps.jsonl"), assemble(run.config)
    )
    share = examples.train.take(np.array([0, 3]))
    assert (len(share.ids), share.shortest, len(share.left_out)) == (0, 1, 2)


def test_a_row_that_was_changed_while_the_run_goes_on_is_named(folder, decoder):
    tiny.write_texts(folder / "changing.jsonl", 9)
    config = configure(folder, decoder, "changing", "data.eval=null", rows="changing.jsonl")
    examples = prepare_data(config, assemble(config))
    tiny.write_texts(folder / "changing.jsonl", 9, seed=3)
    with pytest.raises(RankFailed, match=r"changing\.jsonl: has changed since the run was started"):
        examples.train.take(np.arange(9))


def test_the_bytes_of_a_file_are_read_once_until_it_is_touched(folder, tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n')

    def fingerprint(streaming=True):
        return source.open_rows(Source(path=str(path), streaming=streaming), {}).fingerprint

    monkeypatch.setattr(source, "SETTLED_SECONDS", -1.0)
    first = fingerprint()
    assert first == fingerprint(streaming=False)
    with monkeypatch.context() as patch:
        patch.setattr(source, "_digest_of", None)  # it would fail
        assert fingerprint() == first
    kept = path.stat()
    time.sleep(0.02)  # the tick of time stamps is a hundredth
    path.write_text('{"text": "b"}\n')
    os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))  # another one in its place
    assert fingerprint() == fingerprint(streaming=False) != first
    monkeypatch.setattr(source, "SETTLED_SECONDS", 60.0)
    notes = list((folder / os.environ["DTL_CACHE"] / "digests").iterdir())
    path.write_text('{"text": "c"}\n')
    assert fingerprint() == fingerprint(streaming=False)
    assert list((folder / os.environ["DTL_CACHE"] / "digests").iterdir()) == notes, "too young"


def test_a_row_that_cannot_be_encoded_ends_the_run_with_its_place(folder, wav2vec2):
    """Its header is good, so that the desk takes it."""
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
        run_here(config)


def test_a_run_does_not_go_on_with_other_rows(folder, decoder):
    tiny.write_texts(folder / "moved.jsonl", 9)
    config = configure(folder, decoder, "moved", "data.eval=null", rows="moved.jsonl")
    run = run_here(config, stop_after=1)
    tiny.write_texts(folder / "moved.jsonl", 9, seed=4)
    with pytest.raises(DtlError, match="the data, or its tokenizer, has changed"):
        preparation.reopen_run(run, writes=True)


REFUSED = [
    (["train.global_batch=64 tokens"], "train.global_batch: how many tokens a row has"),
    (["train.group_by_length=true"], "train.group_by_length: how long a row is"),
    (["data.eval.streaming=true"], "data.eval.streaming: only what data.train names"),
    (["data.train.weight=2"], "data.train.streaming: rows that are streamed are read once"),
    (["data.mix=[rows.jsonl]"], "data.train.streaming: rows that are streamed are read once"),
    (
        ["data.train.streaming=false", "data.mix=[{path: rows.jsonl, streaming: true}]"],
        "data.mix.streaming: only what data.train names",
    ),
]


@pytest.mark.parametrize(("overrides", "said"), REFUSED)
def test_what_does_not_go_with_streaming_is_refused(folder, decoder, overrides, said):
    with pytest.raises(DtlError, match=said):
        configure(folder, decoder, "refused", *overrides)


def test_a_folder_of_classes_is_refused(folder, vit):
    from PIL import Image

    for kind in ("one", "two"):
        (folder / "pictures" / kind).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "pictures" / kind / "a.png")
    config = configure(
        folder, vit, "pictures", "data.eval=null", task="image_classification", rows="pictures"
    )
    with pytest.raises(DtlError, match=r"data.train.streaming: .*; list them in a JSON lines file"):
        prepare_data(config, assemble(config))


def test_a_hub_data_set_is_refused_before_it_is_fetched(folder, decoder):
    config = configure(folder, decoder, "hub", "data.train.path=owner/name")
    with pytest.raises(DtlError, match=r"data.train.streaming: owner/name .*; fetch it as Parquet"):
        prepare_data(config, assemble(config))
