"""Generates mini:digits: scikit-learn's scanned digits, perturbed; the target of mini:vision."""

from typing import Any

from dtl.mini.perturb import perturb_image

PACKAGES = ("numpy", "pillow", "scikit-learn")
HELDOUT_ROWS = 497  # the last of 1,797: mostly by other writers than the first 1,300
TRAIN_ROWS_PER_DIGIT = 100
MAX_INTENSITY = 16  # of a scan's pixel


def generate() -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each split."""
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
    """Return the rows in the order 0 to 9, 0 to 9, ...: the first 50 have five of each digit."""
    by_digit = [[row for row in rows if row["label"] == str(digit)] for digit in range(10)]
    return [row for group in zip(*by_digit, strict=False) for row in group][
        : 10 * TRAIN_ROWS_PER_DIGIT
    ]
