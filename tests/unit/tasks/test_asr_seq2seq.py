"""Speech into text: what is read, learned, generated and scored."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jiwer
import numpy as np
import pytest
import torch

from dtl.config.schema import Model
from dtl.core.errors import DtlError
from dtl.data.example import EncodedExample, Skip
from dtl.data.modalities.audio import split_audio
from dtl.data.modalities.spec_augment import SpecAugment
from dtl.data.sources.rows import Row
from dtl.export.load_export import ExportedModel
from dtl.jobs.predict import predict_rows
from dtl.models.load import load_pretrained
from dtl.models.pretrained_config import HeadConfig, load_model_config
from dtl.models.processor import get_pad_token_id, load_processor
from dtl.models.speech.decoder_prompt import configure_prompt
from dtl.tasks.asr_seq2seq import Options, Plugin
from tests import tiny_whisper

FAMILIES = {
    "whisper": {"language": "de"},
    "english_whisper": {},
    "speech_to_text": {},
}
PROMPTS = {
    "whisper": ["<|de|>", "<|transcribe|>", "<|notimestamps|>"],
    "english_whisper": ["<|notimestamps|>"],
    "speech_to_text": [],
}


@dataclass
class Bench:
    """A task set up with a base, as a run does it."""

    task: Plugin
    processor: Any
    dataset_stats: dict[str, Any]
    settings: Any
    model: Any

    def encode(self, *rows: dict[str, Any]) -> list[EncodedExample | Skip]:
        encoder = self.task.encoder(self.processor, self.dataset_stats, self.settings)
        return [encoder(Row(place, f"rows:{place + 1}", row)) for place, row in enumerate(rows)]

    def batch(self, encoded: list[Any], draw: Any = None) -> dict[str, torch.Tensor]:
        shown = [
            self.task.transform(one.values, processor=self.processor, rng=draw) for one in encoded
        ]
        return self.task.collate(shown, pad_token_id=get_pad_token_id(self.processor) or 0)

    def eval_records(self, encoded: list[Any]) -> list[dict[str, Any]]:
        with torch.no_grad():
            return self.task.eval_records(self.model, self.batch(encoded), processor=self.processor)


def bench(folder: Path, **options: Any) -> Bench:
    task, source = Plugin(Options(**options)), Model(path=str(folder))
    settings = load_model_config(source)
    processor, dataset_stats = task.adapt_processor(
        load_processor(source, "processor"), task.collect_dataset_stats([], settings)
    )
    loaded = load_pretrained(
        source,
        head=HeadConfig(task.auto_class, task.head_config(dataset_stats)),
        random_init=False,
        seed=0,
        dtype="fp32",
    )
    loaded.model.config.pad_token_id = get_pad_token_id(processor)  # type: ignore[union-attr]
    task.configure_model(loaded.model, processor=processor)
    return Bench(task, processor, dataset_stats, settings, loaded.model.eval())


@cache
def taught(folder: Path, language: str | None) -> tuple[Bench, list[Any]]:
    """A model that knows eight clips by heart."""
    made = bench(folder, language=language)
    torch.set_num_threads(1)
    encoded = made.encode(*tiny_whisper.spoken(8))
    batch, targets = made.batch(encoded), sum(one.targets for one in encoded)  # type: ignore[union-attr]
    optimizer = torch.optim.AdamW(made.model.parameters(), lr=3e-3)
    made.model.train()
    for _ in range(220):
        (made.task.loss(made.model, batch) / targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    made.model.eval()
    return made, encoded


def clip(seconds: float, text: str = "the river") -> dict[str, Any]:
    sound = np.random.default_rng(1).normal(0, 0.1, round(seconds * tiny_whisper.RATE))
    return {"audio": {"array": sound, "sampling_rate": tiny_whisper.RATE}, "text": text}


# What is read and what is learned ---------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_is_that_of_transformers(family: str, request: pytest.FixtureRequest) -> None:
    made = bench(request.getfixturevalue(family), **FAMILIES[family])
    encoded = made.encode(*tiny_whisper.spoken(5))
    batch = made.batch(encoded)
    inputs = {name: batch[name] for name in ("input_features", "attention_mask", "labels")}
    with torch.no_grad():
        mean = float(made.model(**inputs).loss)
        ours = float(made.task.loss(made.model, batch))
    assert ours == pytest.approx(mean * sum(one.targets for one in encoded), rel=1e-5)  # type: ignore[union-attr]


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_are_the_prompt_the_text_and_one_end(
    family: str, request: pytest.FixtureRequest
) -> None:
    """The start, which the decoder is given, is not among them."""
    made = bench(request.getfixturevalue(family), **FAMILIES[family])
    (encoded,) = made.encode(clip(1.0, "the old river"))
    assert isinstance(encoded, EncodedExample)
    tokenizer = made.processor.tokenizer
    text = tokenizer("the old river", add_special_tokens=False)["input_ids"]
    prompt = tokenizer.convert_tokens_to_ids(PROMPTS[family])
    assert list(encoded.values["labels"]) == [*prompt, *text, tokenizer.eos_token_id]
    assert encoded.targets == len(prompt) + len(text) + 1
    seen = []
    made.model.get_decoder().register_forward_pre_hook(
        lambda _, given, named: seen.append(named["input_ids"][0].tolist()), with_kwargs=True
    )
    made.task.loss(made.model, made.batch([encoded]))
    assert seen[0] == [made.settings.decoder_start_token_id, *encoded.values["labels"][:-1]]


def test_features_are_those_of_the_models_extractor(whisper: Path) -> None:
    from transformers import WhisperFeatureExtractor

    made = bench(whisper, language="de")
    batch = made.batch(made.encode(*tiny_whisper.spoken(3)))
    theirs = WhisperFeatureExtractor.from_pretrained(whisper)(
        [row["audio"]["array"] for row in tiny_whisper.spoken(3)],
        sampling_rate=16_000,
        return_tensors="pt",
        return_attention_mask=True,
    )
    assert torch.equal(batch["input_features"], theirs["input_features"])
    assert torch.equal(batch["attention_mask"], theirs["attention_mask"].long())


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (clip(2.01), "longer than 2 s"),
        (clip(0.09), "shorter than 0.1 s"),
        (clip(1.0, "the river " * 40), "text of more than 64 tokens"),
        (clip(1.0, " "), "empty text"),
    ],
)
def test_what_cannot_be_trained_on_is_left_out_with_its_reason(
    row: dict[str, Any], reason: str, whisper: Path
) -> None:
    made = bench(whisper, language="de")
    assert made.encode(row, clip(2.0))[0] == Skip(reason)
    assert isinstance(made.encode(clip(2.0))[0], EncodedExample), "as long as the model hears"


def test_silence_has_no_features_for_speech2text(speech_to_text: Path, whisper: Path) -> None:
    silence = {"audio": {"array": np.zeros(16_000), "sampling_rate": 16_000}, "text": "stone"}
    assert bench(speech_to_text).encode(silence) == [Skip("no audible sound")]
    assert isinstance(bench(whisper, language="de").encode(silence)[0], EncodedExample)


def test_more_than_the_model_hears_at_once_is_refused(whisper: Path) -> None:
    made = bench(whisper, language="de", max_seconds=30)
    with pytest.raises(
        DtlError, match=r"max_seconds: 30 s are more than the model reads at once \(2 s\)"
    ):
        made.encode(clip(1.0))
    assert bench(whisper, language="de", max_seconds=1).encode(clip(1.1)) == [
        Skip("longer than 1 s")
    ]


def test_an_extractor_of_another_length_is_reported(whisper: Path) -> None:
    made = bench(whisper, language="de")
    made.processor.feature_extractor.nb_max_frames = 3000
    with pytest.raises(DtlError, match="makes 3000 frames, and the model reads 200"):
        made.encode(clip(1.0))


# Languages --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["de", "German", "<|de|>"])
def test_a_language_may_be_named_in_any_of_whispers_ways(name: str, whisper: Path) -> None:
    made = bench(whisper, language=name, action="translate")
    (encoded,) = made.encode(clip(1.0))
    tokens = made.processor.tokenizer.convert_ids_to_tokens(list(encoded.values["labels"]))  # type: ignore[union-attr]
    assert tokens[:3] == ["<|de|>", "<|translate|>", "<|notimestamps|>"]
    assert made.dataset_stats["language"] == "en", "a translation is English"


@pytest.mark.parametrize(
    ("family", "options", "reported"),
    [
        ("whisper", {}, "task.language: the model has many languages, and none is set"),
        ("whisper", {"language": "germn"}, "task.language: Whisper has no language 'germn'"),
        ("english_whisper", {"language": "de"}, "task.language: the model is English-only"),
        ("english_whisper", {"action": "translate"}, "task.action: the model is English-only"),
        ("speech_to_text", {"language": "de"}, "task.language: .* has no language tokens"),
        ("speech_to_text", {"action": "translate"}, "task.action: .* has no token"),
        ("speech_to_text", {"spec_augment": True}, "task.spec_augment: .* no settings"),
    ],
)
def test_a_language_or_action_that_is_not_there_is_reported(
    family: str, options: dict[str, Any], reported: str, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(DtlError, match=reported):
        bench(request.getfixturevalue(family), **options)


def test_a_language_without_its_own_token_is_reported() -> None:
    """Cantonese is the 100th language; in a vocabulary of 99, another token stands there."""
    tokenizer = tiny_whisper.tokenizer()
    numbers = tokenizer.get_vocab()
    del numbers["<|yue|>"]
    tokenizer.get_vocab = lambda: numbers
    with pytest.raises(DtlError, match="no token for 'yue'"):
        configure_prompt(tokenizer, language="yue", action="transcribe", multilingual=True)


def test_speech2text_of_many_languages_must_begin_with_the_one_named() -> None:
    many = SimpleNamespace(lang_code_to_id={"de": 5, "fr": 6}, tgt_lang="fr")
    with pytest.raises(DtlError, match=r"several languages, and none is set.*de, fr"):
        configure_prompt(many, language=None, action="transcribe", multilingual=None)
    assert configure_prompt(many, language="de", action="transcribe", multilingual=None) == "de"
    assert many.tgt_lang == "de"


def test_english_by_name_needs_no_tokens(english_whisper: Path) -> None:
    made = bench(english_whisper, language="english")
    assert (
        made.processor.tokenizer.prefix_tokens
        == bench(english_whisper).processor.tokenizer.prefix_tokens
    )
    assert not made.model.generation_config.is_multilingual


# Generation and scores --------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_eight_clips_are_overfitted(family: str, request: pytest.FixtureRequest) -> None:
    made, encoded = taught(request.getfixturevalue(family), FAMILIES[family].get("language"))
    records = made.eval_records(encoded)
    assert [record["reference"] for record in records] == tiny_whisper.texts(8)
    assert made.task.score(records, made.dataset_stats)["wer"] == 0
    alone = [record for one in encoded for record in made.eval_records([one])]
    for one, other in zip(records, alone, strict=True):
        assert one.pop("loss") == pytest.approx(other.pop("loss"), rel=1e-4)
        assert one == other


@pytest.mark.parametrize("family", FAMILIES)
def test_an_exported_model_generates_the_same_by_itself(
    family: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Plain transformers without options: language and task are in the files."""
    from transformers import AutoFeatureExtractor, AutoModelForSpeechSeq2Seq, AutoTokenizer

    made, encoded = taught(request.getfixturevalue(family), FAMILIES[family].get("language"))
    made.model.save_pretrained(tmp_path)
    made.processor.save_pretrained(tmp_path)
    model = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path)
    theirs = []
    for row in tiny_whisper.spoken(8):
        audio = extractor(row["audio"]["array"], sampling_rate=16_000, return_tensors="pt")
        tokens = model.generate(**audio, max_new_tokens=56)
        theirs.append(tokenizer.batch_decode(tokens, skip_special_tokens=True)[0].strip())
    assert theirs == [record["hypothesis"] for record in made.eval_records(encoded)]
    assert tokenizer("a")["input_ids"] == made.processor.tokenizer("a")["input_ids"]


def test_a_whisper_processor_opens_what_is_exported(whisper: Path, tmp_path: Path) -> None:
    from transformers import WhisperProcessor

    made = bench(whisper, language="hi")
    made.processor.save_pretrained(tmp_path)
    opened = WhisperProcessor.from_pretrained(tmp_path)
    assert opened.tokenizer.language == "hi" and opened.tokenizer.task == "transcribe"
    assert opened.feature_extractor.nb_max_frames == 200


def test_the_models_own_generation_settings_stay(whisper: Path) -> None:
    made, encoded = taught(whisper, "de")
    before = copy.deepcopy(made.model.generation_config).to_dict()
    plugin = Plugin(Options(language="de", max_new_tokens=4, num_beams=2))
    records = plugin.eval_records(made.model, made.batch(encoded), processor=made.processor)
    assert made.model.generation_config.to_dict() == before
    tokenizer = made.processor.tokenizer
    lengths = [
        len(tokenizer(record["hypothesis"], add_special_tokens=False)["input_ids"])
        for record in records
    ]
    assert 0 < max(lengths) <= 4 < max(one.targets - 4 for one in encoded)


def test_scores_are_those_of_jiwer(whisper: Path) -> None:
    made = bench(whisper, language="de")
    truth, found = ["Der Fluss, der alte.", "ein Stein"], ["der fluss der alte", "ein ein Haus"]
    records = [
        {"loss": 3.0, "targets": 6, "correct": 3, "reference": one, "hypothesis": other}
        for one, other in zip(truth, found, strict=True)
    ]
    scores = made.task.score(records, made.dataset_stats)
    words = jiwer.process_words(truth, found)
    assert scores["wer"] == words.wer
    assert scores["cer"] == jiwer.cer(truth, found)
    assert [scores[name] for name in ("substitutions", "deletions", "insertions")] == [
        words.substitutions,
        words.deletions,
        words.insertions,
    ]
    assert scores["wer_normalized"] == pytest.approx(2 / 6), "by hand: one word too many, one wrong"
    assert (scores["loss"], scores["accuracy"]) == (0.5, 0.5)


# What is fixed, and what is hidden --------------------------------------------------------------


def test_positions_that_were_computed_stay(whisper: Path, speech_to_text: Path) -> None:
    from transformers.models.whisper.modeling_whisper import sinusoids

    made = bench(whisper, language="de")
    (fixed,) = made.task.always_frozen(made.model, random_init=False)
    assert fixed is made.model.model.encoder.embed_positions.weight
    assert torch.equal(fixed, sinusoids(*fixed.shape))
    other = bench(speech_to_text)
    assert list(other.task.always_frozen(other.model, random_init=False)) == []


def test_no_layer_is_dropped(tmp_path: Path) -> None:
    folder = tiny_whisper.whisper(tmp_path, encoder_layerdrop=0.5, decoder_layerdrop=0.5)
    made = bench(folder, language="de")
    assert (made.model.model.encoder.layerdrop, made.model.model.decoder.layerdrop) == (0, 0)


def test_what_is_hidden_is_drawn_by_example_and_only_in_training(tmp_path: Path) -> None:
    folder = tiny_whisper.whisper(
        tmp_path, apply_spec_augment=True, mask_time_prob=0.5, mask_feature_prob=0.3
    )
    made = bench(folder, language="de")
    assert made.model.config.apply_spec_augment is False, "the model itself would mask by layout"
    encoded = made.encode(*tiny_whisper.spoken(2))
    draws = [np.random.Generator(np.random.Philox(key=[1, seed])) for seed in (7, 7, 8)]
    first, again, other = [made.batch(encoded[:1], draw)["input_features"] for draw in draws]
    plain = made.batch(encoded[:1])["input_features"]
    assert torch.equal(first, again) and not torch.equal(first, other)
    hidden = first != plain
    assert hidden.any() and (first[hidden] == 0).all()
    without = bench(folder, language="de", spec_augment=False)
    draw = np.random.Generator(np.random.Philox(key=[1, 7]))
    assert torch.equal(without.batch(encoded[:1], draw)["input_features"], plain)


def test_spans_are_hidden_as_often_as_asked() -> None:
    augment = SpecAugment(0.05, 10, 2, 0.1, 4, 0)
    draw = np.random.Generator(np.random.Philox(key=[1, 1]))
    shares = [
        augment.mask_features(np.ones((80, 1000)), frames=1000, rng=draw) == 0 for _ in range(100)
    ]
    frames = np.mean([hidden.all(axis=0).mean() for hidden in shares])
    bands = np.mean([hidden.all(axis=1).mean() for hidden in shares])
    assert frames == pytest.approx(0.05, abs=0.005) and bands == pytest.approx(0.1, abs=0.02)
    short = augment.mask_features(np.ones((80, 1000)), frames=9, rng=draw)
    assert not (short == 0).all(axis=0).any(), "no span of 10 fits into 9 frames"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_long_recording_is_written_piece_by_piece_as_transformers_writes_each(
    family: str, request: pytest.FixtureRequest
) -> None:
    """In prediction alone, beside a short one; scoring leaves it out."""
    made = bench(request.getfixturevalue(family), **FAMILIES[family], max_seconds=2)
    pause = np.zeros(tiny_whisper.RATE // 4)
    clips = [part for row in tiny_whisper.spoken(8) for part in (row["audio"]["array"], pause)]
    long = {"audio": {"array": np.concatenate(clips), "sampling_rate": tiny_whisper.RATE}}
    rows = [Row(0, "a", tiny_whisper.spoken(1)[0]), Row(1, "b", long), Row(2, "c", clip(0.05))]
    exported = ExportedModel(
        made.task, made.dataset_stats, {}, made.model, made.processor, made.settings
    )
    short, found, none = predict_rows(rows, exported, batch_size=3, max_new_tokens=20)
    expected = []
    pieces = split_audio(rows[1], sampling_rate=tiny_whisper.RATE, max_seconds=2, min_seconds=0.1)
    for piece in [rows[0], *pieces]:
        encoded = made.encode({**piece.fields, "text": "a"})
        batch = {name: made.batch(encoded)[name] for name in ("input_features", "attention_mask")}
        tokens = made.model.generate(**batch, max_new_tokens=20)
        (text,) = made.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        expected.append(text.strip())
    assert len(pieces) > 2 and any(expected)
    assert short["predicted"] == expected[0]
    assert found["predicted"] == " ".join(filter(None, expected[1:]))
    assert (none["predicted"], none["reason"]) == (None, "shorter than 0.1 s")
    assert made.encode({**long, "text": "a"}) == [Skip("longer than 2 s")]
