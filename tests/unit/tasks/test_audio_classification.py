"""Audio classification: model input, frozen parameters and a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dtl import api
from dtl.assembly.parts import Parts
from dtl.config.load import load_config
from dtl.config.schema import Model
from dtl.data.example import EncodedExample, Skip
from dtl.data.modalities.audio import load_audio, to_float32
from dtl.data.sources.rows import Row
from dtl.models.load import load_pretrained
from dtl.models.new_parameters import init_new_parameters
from dtl.models.pretrained_config import HeadConfig, load_model_config
from dtl.models.processor import load_processor
from dtl.strategies import full, lora, scratch
from dtl.tasks.audio_classification import Options, Plugin
from tests import tiny_sound

LABELS = sorted(tiny_sound.PITCHES)


def ready(folder: Path, rows: list[dict[str, Any]], **options: Any) -> tuple[Any, Any, list[Any]]:
    """Task, its processor, and its examples."""
    plugin, source = Plugin(Options(**options)), Model(path=str(folder))
    settings = load_model_config(source)
    numbered = [Row(n, f"rows:{n}", fields) for n, fields in enumerate(rows)]
    processor, dataset_stats = plugin.adapt_processor(
        load_processor(source, "feature_extractor"),
        plugin.collect_dataset_stats(numbered, settings),
    )
    encode = plugin.encoder(processor, dataset_stats, settings)
    return plugin, processor, [encode(one) for one in numbered]


def batch_of(plugin: Any, processor: Any, examples: list[Any]) -> dict[str, torch.Tensor]:
    shown = [plugin.transform(one.values, processor=processor, rng=None) for one in examples]
    return plugin.collate(shown, pad_token_id=0)


def model_of(folder: Path, strategy: Any = full, *, random: bool = False) -> Any:
    plugin, source = Plugin(Options()), Model(path=str(folder))
    dataset_stats = plugin.collect_dataset_stats(
        [Row(n, "", {"label": label}) for n, label in enumerate(LABELS)], load_model_config(source)
    )
    changes = plugin.head_config(dataset_stats)
    loaded = load_pretrained(
        source,
        head=HeadConfig(plugin.auto_class, changes),
        random_init=random,
        seed=0,
        dtype="fp32",
    )
    init_new_parameters(
        loaded.model,
        loaded.new_parameters,
        seed=0,
        write_parameter=lambda p, value: p.data.copy_(value),
    )
    return Parts(plugin, (strategy.Plugin(strategy.Options()),)).apply_strategy(loaded)


def test_a_batch_is_what_the_models_own_extractor_makes(wav2vec2):
    rows = tiny_sound.tones(4)
    plugin, processor, examples = ready(wav2vec2, rows)
    sounds = [to_float32(load_audio(Row(0, "", row), sampling_rate=16_000)) for row in rows]
    theirs = processor(sounds, sampling_rate=16_000, padding=True, return_tensors="pt")
    batch = batch_of(plugin, processor, examples)
    assert torch.equal(batch["attention_mask"], theirs["attention_mask"].long())
    assert torch.allclose(batch["input_values"], theirs["input_values"], atol=1e-6)
    assert batch["labels"].tolist() == [LABELS.index(row["label"]) for row in rows]


def test_models_without_attention_mask_get_none(tmp_path):
    folder = tiny_sound.wav2vec2(tmp_path / "group", norm="group")
    batch = batch_of(*ready(folder, tiny_sound.tones(4)))
    assert batch.keys() == {"input_values", "labels"}


def test_a_spectrogram_is_the_extractors(spectrogram):
    rows = tiny_sound.tones(3)
    plugin, processor, examples = ready(spectrogram, rows)
    sounds = [to_float32(load_audio(Row(0, "", row), sampling_rate=16_000)) for row in rows]
    theirs = processor(sounds, sampling_rate=16_000, return_tensors="pt")["input_values"]
    assert torch.allclose(batch_of(plugin, processor, examples)["input_values"], theirs, atol=1e-6)


def test_lengths_are_the_models_frames(wav2vec2):
    _, _, examples = ready(wav2vec2, tiny_sound.tones(3))
    model = model_of(wav2vec2)
    for example in examples:
        samples = torch.tensor(len(example.values["samples"]))
        assert example.length == int(model._get_feat_extract_output_lengths(samples))


def test_training_reads_random_parts_of_a_long_recording_and_scoring_its_beginning(wav2vec2):
    sound = np.arange(16_000, dtype=np.float64)[:, None] / 40_000
    rows = [{"audio": tiny_sound.wav(sound), "label": label} for label in ("deep", "high")]
    plugin, processor, (example, _) = ready(wav2vec2, rows, max_seconds=0.25)
    assert isinstance(example, EncodedExample) and len(example.values["samples"]) == 16_000
    processor.do_normalize = False

    def start(draw: Any) -> float:
        audio = plugin.transform(example.values, processor=processor, rng=draw)["audio_features"]
        assert len(audio) == 4000
        return round(float(audio[0]) * 40_000)

    assert start(None) == 0
    starts = {start(np.random.default_rng(seed)) for seed in range(20)}
    assert len(starts) > 15 and max(starts) <= 12_001 and max(starts) > 9000
    assert start(np.random.default_rng(3)) == start(np.random.default_rng(3))


def test_short_recording_is_skipped_with_its_reason(wav2vec2):
    rows = tiny_sound.tones(3)
    rows[1]["audio"] = tiny_sound.wav(tiny_sound.tone("deep", seed=1)[:500])
    _, _, examples = ready(wav2vec2, rows)
    assert examples[1] == Skip("shorter than 0.05 s")


@pytest.mark.parametrize(("random", "frozen"), [(False, True), (True, False)])
def test_the_feature_encoder_stays_unless_it_is_new(wav2vec2, random, frozen):
    model = model_of(wav2vec2, scratch if random else full, random=random)
    still = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    encoder = {name for name, _ in model.named_parameters() if ".feature_extractor." in name}
    assert still == (encoder if frozen else set())
    assert encoder and model.config.layerdrop == 0.0


def test_the_model_masks_nothing_of_its_own_accord(wav2vec2, tmp_path):
    """It would draw other spans on each layout, and fail where none fits into 0.1 s."""
    import shutil

    folder = shutil.copytree(wav2vec2, tmp_path / "masking")
    settings = load_model_config(Model(path=str(folder)))
    settings.mask_time_prob = 0.5
    settings.save_pretrained(folder)
    rows = [
        {"audio": tiny_sound.wav(tiny_sound.tone(label, seed=1)[:1600]), "label": label}
        for label in LABELS
    ]
    plugin, processor, examples = ready(folder, rows)
    model = model_of(folder).train()
    batch = batch_of(plugin, processor, examples)
    losses = [plugin.loss(model, batch).item() for _ in range(2)]
    assert losses[0] == losses[1]
    assert not model.wav2vec2.masked_spec_embed.requires_grad, "no gradient where nothing is masked"


def test_run_trains_and_its_adapter_is_opened_by_peft(wav2vec2, tmp_path, cache):
    from peft import PeftModel
    from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

    tiny_sound.write_folder(tmp_path / "train", 24)
    tiny_sound.write_folder(tmp_path / "heldout", 9, seed=2)
    config = tmp_path / "config.yaml"
    config.write_text(
        f"run: {{dir: {tmp_path / 'runs'}, name: tones}}\nmodel: {{path: {wav2vec2}}}\n"
        "task: audio_classification\nstrategy: {name: lora, rank: 4}\n"
        f"data: {{train: {tmp_path / 'train'}, eval: {tmp_path / 'heldout'}}}\n"
        "optim: {learning_rate: 0.02}\ntrain: {steps: 30, global_batch: 8}\n"
        "layout: {processes_per_node: 1, zero_stage: 0}\n"
    )
    outcome = api.train(load_config(config), print_line=lambda _: None)
    assert outcome.exit_code == 0
    scores = outcome.run.result["scores"]["adapted"]
    assert scores["accuracy"] > 0.8
    base = AutoModelForAudioClassification.from_pretrained(wav2vec2, num_labels=3)
    model = PeftModel.from_pretrained(base, outcome.run.export).eval()
    extractor = AutoFeatureExtractor.from_pretrained(outcome.run.export)
    guesses = []
    for path in sorted((tmp_path / "heldout").rglob("*.wav")):
        sound = to_float32(load_audio(Row(0, "", {"audio": str(path)}), sampling_rate=16_000))
        audio = extractor(sound, sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            guesses.append(LABELS[int(model(**audio).logits.argmax())] == path.parent.name)
    assert sum(guesses) / len(guesses) == scores["accuracy"]
    assert lora.Plugin.export_kind == "adapter"
