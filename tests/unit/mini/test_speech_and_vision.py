"""The miniature speech and vision data and bases, and that transfer works on them."""

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

from dtl import api, mini
from dtl.config.load import load_config
from dtl.mini import digits, glyphs
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


def test_shipped_files_have_known_hashes():
    folder = Path(mini.__file__).parent
    for name, expected in HASHES.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest().startswith(expected), name


def test_shipped_files_for_speech_and_vision_are_small():
    folder = Path(mini.__file__).parent
    files = [folder / "glyphs.png", *(folder / "clips").iterdir()]
    files += [file for base in ("speech", "vision") for file in (folder / base).iterdir()]
    assert sum(file.stat().st_size for file in files) < 12e6


@pytest.fixture(scope="module")
def clips() -> dict[tuple[str, str], list[dict[str, Any]]]:
    keys = [(name, split) for name in mini.SHIPPED_DATA for split in mini.SPLITS[name]]
    return {key: mini.load_rows(*key) for key in keys}


def test_heldout_speakers_are_not_in_training_data(clips):
    speakers = {key: {row["speaker"] for row in rows} for key, rows in clips.items()}
    held_out = speakers["spoken", "heldout"]
    assert speakers["accents", "heldout"] == held_out and len(held_out) >= 8
    assert not held_out & (speakers["spoken", "train"] | speakers["accents", "train"])


def test_accents_have_the_same_words(clips):
    words = {
        key: {word for row in rows for word in row["text"].split()} for key, rows in clips.items()
    }
    assert len(words["spoken", "train"]) == 20
    assert all(own <= words["spoken", "train"] for own in words.values())
    assert {row["accent"] for row in clips["spoken", "train"]} == {"en-us"}
    assert {row["accent"] for row in clips["accents", "train"]} == {"en-gb-x-rp"}
    sizes = {key: len(rows) for key, rows in clips.items()}
    assert sizes["accents", "train"] == 40
    assert sizes["accents", "heldout"] == sizes["spoken", "heldout"] == 120


def test_speech_base_is_better_on_its_own_accent(clips):
    """Word error rates with plain transformers."""
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
        transcripts = []
        for row in rows:
            samples, rate = soundfile.read(io.BytesIO(row["audio"]), dtype="float32")
            assert rate == extractor.sampling_rate
            with torch.no_grad():
                logits = model(**extractor(samples, sampling_rate=rate, return_tensors="pt")).logits
            transcripts += tokenizer.batch_decode(logits.argmax(-1))
        rates[name] = jiwer.wer([row["text"] for row in rows], transcripts)
    assert rates["spoken"] < 0.1 < 0.2 < rates["accents"] < 0.4


def test_command_writes_config_and_processor_of_speech_base(tmp_path):
    """`python -m dtl.mini speech FOLDER`: the shipped files without the weights."""
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


@pytest.mark.slow
def test_speech_base_can_be_trained_and_packed_again(tmp_path):
    """Trains two steps of configs/mini/speech.yaml, then packs its weights."""
    from safetensors.torch import load_file

    from dtl.mini.__main__ import main

    overrides = ["data.train.limit=8", "data.eval.limit=4", "train.steps=2", "train.global_batch=4"]
    config = load_config(CONFIGS / "mini" / "speech.yaml", [*overrides, f"run.dir={tmp_path}"])
    outcome = api.train(config, print_line=lambda _: None)
    assert outcome.exit_code == 0
    assert main(["speech", str(tmp_path / "base")]) == 0
    assert main(["speech", str(tmp_path / "base"), "--weights", str(outcome.run.export)]) == 0
    packed, shipped = (
        load_file(folder / "model.safetensors")
        for folder in (tmp_path / "base", mini.base_folder("speech"))
    )
    assert {name: (value.shape, value.dtype) for name, value in packed.items()} == {
        name: (value.shape, value.dtype) for name, value in shipped.items()
    }


def test_perturbation_depends_only_on_the_name():
    clean = np.zeros((8, 8), np.uint8)
    clean[2:6, 3] = 255
    first = perturb_image(clean, name="one")
    assert perturb_image(clean, name="one") == first != perturb_image(clean, name="other")
    from PIL import Image

    with Image.open(io.BytesIO(first)) as image:
        assert (image.size, image.mode) == ((IMAGE_SIDE, IMAGE_SIDE), "RGB")


def test_glyphs_have_no_digits_and_heldout_fonts():
    assert not set(glyphs.SIGNS) & set("0123456789") and len(set(glyphs.SIGNS)) == 47
    assert not set(glyphs.TRAIN_FONTS) & set(glyphs.HELDOUT_FONTS)


def test_first_rows_of_digits_are_balanced():
    rows = mini.load_rows("digits", "train")
    assert Counter(row["label"] for row in rows[:50]) == {str(digit): 5 for digit in range(10)}
    held_out = mini.load_rows("digits", "heldout")
    assert len(rows) == 1000 and len(held_out) == digits.HELDOUT_ROWS
    assert not {row["image"] for row in rows} & {row["image"] for row in held_out}


def test_loading_data_imports_no_generator_packages():
    program = (
        "import sys; from dtl import mini\n"
        "mini.data_file('spoken', 'train')\n"
        "mini.base_folder('speech'); mini.base_folder('vision')\n"
        "assert not {'espeakng_loader', 'matplotlib', 'torch'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def accuracy(strategy: str, folder: Path, *, seed: int, shots: int = 5) -> float:
    """Return the held-out accuracy of a run on mini:digits with `shots` rows per class."""
    overrides = [f"strategy={strategy}", f"run.name={strategy}-{shots}-{seed}", f"run.dir={folder}"]
    overrides += [
        f"train.seed={seed}",
        f"data.subsample.size={shots}",
        "layout.processes_per_node=1",
    ]
    if strategy == "scratch":  # the settings of the base's own training
        overrides += ["optim.learning_rate=0.003", "layout.micro_batch=32"]
    config = load_config(CONFIGS / "quickstart" / "vision.yaml", overrides)
    outcome = api.train(config, print_line=lambda _: None)
    assert outcome.exit_code == 0
    return float(outcome.run.result["scores"]["adapted"]["accuracy"])


def test_frozen_letter_features_classify_digits(tmp_path):
    assert accuracy("frozen", tmp_path, seed=0) > 0.55


@pytest.mark.slow
@pytest.mark.parametrize("shots", [5, 20])
def test_frozen_features_are_fifteen_points_better_than_scratch(tmp_path, shots):
    for seed in range(3):
        frozen, scratch = (
            accuracy(strategy, tmp_path, seed=seed, shots=shots)
            for strategy in ("frozen", "scratch")
        )
        assert frozen >= scratch + 0.15


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_forty_clips_halve_the_error_rate_in_another_accent(tmp_path, seed):
    overrides = [f"run.dir={tmp_path}", f"train.seed={seed}", "layout.processes_per_node=1"]
    config = load_config(CONFIGS / "quickstart" / "speech.yaml", overrides)
    outcome = api.train(config, print_line=lambda _: None)
    scores = outcome.run.result["scores"]
    assert scores["adapted"]["wer"] <= 0.5 * scores["unadapted"]["wer"]
