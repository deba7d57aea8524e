"""Vectors of rows, against plain transformers, row by row."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoModel, AutoTokenizer

from dtl.data.sources.rows import Row
from dtl.evaluation.pooled_features import pool_features
from tests.unit.train.features.test_cache import CASES, configure


def of_text(base: Path, row: dict[str, Any]) -> torch.Tensor:
    read = AutoTokenizer.from_pretrained(base)(row["text"], return_tensors="pt")
    inputs = {name: read[name] for name in ("input_ids", "attention_mask")}
    return AutoModel.from_pretrained(base).eval()(**inputs).last_hidden_state[0].mean(0)


def of_sound(base: Path, row: dict[str, Any]) -> torch.Tensor:
    samples, rate = soundfile.read(io.BytesIO(row["audio"]), dtype="float32")
    read = AutoFeatureExtractor.from_pretrained(base)(
        samples, sampling_rate=rate, return_tensors="pt"
    )
    return AutoModel.from_pretrained(base).eval()(**read).last_hidden_state[0].mean(0)


def of_picture(base: Path, row: dict[str, Any]) -> torch.Tensor:
    picture = Image.open(io.BytesIO(row["image"])).convert("RGB")
    read = AutoImageProcessor.from_pretrained(base)(picture, return_tensors="pt")
    made = AutoModel.from_pretrained(base).eval()(**read)
    states = made.last_hidden_state
    return states[0].mean(0) if states.ndim == 3 else made.pooler_output.flatten()


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("bert", of_text),
        ("llama", of_text),
        ("wav2vec2", of_sound),
        ("vit", of_picture),
        ("resnet", of_picture),
    ],
)
def test_a_vector_is_the_mean_of_what_the_plain_base_makes(
    tmp_path: Path, cache: Path, name: str, plain: Any
) -> None:
    case = CASES[name]
    config = configure(tmp_path, case, "run", None)
    rows = case.rows(5, seed=1)
    found = pool_features(config, [Row(n, f"row {n}", row) for n, row in enumerate(rows)])
    with torch.no_grad():
        expected = np.stack([plain(tmp_path / "base", row).numpy() for row in rows])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_row_of_which_nothing_can_be_read_is_no_number(tmp_path: Path, cache: Path) -> None:
    config = configure(tmp_path, CASES["bert"], "run", None)
    texts = ["", *(row["text"] for row in CASES["bert"].rows(2, seed=1))]
    rows = [Row(n, f"row {n}", {"text": text, "label": "l0"}) for n, text in enumerate(texts)]
    assert np.isnan(pool_features(config, rows)).all(1).tolist() == [True, False, False]
