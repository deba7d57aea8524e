"""Recommendations on data where transfer is known to help, and where it is not."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dtl.compare.records import load_comparison
from tests.distributed.launching import environment

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart" / "vision.yaml"


def compare(folder, *arguments):
    subprocess.run(
        [sys.executable, "-m", "dtl", "compare", str(QUICKSTART), "--out", str(folder), *arguments],
        env=environment(),
        check=True,
    )
    return load_comparison(folder)


@pytest.mark.slow
def test_characters_help_with_digits_and_lp_ft_forgets_less_than_full(tmp_path):
    """`make demo`."""
    comparison = compare(tmp_path / "demo")
    for labels in (5, 10):
        frozen, scratch, full, both = (
            comparison.find_summary(name, labels) for name in ("frozen", "scratch", "full", "lp-ft")
        )
        pair = next(
            pair
            for pair in comparison.differences
            if (pair.first, pair.second, pair.labels) == ("scratch", "frozen", labels)
        )
        assert frozen.score > scratch.score and pair.is_significant
        assert frozen.label_efficiency.scratch_labels >= 20
        assert both.score >= full.score
        assert both.source_score > full.source_score + 0.2
        forgetting = next(
            pair
            for pair in comparison.source_differences
            if (pair.first, pair.second, pair.labels) == ("full", "lp-ft", labels)
        )
        assert forgetting.interval.high < 0, "full does not forget more than lp-ft"
        assert frozen.source_score == comparison.base.source_score
    assert comparison.feature_probe.linear_probe > 0.5


def write_raw_digits(folder):
    """Write scikit-learn's digits without perturbation, 8 x 8: 800 for training, 997 held out."""
    import pyarrow as pa
    from PIL import Image
    from pyarrow import parquet
    from sklearn.datasets import load_digits

    scans = load_digits()
    rows = []
    for scan, digit in zip(scans.images, scans.target, strict=True):
        file = io.BytesIO()
        gray = Image.fromarray((scan * (255 / 16)).round().astype(np.uint8))
        gray.convert("RGB").save(file, "PNG")
        rows.append({"image": file.getvalue(), "label": str(digit)})
    for name, part in (("train", rows[:800]), ("eval", rows[800:])):
        parquet.write_table(pa.Table.from_pylist(part), folder / f"{name}.parquet")


@pytest.mark.slow
def test_scratch_is_recommended_on_write_raw_digits(tmp_path):
    """Scratch is enough, frozen letter features are worse, and full fine-tuning is no better."""
    write_raw_digits(tmp_path)
    comparison = compare(
        tmp_path / "digits",
        *(f"data.train={tmp_path}/train.parquet", f"data.eval={tmp_path}/eval.parquet"),
        *("compare.source_data=null", "--train-sizes", "all"),
        "compare.learning_rates={scratch: 0.01, frozen: 0.01, full: 0.001, lp-ft: 0.001}",
    )
    (advice,) = comparison.recommendations
    assert advice.choice == "scratch"
    assert "train from scratch: no transfer strategy is better" in advice.text
    pair = next(pair for pair in comparison.differences if pair.second == "frozen")
    assert pair.first == "scratch" and pair.is_significant and pair.difference > 0.02

    comparison = compare(
        tmp_path / "frozen",
        *(f"data.train={tmp_path}/train.parquet", f"data.eval={tmp_path}/eval.parquet"),
        *("compare.source_data=null", "--train-sizes", "all", "--strategies", "scratch,frozen"),
        *("--seeds", "2", "compare.learning_rates={scratch: 0.01, frozen: 0.01}"),
    )
    (advice,) = comparison.recommendations
    assert (advice.choice, advice.verdict) == ("scratch", "scratch")
    assert "train from scratch: transfer is negative" in advice.text
