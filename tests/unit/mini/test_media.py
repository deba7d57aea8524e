"""The miniature beds for speech and vision: what they hold, and that transfer shows on them."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dtl import api
from dtl.config.load import load_config
from dtl.mini import digits, glyphs
from dtl import mini
from dtl.mini.perturb import IMAGE_SIDE, perturb_image

CONFIGS = Path(__file__).parents[3] / "configs"
HASHES = {  # the first half of each SHA-256
    "clips/accents-heldout.parquet": "dee3a1db2d553ac0a4bef987c2a6bfd8",
    "clips/accents-train.parquet": "170626e58627e34ec9b2d75c09bf117a",
    "clips/spoken-heldout.parquet": "f9c5262bed76a6dad849d4adad9a2f4f",
    "clips/spoken-train.parquet": "f0b6429386206bc37f13db76360dca61",
    "glyphs.png": "6e6f37e5ad24ef230df4507055de48ec",
    "speech/model.safetensors": "cc9ea10513ffa24e98cdf3e51d8a1d01",
}


def test_what_is_shipped_is_what_was_made():
    folder = Path(mini.__file__).parent
    for name, expected in HASHES.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest().startswith(expected), name


def test_all_that_is_shipped_for_speech_and_vision_is_small():
    folder = Path(mini.__file__).parent
    files = [folder / "glyphs.png", *(folder / "clips").iterdir()]
    files += [file for base in ("speech", "vision") for file in (folder / base).iterdir()]
    assert sum(file.stat().st_size for file in files) < 12e6


@pytest.fixture(scope="module")
def clips() -> dict[tuple[str, str], list[dict[str, Any]]]:
    places = [(name, split) for name in mini.SHIPPED_DATA for split in mini.SPLITS[name]]
    return {place: mini.load_rows(*place) for place in places}


def test_held_out_voices_are_heard_nowhere_else(clips):
    voices = {place: {row["speaker"] for row in rows} for place, rows in clips.items()}
    held_out = voices["spoken", "heldout"]
    assert voices["accents", "heldout"] == held_out and len(held_out) >= 8
    assert not held_out & (voices["spoken", "train"] | voices["accents", "train"])


def test_the_accents_say_the_same_words(clips):
    words = {
        place: {word for row in rows for word in row["text"].split()}
        for place, rows in clips.items()
    }
    assert len(words["spoken", "train"]) == 20
    assert all(found <= words["spoken", "train"] for found in words.values())
    assert {row["accent"] for row in clips["spoken", "train"]} == {"en-us"}
    assert {row["accent"] for row in clips["accents", "train"]} == {"en-gb-x-rp"}
    sizes = {place: len(rows) for place, rows in clips.items()}
    assert sizes["accents", "train"] == 40
    assert sizes["accents", "heldout"] == sizes["spoken", "heldout"] == 120


def test_the_speech_base_knows_its_own_accent_better_than_the_other(clips):
    """With plain transformers; a clip of one second is a second's work for all of them."""
    import jiwer
    import soundfile
    from transformers import AutoFeatureExtractor, AutoModelForCTC, AutoTokenizer

    folder = mini.base_folder("speech")
    model = AutoModelForCTC.from_pretrained(folder).eval()
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rates = {}
    for name in ("spoken", "accents"):
        rows = clips[name, "heldout"]
        heard = []
        for row in rows:
            sound, rate = soundfile.read(io.BytesIO(row["audio"]), dtype="float32")
            assert rate == extractor.sampling_rate
            with torch.no_grad():
                logits = model(**extractor(sound, sampling_rate=rate, return_tensors="pt")).logits
            heard += tokenizer.batch_decode(logits.argmax(-1))
        rates[name] = jiwer.wer([row["text"] for row in rows], heard)
    assert rates["spoken"] < 0.1 < 0.2 < rates["accents"] < 0.4


def test_the_command_writes_a_folder_for_speech_to_start_from(tmp_path):
    """`python -m dtl.mini speech FOLDER`: what was shipped beside the weights, and no more."""
    from transformers import AutoConfig

    from dtl.mini.__main__ import main

    assert main(["speech", str(tmp_path)]) == 0
    shipped = mini.base_folder("speech")
    for name in ("vocab.json", "tokenizer_config.json", "preprocessor_config.json"):
        assert (tmp_path / name).read_text() == (shipped / name).read_text(), name
    written, known = (
        AutoConfig.from_pretrained(folder).to_diff_dict() for folder in (tmp_path, shipped)
    )
    assert written == {key: value for key, value in known.items() if key != "dtype"}
    names = {path.name for path in tmp_path.iterdir()} | {"model.safetensors"}
    assert names == {path.name for path in shipped.iterdir()}


def test_the_speech_base_can_be_made_anew(tmp_path):
    """Two steps of configs/mini/speech.yaml, then its weights packed as the shipped ones are."""
    from safetensors.torch import load_file

    from dtl.mini.__main__ import main

    overrides = ["data.train.limit=8", "data.eval.limit=4", "train.steps=2", "train.global_batch=4"]
    config = load_config(CONFIGS / "mini" / "speech.yaml", [*overrides, f"run.dir={tmp_path}"])
    outcome = api.train(config, say=lambda _: None)
    assert outcome.exit_code == 0
    assert main(["speech", str(tmp_path / "base")]) == 0
    assert main(["speech", str(tmp_path / "base"), "--weights", str(outcome.run.export)]) == 0
    made, shipped = (
        load_file(folder / "model.safetensors")
        for folder in (tmp_path / "base", mini.base_folder("speech"))
    )
    assert {name: (value.shape, value.dtype) for name, value in made.items()} == {
        name: (value.shape, value.dtype) for name, value in shipped.items()
    }


def test_a_picture_is_disturbed_by_its_name_alone():
    clean = np.zeros((8, 8), np.uint8)
    clean[2:6, 3] = 255
    first = perturb_image(clean, name="one")
    assert perturb_image(clean, name="one") == first != perturb_image(clean, name="other")
    from PIL import Image

    with Image.open(io.BytesIO(first)) as picture:
        assert (picture.size, picture.mode) == ((IMAGE_SIDE, IMAGE_SIDE), "RGB")


def test_no_digit_is_among_the_glyphs_and_fonts_are_held_out():
    assert not set(glyphs.SIGNS) & set("0123456789") and len(set(glyphs.SIGNS)) == 47
    assert not set(glyphs.TRAIN_FONTS) & set(glyphs.HELDOUT_FONTS)


def test_the_first_rows_of_digits_hold_as_many_of_each():
    rows = mini.load_rows("digits", "train")
    assert Counter(row["label"] for row in rows[:50]) == {str(digit): 5 for digit in range(10)}
    held_out = mini.load_rows("digits", "heldout")
    assert len(rows) == 1000 and len(held_out) == digits.HELDOUT_ROWS
    assert not {row["image"] for row in rows} & {row["image"] for row in held_out}


def test_what_makes_the_beds_is_not_imported_with_them():
    program = (
        "import sys; from dtl import mini\n"
        "mini.data_file('spoken', 'train'); mini.base_folder('speech'); mini.base_folder('vision')\n"
        "assert not {'espeakng_loader', 'matplotlib', 'torch'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def accuracy(strategy: str, folder: Path, *, seed: int, shots: int = 5) -> float:
    """On held-out digits, of a run that saw so many of each."""
    overrides = [f"strategy={strategy}", f"run.name={strategy}-{shots}-{seed}", f"run.dir={folder}"]
    overrides += [
        f"train.seed={seed}",
        f"data.subsample.size={shots}",
        "layout.processes_per_node=1",
    ]
    if strategy == "scratch":  # as the base itself was trained
        overrides += ["optim.learning_rate=0.003", "layout.micro_batch=32"]
    config = load_config(CONFIGS / "quickstart" / "vision.yaml", overrides)
    outcome = api.train(config, say=lambda _: None)
    assert outcome.exit_code == 0
    return float(outcome.run.result["scores"]["adapted"]["accuracy"])


def test_frozen_features_of_letters_tell_digits_apart(tmp_path):
    assert accuracy("frozen", tmp_path, seed=0) > 0.55


@pytest.mark.slow
@pytest.mark.parametrize("shots", [5, 20])
def test_frozen_features_beat_scratch_by_fifteen_points(tmp_path, shots):
    for seed in range(3):
        frozen, scratch = (
            accuracy(strategy, tmp_path, seed=seed, shots=shots)
            for strategy in ("frozen", "scratch")
        )
        assert frozen >= scratch + 0.15


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_forty_clips_halve_the_errors_in_another_accent(tmp_path, seed):
    overrides = [f"run.dir={tmp_path}", f"train.seed={seed}", "layout.processes_per_node=1"]
    config = load_config(CONFIGS / "quickstart" / "speech.yaml", overrides)
    outcome = api.train(config, say=lambda _: None)
    scores = outcome.run.result["scores"]
    assert scores["adapted"]["wer"] <= 0.5 * scores["unadapted"]["wer"]
