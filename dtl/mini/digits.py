"""Scikit-learn's scanned digits, disturbed as the glyphs are: the target of the vision bed."""

from typing import Any

from dtl.mini.perturb import perturb_image

PACKAGES = ("numpy", "pillow", "scikit-learn")
HELDOUT_ROWS = 497  # the last of 1,797: mostly other writers than in the first 1,300
TRAIN_ROWS_PER_DIGIT = 100
MAX_INTENSITY = 16  # of the scans


def generate() -> dict[str, list[dict[str, Any]]]:
    from sklearn.datasets import load_digits

    scans = load_digits()
    rows = [
        {
            "image": perturb_image(
                (scan * (255 / MAX_INTENSITY)).round().astype("uint8"), name=f"digit {n}"
            ),
            "label": str(digit),
        }
        for n, (scan, digit) in enumerate(zip(scans.images, scans.target, strict=True))
    ]
    return {"train": _interleave_digits(rows[:-HELDOUT_ROWS]), "heldout": rows[-HELDOUT_ROWS:]}


def _interleave_digits(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """0 to 9, again and again: the first 50 rows hold five of each digit."""
    by_digit = [[row for row in rows if row["label"] == str(digit)] for digit in range(10)]
    return [row for turn in zip(*by_digit, strict=False) for row in turn][
        : 10 * TRAIN_ROWS_PER_DIGIT
    ]
