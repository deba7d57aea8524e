"""Training on cached features: the same run without its frozen base."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file

from dtl.config.load import load_config
from dtl.core.errors import DtlError, RunFailed
from dtl.data.cache.feature_cache import FeatureCache, batch_by_extent, claim_build
from dtl.plan import request as plan_request
from dtl.prepare import prepared_run
from dtl.run.folder import RunFolder
from dtl.train.features import cache as feature_cache
from dtl.train.features import extraction
from tests import tiny, tiny_sound, tiny_speech, tiny_vision
from tests.unit.jobs.test_adapter_runs import train_in_this_process

WITHOUT_AUGMENTATION = {"horizontal_flip": False, "min_crop_scale": 1.0}  # images unchanged
ROWS, HELD_OUT, STEPS = 11, 5, 6  # two epochs


@dataclass(frozen=True)
class Case:
    """A base for a task, and what of the base's output its head reads."""

    base: Callable[[Path], Path]
    task: str
    rows: Callable[..., list[dict[str, Any]]]
    reads: dict[str, str]
    options: dict[str, Any] = field(default_factory=dict)


def labeled(count: int, *, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    texts = [tiny.sentence(rng, 16) for _ in range(count)]
    return [{"text": text, "label": f"l{number % 2}"} for number, text in enumerate(texts)]


def roberta(folder: Path) -> Path:
    from transformers import RobertaConfig, RobertaModel

    torch.manual_seed(7)
    made = tiny.tokenizer()
    config = RobertaConfig(
        vocab_size=len(made),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=130,
        pad_token_id=made.pad_token_id,
    )
    RobertaModel(config, add_pooling_layer=False).save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def weighted(folder: Path) -> Path:
    """A wav2vec2 whose head mixes all layers."""
    tiny_sound.wav2vec2(folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "use_weighted_layer_sum": True}))
    return folder


LAST = {"last_hidden_state": "all"}
SPOKEN = {"max_seconds": 5.0}
CASES = {
    "bert": Case(tiny.encoder, "text_classification", labeled, {"pooler_output": "pooled"}),
    "roberta": Case(roberta, "text_classification", labeled, {"last_hidden_state": "first"}),
    "llama": Case(tiny.decoder, "text_classification", labeled, {"last_hidden_state": "last"}),
    "tags": Case(tiny.encoder, "token_classification", tiny.tagged, LAST),
    "vit": Case(
        tiny_vision.vit,
        "image_classification",
        tiny_vision.pictures,
        {"last_hidden_state": "first"},
        WITHOUT_AUGMENTATION,
    ),
    "resnet": Case(
        tiny_vision.resnet,
        "image_classification",
        tiny_vision.pictures,
        {"pooler_output": "all"},
        WITHOUT_AUGMENTATION,
    ),
    "wav2vec2": Case(tiny_sound.wav2vec2, "audio_classification", tiny_sound.tones, LAST),
    "weighted": Case(
        weighted,
        "audio_classification",
        tiny_sound.tones,
        {f"hidden_states.{layer}": "all" for layer in range(3)},
    ),
    "spectrogram": Case(
        tiny_sound.spectrogram,
        "audio_classification",
        tiny_sound.tones,
        {"pooler_output": "pooled"},
    ),
    "writing": Case(tiny_sound.wav2vec2, "asr_ctc", tiny_speech.transcribed, LAST),
    "wav2vec2-bert": Case(tiny_speech.wav2vec2_bert, "asr_ctc", tiny_speech.transcribed, LAST),
}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def configure(folder: Path, case: Case, name: str, cached: bool | None, **more: Any) -> Any:
    """A run of a few steps over rows that are made once in a folder."""
    if not (folder / "base").exists():
        case.base(folder / "base")
        write(folder / "train.parquet", case.rows(ROWS, seed=1))
        write(folder / "eval.parquet", case.rows(HELD_OUT, seed=2))
    config = {
        "run": {"dir": str(folder / "runs"), "name": name},
        "model": {"path": str(folder / "base"), "dtype": "fp32"},
        "task": {"name": case.task, **case.options},
        "data": {"train": str(folder / "train.parquet"), "eval": str(folder / "eval.parquet")},
        "strategy": {"name": "frozen", "cache_features": cached},
        "optim": {"learning_rate": 0.01},
        "train": {"steps": STEPS, "global_batch": 4, "evaluation_batch": 3},
        "layout": {"processes_per_node": 1, "zero_stage": 0},
    }
    for key, value in more.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    (folder / f"{name}.yaml").write_text(json.dumps(config))
    return load_config(folder / f"{name}.yaml")


def lines(run: RunFolder, kind: str) -> list[dict[str, Any]]:
    return [line for line in run.read_metrics() if line["kind"] == kind]


def cached_features(cache: Path) -> list[FeatureCache]:
    return [FeatureCache(folder.parent) for folder in sorted(cache.glob("features/*/index.json"))]


@pytest.mark.parametrize("name", CASES)
def test_run_on_cached_features_equals_the_run_without(
    tmp_path: Path, cache: Path, name: str
) -> None:
    case = CASES[name]
    with_base, from_cache = (
        train_in_this_process(configure(tmp_path, case, f"cached-{cached}", cached))
        for cached in (False, True)
    )
    train, scores = (
        [[line["loss"] for line in lines(run, kind)] for run in (with_base, from_cache)]
        for kind in ("train", "eval")
    )
    assert train[1] == pytest.approx(train[0], rel=1e-5)
    assert len(train[0]) == STEPS and train[0][-1] != train[0][0]
    assert scores[1] == pytest.approx(scores[0], rel=1e-5)
    weights = [load_file(run.export / "model.safetensors") for run in (with_base, from_cache)]
    for place, value in weights[0].items():
        torch.testing.assert_close(weights[1][place], value, rtol=1e-4, atol=1e-5)
    found = {
        field.name: field.positions for each in cached_features(cache) for field in each.fields
    }
    assert found == case.reads
    assert sorted(map(len, cached_features(cache))) == [HELD_OUT, ROWS]


@pytest.fixture
def bert(tmp_path: Path, cache: Path) -> Callable[..., Any]:
    """A config over the rows of one case, by the name of the run and more."""

    def made(name: str = "run", cached: bool | None = True, **more: Any) -> Any:
        return configure(tmp_path, CASES["bert"], name, cached, **more)

    return made


def test_steps_do_not_run_the_base_and_a_second_run_extracts_nothing(
    bert: Callable[..., Any], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.bert.modeling_bert import BertLayer

    seen: list[int] = []
    forward = BertLayer.forward

    def counted(self: Any, states: Any, *given: Any, **named: Any) -> Any:
        seen.append(len(states))
        return forward(self, states, *given, **named)

    monkeypatch.setattr(BertLayer, "forward", counted)
    train_in_this_process(bert("first"))
    probes = 4 + 4  # in a batch and one by one, to find what the head reads
    assert sum(seen) == 2 * (probes + ROWS + HELD_OUT)
    made = {file: file.stat().st_mtime_ns for file in cache.glob("features/*/*")}
    seen.clear()
    train_in_this_process(
        bert("second", optim={"learning_rate": 0.1}, train={"seed": 5, "steps": 9})
    )
    assert sum(seen) == 2 * probes
    assert made == {file: file.stat().st_mtime_ns for file in cache.glob("features/*/*")}


def test_runs_with_fewer_labels_share_the_features_of_more(
    bert: Callable[..., Any], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They train the same as with features that were extracted for their rows alone."""
    losses = {}
    for within in (4, None):
        for labels in (1, 3):
            draw = {"size": labels, "seed": 7, "feature_cache_size": within}
            run = train_in_this_process(bert(f"{labels}-of-{within}", data={"subsample": draw}))
            losses[within, labels] = [line["loss"] for line in lines(run, "train")]
            rows = 2 * (within or labels)
            action = "read from" if (within, labels) == (4, 3) else "extracted and cached in"
            assert f"features of {rows} examples: {action} " in capsys.readouterr().out
    assert sorted(map(len, cached_features(cache))) == [2, HELD_OUT, 6, 8]
    for labels in (1, 3):
        assert losses[4, labels] == pytest.approx(losses[None, labels], rel=1e-6)
    assert losses[4, 1] != losses[4, 3]


def test_feature_cache_size_above_the_number_of_rows_means_all(
    bert: Callable[..., Any], cache: Path
) -> None:
    train_in_this_process(bert(data={"subsample": {"size": 1, "feature_cache_size": 9}}))
    assert sorted(map(len, cached_features(cache))) == [HELD_OUT, ROWS]


def test_plan_shows_the_size_of_shared_features(bert: Callable[..., Any]) -> None:
    alone, shared = (
        planned_decision(
            bert(cached=None, data={"subsample": {"size": 1, "feature_cache_size": within}})
        )[1]
        for within in (None, "all")
    )
    assert shared != alone and "per layer" in shared


def test_changed_features_have_their_own_cache(bert: Callable[..., Any], cache: Path) -> None:
    found = {}
    for name, more in {
        "plain": {},
        "half": {"model": {"dtype": "bf16"}},
        "attention": {"model": {"attention": "eager"}},
        "shorter": {"task": {"max_length": 4}},
    }.items():
        before = set(cache.glob("features/*"))
        train_in_this_process(bert(name, **more))
        found[name] = set(cache.glob("features/*")) - before
    assert {name: len(made) for name, made in found.items()} == dict.fromkeys(found, 2)
    dtypes = {each.dtype for folder in found["half"] for each in FeatureCache(folder).fields}
    assert dtypes <= {"bfloat16", "float32"} and all(
        each.dtype == "float32" for folder in found["plain"] for each in FeatureCache(folder).fields
    )


def test_interrupted_extraction_leaves_nothing_that_is_used(
    bert: Callable[..., Any], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill, nothing is removed; what is there is not used as features."""
    with monkeypatch.context() as patch:
        patch.setattr(feature_cache, "remove_staging_folder", lambda staged: None)
        patch.setattr(feature_cache, "finalize_feature_cache", lambda *given, **named: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train_in_this_process(bert("killed"))
    assert list(cache.glob("features/*.staged/*.values")) and not cached_features(cache)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    again, full = (
        train_in_this_process(bert(name, cached))
        for name, cached in (("killed", True), ("w", False))
    )
    assert len(cached_features(cache)) == 2 and not list(cache.glob("features/*.staged"))
    found, expected = ([line["loss"] for line in lines(run, "train")] for run in (again, full))
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("end", ["made", "killed"])
def test_run_waits_for_another_run_that_extracts_the_same(
    bert: Callable[..., Any],
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    end: str,
) -> None:
    """Until it has extracted them; if it was killed, this run extracts them."""
    first = train_in_this_process(bert("first"))
    (folder,) = (each.folder for each in cached_features(cache) if len(each) == ROWS)
    made = folder.rename(tmp_path / "made").stat().st_ino
    held, looks = ExitStack(), []
    assert claim_build(folder, held) == "ours"

    def look_again(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            if end == "made":
                (tmp_path / "made").rename(folder)
            held.close()

    monkeypatch.setattr(feature_cache, "time", SimpleNamespace(sleep=look_again))
    second = train_in_this_process(bert("second"))
    assert len(looks) == 3 and (folder.stat().st_ino == made) is (end == "made")
    assert capsys.readouterr().out.count("waiting for another run that extracts them (") == 1
    assert not list(cache.glob("making/*")) and len(cached_features(cache)) == 2
    found, expected = ([line["loss"] for line in lines(run, "train")] for run in (second, first))
    assert found == expected


def test_phase_that_trains_the_base_must_come_later(bert: Callable[..., Any], cache: Path) -> None:
    def phased(name: str, cached: bool) -> Any:
        phases = [{"name": "frozen", "cache_features": cached, "length": 4}, {"name": "full"}]
        return train_in_this_process(bert(name, strategy=phases))

    without, cached = phased("without", False), phased("with", True)
    found, expected = ([line["loss"] for line in lines(run, "train")] for run in (cached, without))
    assert found == pytest.approx(expected, rel=1e-5) and len(found) == STEPS
    assert len(cached_features(cache)) == 2
    later = [{"name": "full", "length": 4}, {"name": "frozen", "cache_features": True}]
    with pytest.raises(
        DtlError,
        match=r"strategy\.1\.cache_features: only in the first phase the base is unchanged",
    ):
        prepared_run.prepare_run(bert("later", strategy=later))


# What the plan says ------------------------------------------------------------------------------


def planned_decision(config: Any) -> tuple[str, str]:
    """The plan's decision on the feature cache, and its reason."""
    chosen = prepared_run.prepare_run(config).plan.decisions
    return next((one.value, one.reason) for one in chosen if one.key == "feature cache")


def test_plan_caches_features_where_an_example_is_read_twice(bert: Callable[..., Any]) -> None:
    value, why = planned_decision(bert(cached=None))
    assert value == "on" and why.startswith(
        "the base computes the same of an example in every epoch"
    )
    assert planned_decision(bert(cached=None, train={"steps": 3})) == (
        "off",
        "no example is read twice",
    )
    assert planned_decision(bert(cached=True, train={"steps": 3}))[0] == "on"
    assert planned_decision(bert(cached=False)) == ("off", "strategy.cache_features")


def group_norm(folder: Path) -> Path:
    return tiny_sound.wav2vec2(folder, norm="group")


def without_pooler(folder: Path) -> Path:
    """A BERT whose pooler is new, as in one that was pretrained without."""
    from transformers import BertModel

    tiny.encoder(folder)
    BertModel.from_pretrained(folder, add_pooling_layer=False).save_pretrained(folder)
    return folder


UNSUPPORTED = {
    "task.horizontal_flip=false": Case(
        tiny_vision.vit, "image_classification", tiny_vision.pictures, {}, {"horizontal_flip": True}
    ),
    "task.max_seconds": Case(
        tiny_sound.wav2vec2, "audio_classification", tiny_sound.tones, {}, {"max_seconds": 0.4}
    ),
    "pretrained without an attention mask": Case(
        group_norm, "asr_ctc", tiny_speech.transcribed, {}
    ),
    "bert.pooler.dense.weight is inside": Case(without_pooler, "text_classification", labeled, {}),
    "token by token": Case(tiny.decoder, "causal_lm", labeled, {}),
}


@pytest.mark.parametrize("why", UNSUPPORTED)
def test_cache_is_refused_where_the_result_would_differ(
    tmp_path: Path, cache: Path, why: str
) -> None:
    value, reason = planned_decision(configure(tmp_path, UNSUPPORTED[why], "planned", None))
    assert value == "off" and why in reason
    with pytest.raises(DtlError, match=re.escape(why)) as refused:
        prepared_run.prepare_run(configure(tmp_path, UNSUPPORTED[why], "asked", True))
    assert refused.value.exit_code == 2 and "strategy.cache_features" in str(refused.value)


def test_obstacle_that_only_the_run_finds_is_printed(
    tmp_path: Path,
    cache: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A base that gets a mask for padding, and whose output depends on padding all the same: the
    plan knows this family, but not every one."""
    monkeypatch.setattr(plan_request, "explain_padding_dependence", lambda *_: None)
    case = Case(group_norm, "audio_classification", tiny_sound.tones, {})
    made = configure(tmp_path, case, "planned", None)
    settings = tmp_path / "base" / "preprocessor_config.json"
    settings.write_text(
        json.dumps({**json.loads(settings.read_text()), "return_attention_mask": True})
    )
    train_in_this_process(made)
    assert (
        "no feature cache: the base's output for an example depends on" in capsys.readouterr().out
    )
    assert not cached_features(cache)
    with pytest.raises(DtlError, match="depends on the others in its batch") as refused:
        train_in_this_process(configure(tmp_path, case, "asked", True))
    assert refused.value.exit_code == 2


def test_too_small_disk_is_reported(
    bert: Callable[..., Any],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """11 vectors of 32 numbers of 4 bytes, and one byte less than may be taken: nine tenths."""
    monkeypatch.setattr(extraction, "free_disk_bytes", lambda place: (ROWS * 32 * 4) * 10 // 9 - 1)
    train_in_this_process(bert(cached=None))
    assert "no feature cache: features would take 1.38 KiB, of 1.53" in capsys.readouterr().out
    assert not list(cache.glob("features/*"))
    with pytest.raises(DtlError, match="features would take"):
        train_in_this_process(bert("asked"))


def test_cache_that_a_node_does_not_see_is_reported(tmp_path: Path) -> None:
    engine: Any = SimpleNamespace(all_gather_object=lambda local: [*local, False])
    with pytest.raises(RunFailed, match="not all processes of this run see the cache"):
        feature_cache._check_shared_folder(tmp_path, engine)


def test_batches_contain_examples_of_one_extent() -> None:
    found = [ids.tolist() for ids in batch_by_extent(np.array([3, 5, 3, 5, 5, 1]), batch=2)]
    assert found == [[1, 3], [4], [0, 2], [5]]
