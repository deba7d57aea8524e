"""Speech recognition by CTC: characters, alignment, padding and what is exported."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import torch

from dtl.config.schema import Model
from dtl.core.errors import DtlError
from dtl.data.example import Skip
from dtl.data.modalities.text_normalization import create_text_normalizer
from dtl.models.load import load_pretrained
from dtl.models.new_parameters import init_new_parameters, write_language_weights
from dtl.models.pretrained_config import HeadConfig, load_model_config
from dtl.models.processor import load_processor
from dtl.models.speech import ctc_vocabulary
from tests import tiny_sound, tiny_speech
from tests.task_bench import Bench, make_rows, make_task

CAPITALS = {name: n for n, name in enumerate(["<pad>", "<unk>", "|", *"AEIMNOST"])}
MMS = {
    "eng": {name: n for n, name in enumerate(["<pad>", "<unk>", "|", *"aeimnost"])},
    "swh": {name: n for n, name in enumerate(["<pad>", "<unk>", "|", *"aeimnostuw"])},
}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def bench(folder: Path, fields: list[dict[str, Any]], **options: Any) -> Bench:
    """As a run opens it; `encoded` may hold what is skipped."""
    task = make_task("asr_ctc", **options)
    source, rows = Model(path=str(folder)), make_rows(fields)
    settings = load_model_config(source)
    processor, dataset_stats = task.adapt_processor(
        load_processor(source, "processor"), task.collect_dataset_stats(rows, settings)
    )
    changes = task.head_config(dataset_stats)
    loaded = load_pretrained(
        source,
        head=HeadConfig(task.auto_class, changes),
        random_init=False,
        seed=0,
        dtype="fp32",
    )

    def fill(parameter: Any, value: Any) -> None:
        parameter.data.copy_(value)

    init_new_parameters(loaded.model, loaded.new_parameters, seed=0, write_parameter=fill)
    write_language_weights(loaded, write_parameter=fill)
    encode = task.encoder(processor, dataset_stats, settings)
    encoded, longest = (
        [encode(row) for row in rows],
        task.max_length(processor, dataset_stats, settings),
    )
    return Bench(task, loaded.model.eval(), dataset_stats, processor, encoded, longest)


def text_of(tokenizer: Any, model: Any, extractor: Any, sound: np.ndarray) -> str:
    """What plain transformers writes."""
    audio = extractor(sound, sampling_rate=tiny_sound.RATE, return_tensors="pt")
    with torch.no_grad():
        path = model(**audio).logits.argmax(-1)
    return str(tokenizer.batch_decode(path)[0])


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    return tiny_speech.hubert(tmp_path_factory.mktemp("models") / "hubert")


@pytest.fixture(scope="module")
def capitals(tmp_path_factory):
    return tiny_speech.writing(tmp_path_factory.mktemp("models") / "capitals", CAPITALS)


@pytest.fixture(scope="module")
def mms(tmp_path_factory):
    return tiny_speech.writing(tmp_path_factory.mktemp("models") / "mms", MMS, language="eng")


@pytest.mark.parametrize("family", ["wav2vec2", "wav2vec2_bert", "group"])
def test_the_loss_is_that_of_transformers(family, request):
    made = bench(request.getfixturevalue(family), tiny_speech.transcribed(4))
    model = made.model
    model.config.ctc_loss_reduction = "sum"
    for indices in ([0, 1, 2, 3], [1]) if family != "group" else ([0], [1], [3]):
        batch = made.collate(indices)
        inputs = {k: v for k, v in batch.items() if k not in ("frames", "time_mask", "reference")}
        with torch.no_grad():
            theirs = model(**inputs).loss.item()
        assert made.loss(indices) == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("seconds", [0.31, 0.3137, 1.0])
def test_frames_are_counted_as_the_models_count_them(seconds, wav2vec2, wav2vec2_bert, tmp_path):
    """Also of a model with an adapter, which makes fewer frames after its layers."""
    sound = np.random.default_rng(1).standard_normal((int(seconds * tiny_sound.RATE), 1)) * 0.1
    row = {"audio": tiny_sound.wav(sound), "text": "a"}
    shrinking = tiny_speech.wav2vec2_bert(tmp_path / "adapter", adapter=True)
    for folder in (wav2vec2, wav2vec2_bert, shrinking):
        made = bench(folder, [row])
        inputs = made.processor.feature_extractor(
            sound[:, 0], sampling_rate=tiny_sound.RATE, return_tensors="pt"
        )
        reported = inputs["attention_mask"].sum(-1) if "attention_mask" in inputs else None
        if reported is None:
            reported = torch.tensor([len(sound)])
        expected = int(made.model._get_feat_extract_output_lengths(reported))
        assert made.encoded[0].values["frames"] == expected


def test_scores_are_those_of_jiwer_and_arrive_in_the_raw_text(wav2vec2):
    pairs = [("Tea, at sea", "tea at sea"), ("moon", "mon moon"), ("a mat in", "a in")]
    records = [
        {"loss": 1.0, "targets": 2, "reference": said, "hypothesis": written}
        for said, written in pairs
    ]
    scores = make_task("asr_ctc").score(records, {})
    said, written = map(list, zip(*pairs, strict=True))
    words = jiwer.process_words(said, written)
    assert scores["wer"] == words.wer
    assert scores["cer"] == jiwer.cer(said, written)
    assert scores["wer_normalized"] == jiwer.wer(["tea at sea", *said[1:]], written)
    for name in ("substitutions", "deletions", "insertions", "hits"):
        assert scores[name] == getattr(words, name)
    assert scores["loss"] == 0.5


def test_characters_come_from_the_training_rows(wav2vec2):
    made = bench(wav2vec2, [tiny_speech.row("Tea, at  sea!"), tiny_speech.row("no")])
    vocabulary = made.processor.tokenizer.get_vocab()
    assert vocabulary == {
        name: n for n, name in enumerate(["[PAD]", "|", "[UNK]", *sorted("teasno")])
    }
    assert made.model.config.vocab_size == len(vocabulary) and made.dataset_stats["new_head"]
    other = made.task.encoder(
        made.processor, made.dataset_stats, load_model_config(Model(path=str(wav2vec2)))
    )
    (row,) = make_rows([tiny_speech.row("zea")])
    found = other(row)
    assert found.values["labels"][0] == vocabulary["[UNK]"]
    assert bytes(found.values["reference"]).decode() == "zea"


def test_a_model_that_writes_keeps_its_characters_and_their_case(capitals):
    made = bench(capitals, [tiny_speech.row("tea at sea.")])
    assert made.processor.tokenizer.decode(made.encoded[0].values["labels"]) == "TEA AT SEA"
    assert not made.dataset_stats["new_head"] and made.dataset_stats["loading"] == {}
    theirs = load_pretrained(
        Model(path=str(capitals)),
        head=HeadConfig("AutoModelForCTC", {}),
        random_init=False,
        seed=0,
        dtype="fp32",
    ).model
    assert torch.equal(made.model.lm_head.weight, theirs.lm_head.weight)


def test_a_head_of_equal_size_is_not_taken_for_that_of_new_characters(capitals):
    made = bench(capitals, [tiny_speech.row("aeimnost aeimnost")], vocabulary="data")
    assert len(made.processor.tokenizer) == len(CAPITALS)
    assert made.model.config.vocab_size == len(CAPITALS) + 1


def test_characters_that_the_model_lacks_are_reported(capitals):
    with pytest.raises(
        DtlError, match=r"task.vocabulary: .* lacks 75% .* \(r x\)\. Fix: set it to data"
    ):
        bench(capitals, [{**tiny_speech.row("no"), "text": "rrx n"}])
    made = bench(capitals, [{**tiny_speech.row("no"), "text": "rrx n"}], vocabulary="model")
    assert made.processor.tokenizer.vocab_size == len(CAPITALS)


def test_a_language_of_mms_brings_its_adapters_and_head(mms):
    from transformers import Wav2Vec2ForCTC

    made = bench(mms, [tiny_speech.row("mwana")], language="swh")
    theirs = Wav2Vec2ForCTC.from_pretrained(mms, target_lang="swh", ignore_mismatched_sizes=True)
    expected = dict(theirs.named_parameters())
    for name, value in made.model.named_parameters():
        assert torch.equal(value, expected[name]), name
    assert made.dataset_stats["loading"] == {"target_lang": "swh", "ignore_mismatched_sizes": True}


def test_a_new_language_stands_beside_those_of_mms(mms, tmp_path):
    from transformers import AutoTokenizer

    made = bench(mms, [tiny_speech.row("tza no")], language="new")
    made.processor.tokenizer.save_pretrained(tmp_path)
    reopened = AutoTokenizer.from_pretrained(tmp_path)
    assert reopened.target_lang == "new" and {"eng", "swh"} < set(reopened.vocab)
    assert reopened.vocab["eng"] == MMS["eng"]
    assert reopened.decode(made.encoded[0].values["labels"]) == "tza no"
    assert made.model.config.vocab_size == len(reopened.vocab["new"])


def test_a_model_of_many_languages_must_be_given_one(mms):
    with pytest.raises(DtlError, match=r"task\.language: the model has 2 languages"):
        bench(mms, [tiny_speech.row("no")])
    with pytest.raises(DtlError, match=r"no language 'swa'\. Fix: did you mean 'swh'\?"):
        bench(mms, [tiny_speech.row("no")], language="swa", vocabulary="model")


def test_what_cannot_be_trained_on_is_left_out_with_its_reason(wav2vec2):
    five_frames = tiny_speech.row("moon", seconds=0.02)["audio"]
    rows = [
        {"audio": five_frames, "text": "moons"},  # a blank parts two equal characters: six frames
        {**tiny_speech.row("no"), "text": " ... "},
        {"audio": tiny_sound.wav(np.zeros((800, 1))), "text": "a"},
        {**tiny_speech.row("sea" * 5), "text": "a"},
        {"audio": five_frames, "text": "mosna"},
    ]
    *left_out, retained = bench(wav2vec2, rows, max_seconds=2.0).encoded
    assert left_out == [
        Skip("more characters than frames"),
        Skip("no characters in the text"),
        Skip("shorter than 0.1 s"),
        Skip("longer than 2 s"),
    ]
    assert (retained.length, retained.targets) == (5, 5)


def test_a_model_that_knows_no_mask_gets_none(group, wav2vec2):
    rows = [tiny_speech.row("tea"), tiny_speech.row("sea moon")]
    assert "attention_mask" not in bench(group, rows).collate([0, 1])
    batch = bench(wav2vec2, rows).collate([0, 1])
    ends = batch["attention_mask"].sum(1)
    assert not batch["input_values"][0, ends[0] :].any()


def test_stereo_of_another_rate_is_resampled_as_the_model_expects(wav2vec2):
    text = "tea at sea"
    sound = np.repeat(tiny_speech.spoken(text, rate=44_100), 2, axis=1)
    plain = bench(wav2vec2, [tiny_speech.row(text)]).encoded[0]
    audio = tiny_sound.wav(sound, rate=44_100)
    other = bench(wav2vec2, [{"audio": audio, "text": text}]).encoded[0]
    assert abs(len(plain.values["samples"]) - len(other.values["samples"])) < 64
    assert abs(plain.length - other.length) <= 1


def test_spans_are_hidden_by_example_in_training_alone(wav2vec2):
    made = bench(wav2vec2, tiny_speech.transcribed(4), mask_time_prob=0.4, mask_time_length=3)
    assert made.model.config.mask_time_prob == 0.4

    def shown(index: int) -> dict[str, Any]:
        draw = np.random.Generator(np.random.Philox(key=[1, index]))
        values = made.encoded[index].values
        return made.task.transform(values, processor=made.processor, rng=draw)

    assert (
        shown(1)["time_mask"].sum() >= 3 and (shown(1)["time_mask"] == shown(1)["time_mask"]).all()
    )
    batch = made.task.collate([shown(index) for index in range(4)], pad_token_id=0)
    parts = [made.task.collate([shown(index)], pad_token_id=0) for index in range(4)]
    seen = made.loss([0, 1, 2, 3])
    with torch.no_grad():
        assert made.task.loss(made.model, batch).item() == pytest.approx(seen, rel=1e-5)
        made.model.train()
        made.model.dropout.p = 0.0
        hidden = made.task.loss(made.model, batch).item()
        split = sum(made.task.loss(made.model, part).item() for part in parts)
        made.model.eval()
    assert hidden != pytest.approx(seen, rel=1e-3)
    assert hidden == pytest.approx(split, rel=1e-5)


@pytest.mark.parametrize("family", ["wav2vec2", "wav2vec2_bert", "group", "mms"])
def test_all_that_learns_has_a_gradient(family, request):
    options = {"language": "eng"} if family == "mms" else {}
    made = bench(
        request.getfixturevalue(family),
        tiny_speech.transcribed(3),
        mask_time_prob=0.2,
        **options,
    )
    model = copy.deepcopy(made.model).train()
    for parameter in made.task.always_frozen(model, random_init=False):
        parameter.requires_grad_(False)
    made.task.loss(model, made.collate([0, 1, 2])).backward()
    learning = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert [name for name, p in learning.items() if p.grad is None] == []
    assert not any("feature_extractor" in name or "masked" in name for name in learning)
    if family == "wav2vec2":
        full = make_task("asr_ctc", train_feature_encoder=True)
        fixed = {id(p) for p in full.always_frozen(copy.deepcopy(made.model), random_init=False)}
        assert len(fixed) == 1


@pytest.mark.parametrize("family", ["wav2vec2", "wav2vec2_bert"])
def test_eight_clips_are_trained_on_and_what_is_saved_writes_them_in_transformers(
    family, request, tmp_path
):
    from transformers import AutoModelForCTC, AutoProcessor, AutoTokenizer

    rows = tiny_speech.transcribed(9)[:8]
    made = bench(request.getfixturevalue(family), rows)
    model, batch = made.model.train(), made.collate(list(range(8)))
    targets = sum(example.targets for example in made.encoded)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(260):
        (made.task.loss(model, batch) / targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    scores = made.task.score(made.eval_records(list(range(8))), made.dataset_stats)
    assert (scores["wer"], scores["cer"]) == (0.0, 0.0)
    model.save_pretrained(tmp_path)
    made.processor.save_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    reopened = AutoModelForCTC.from_pretrained(tmp_path).eval()
    for row in rows:
        sound = tiny_speech.spoken(row["text"])[:, 0].astype(np.float32)
        for part in (tokenizer, processor):
            assert text_of(part, reopened, processor.feature_extractor, sound) == row["text"]


def test_a_path_is_written_as_transformers_writes_it():
    tokenizer = ctc_vocabulary.build_tokenizer("aeo", base=None, language=None)
    draw = np.random.default_rng(1)
    for _ in range(20):
        path = draw.integers(0, len(tokenizer), 40).tolist()
        theirs = " ".join(tokenizer.batch_decode([path])[0].split())
        assert ctc_vocabulary.decode_path(path, tokenizer) == theirs


@pytest.mark.parametrize(
    ("text", "spelt"),
    [
        ("  Don\u2019t STOP, \u2018now\u2019!", "don't stop now"),
        ("नमस्ते, दुनिया।", "नमस्ते दुनिया"),
        ("می\u200cخواهم؟", "می\u200cخواهم"),  # noqa: RUF001
        ("Ça e\u0301té", "ça été"),
        ("n'umuntu - ok", "n'umuntu ok"),
    ],
)
def test_marks_that_carry_meaning_stay(text, spelt):
    assert create_text_normalizer("basic")(text) == spelt
