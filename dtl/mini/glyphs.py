"""Pictures of letters and signs from many fonts, disturbed; no digit is among them.

The clean letters come from `glyphs.png`, a column a sign and a line a font.
"""

from pathlib import Path
from typing import Any

from dtl.mini.nuisance import disturbed

PACKAGES = ("numpy", "pillow")
SHEET = Path(__file__).parent / "glyphs.png"
CELL = 24  # pixels
SIGNS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghmnqrtjyu&?%$@#"
TRAIN_FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono"),
    *("DejaVuSansMono-BoldOblique", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralBolIta", "cmr10", "cmss10", "cmtt10"),
)
HELDOUT_FONTS = ("DejaVuSansMono-Bold", "DejaVuSerif-BoldItalic", "STIXGeneralItalic", "cmb10")
FONTS = TRAIN_FONTS + HELDOUT_FONTS
TRAIN_ROWS_A_SIGN, HELDOUT_ROWS_A_SIGN = 200, 12


def make() -> dict[str, list[dict[str, Any]]]:
    return {
        "train": _rows("train", TRAIN_FONTS, rows_a_sign=TRAIN_ROWS_A_SIGN),
        "heldout": _rows("heldout", HELDOUT_FONTS, rows_a_sign=HELDOUT_ROWS_A_SIGN),
    }


def _rows(split: str, fonts: tuple[str, ...], *, rows_a_sign: int) -> list[dict[str, Any]]:
    """One row of each sign after the other, so that the first rows are a fair sample."""
    import numpy
    from PIL import Image

    with Image.open(SHEET) as sheet:
        drawn = numpy.asarray(sheet)
    return [
        {
            "image": disturbed(_cell(drawn, sign=sign, font=fonts[turn % len(fonts)]), name=name),
            "label": sign,
        }
        for turn in range(rows_a_sign)
        for sign in SIGNS
        for name in [f"{split} {sign} {turn}"]
    ]


def _cell(drawn: Any, *, sign: str, font: str) -> Any:
    left, top = CELL * SIGNS.index(sign), CELL * FONTS.index(font)
    return drawn[top : top + CELL, left : left + CELL]
