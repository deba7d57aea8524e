"""Generates mini:glyphs: perturbed images of characters and signs in many fonts; without digits.

The clean glyphs are in `glyphs.png`, one column per sign and one row per font.
"""

from pathlib import Path
from typing import Any

from dtl.mini.perturb import perturb_image

PACKAGES = ("numpy", "pillow")
SHEET_FILE = Path(__file__).parent / "glyphs.png"
CELL_SIDE = 24  # pixels
SIGNS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghmnqrtjyu&?%$@#"
TRAIN_FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono"),
    *("DejaVuSansMono-BoldOblique", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralBolIta", "cmr10", "cmss10", "cmtt10"),
)
HELDOUT_FONTS = ("DejaVuSansMono-Bold", "DejaVuSerif-BoldItalic", "STIXGeneralItalic", "cmb10")
FONTS = TRAIN_FONTS + HELDOUT_FONTS
TRAIN_ROWS_PER_SIGN, HELDOUT_ROWS_PER_SIGN = 200, 12


def generate() -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each split."""
    return {
        "train": _generate_split("train", TRAIN_FONTS, rows_per_sign=TRAIN_ROWS_PER_SIGN),
        "heldout": _generate_split("heldout", HELDOUT_FONTS, rows_per_sign=HELDOUT_ROWS_PER_SIGN),
    }


def _generate_split(
    split: str, fonts: tuple[str, ...], *, rows_per_sign: int
) -> list[dict[str, Any]]:
    """Return the rows ordered by repetition, then by sign, so that first rows have all signs."""
    import numpy
    from PIL import Image

    with Image.open(SHEET_FILE) as sheet:
        glyphs = numpy.asarray(sheet)
    return [
        {
            "image": perturb_image(
                _crop_cell(glyphs, sign=sign, font=fonts[number % len(fonts)]), name=name
            ),
            "label": sign,
        }
        for number in range(rows_per_sign)
        for sign in SIGNS
        for name in [f"{split} {sign} {number}"]
    ]


def _crop_cell(glyphs: Any, *, sign: str, font: str) -> Any:
    left, top = CELL_SIDE * SIGNS.index(sign), CELL_SIDE * FONTS.index(font)
    return glyphs[top : top + CELL_SIDE, left : left + CELL_SIDE]
