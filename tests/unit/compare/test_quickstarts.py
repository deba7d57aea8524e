"""Where transfer pays and where it does not, on data that is known for it."""

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
def test_letters_help_with_digits_and_two_phases_keep_more_of_them(tmp_path):
    """`make demo`."""
    found = compare(tmp_path / "demo")
    for labels in (5, 10):
        frozen, scratch, full, both = (
            found.find_summary(name, labels) for name in ("frozen", "scratch", "full", "lp-ft")
        )
        pair = next(
            pair
            for pair in found.differences
            if (pair.first, pair.second, pair.labels) == ("scratch", "frozen", labels)
        )
        assert frozen.score > scratch.score and pair.is_significant
        assert frozen.label_efficiency.scratch_labels >= 20
        assert both.score >= full.score
        assert both.source_score > full.source_score + 0.2
        lost = next(
            pair
            for pair in found.source_differences
            if (pair.first, pair.second, pair.labels) == ("full", "lp-ft", labels)
        )
        assert lost.interval.high < 0, "full forgets no more than lp-ft"
        assert frozen.source_score == found.base.source_score
    assert found.feature_probe.linear_probe > 0.5


def raw_digits(folder):
    """Scikit-learn's scans as they are, 8 x 8: 800 to learn from and 997 held out."""
    import pyarrow as pa
    from PIL import Image
    from pyarrow import parquet
    from sklearn.datasets import load_digits

    scans = load_digits()
    rows = []
    for scan, digit in zip(scans.images, scans.target, strict=True):
        file = io.BytesIO()
        grey = Image.fromarray((scan * (255 / 16)).round().astype(np.uint8))
        grey.convert("RGB").save(file, "PNG")
        rows.append({"image": file.getvalue(), "label": str(digit)})
    for name, part in (("train", rows[:800]), ("eval", rows[800:])):
        parquet.write_table(pa.Table.from_pylist(part), folder / f"{name}.parquet")


@pytest.mark.slow
def test_on_raw_digits_scratch_is_taken(tmp_path):
    """A network learns these by itself, frozen features of letters do harm, and to begin with them
    adds nothing."""
    raw_digits(tmp_path)
    found = compare(
        tmp_path / "digits",
        *(f"data.train={tmp_path}/train.parquet", f"data.eval={tmp_path}/eval.parquet"),
        *("compare.source_data=null", "--train-sizes", "all"),
        "compare.learning_rates={scratch: 0.01, frozen: 0.01, full: 0.001, lp-ft: 0.001}",
    )
    (told,) = found.recommendations
    assert told.choice == "scratch"
    assert "train from scratch: no transfer is better" in told.text
    pair = next(pair for pair in found.differences if pair.second == "frozen")
    assert pair.first == "scratch" and pair.is_significant and pair.difference > 0.02

    found = compare(
        tmp_path / "frozen",
        *(f"data.train={tmp_path}/train.parquet", f"data.eval={tmp_path}/eval.parquet"),
        *("compare.source_data=null", "--train-sizes", "all", "--strategies", "scratch,frozen"),
        *("--seeds", "2", "compare.learning_rates={scratch: 0.01, frozen: 0.01}"),
    )
    (told,) = found.recommendations
    assert (told.choice, told.verdict) == ("scratch", "scratch")
    assert "train from scratch: transfer is negative here" in told.text
