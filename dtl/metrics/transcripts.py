"""How far transcripts are from what was said: errors by words and by characters."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

APOSTROPHES = "'\u2019"
PAUSES = ("P", "S")  # Unicode categories: punctuation, symbols


@dataclass(frozen=True)
class Errors:
    """Of all texts together. `total`: words or characters in the references."""

    substitutions: int
    deletions: int
    insertions: int
    total: int

    @property
    def rate(self) -> float:
        """Errors for each word or character that was said; more than 1 where too much is written"""
        wrong = self.substitutions + self.deletions + self.insertions
        return wrong / self.total if self.total else float(wrong > 0)


def normaliser(language: str | None) -> Callable[[str], str]:
    """Lower case, no punctuation, one blank between words. For English as Whisper's authors have
    it, spelling apart: numbers and short forms are written one way. Marks stay: in Indic scripts
    and many others they are letters."""
    if language != "en":
        return _plain
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    normalise: Callable[[str], str] = EnglishTextNormalizer({})
    return normalise


def _plain(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).lower()
    kept = ("" if mark in APOSTROPHES else " " if _pauses(mark) else mark for mark in folded)
    return re.sub(r"\s+", " ", "".join(kept)).strip()


def _pauses(mark: str) -> bool:
    return unicodedata.category(mark)[0] in PAUSES


def word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> Errors:
    """Errors by words, which blanks part."""
    import jiwer

    found = jiwer.process_words(list(references), list(hypotheses))
    return Errors(
        found.substitutions,
        found.deletions,
        found.insertions,
        found.hits + found.substitutions + found.deletions,
    )


def speech_scores(
    references: Sequence[str], hypotheses: Sequence[str], *, language: str | None
) -> dict[str, float]:
    """Error rates by words and characters, as written and normalised; the counts are those of words
    as written."""
    plain = normaliser(language)
    words = word_errors(references, hypotheses)
    normal = [plain(text) for text in references], [plain(text) for text in hypotheses]
    return {
        "wer": words.rate,
        "cer": character_errors(references, hypotheses).rate,
        "wer_normalised": word_errors(*normal).rate,
        "cer_normalised": character_errors(*normal).rate,
        "substitutions": words.substitutions,
        "deletions": words.deletions,
        "insertions": words.insertions,
        "hits": words.total - words.substitutions - words.deletions,
    }


def counts_of(references: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
    """Of each text (N, 2): errors by words, and words in the reference."""
    import numpy as np

    found = [
        word_errors([said], [written]) for said, written in zip(references, hypotheses, strict=True)
    ]
    wrong = [one.substitutions + one.deletions + one.insertions for one in found]
    return np.array([wrong, [one.total for one in found]], dtype=np.float64).T


def rate_of(sums: np.ndarray) -> np.ndarray:
    """The word error rate of sums of such counts (..., 2)."""
    import numpy as np

    wrong, total = sums[..., 0], sums[..., 1]
    return np.where(total > 0, wrong / np.where(total > 0, total, 1), wrong > 0)


def character_errors(references: Sequence[str], hypotheses: Sequence[str]) -> Errors:
    """Errors by characters, blanks between words included."""
    import jiwer

    found = jiwer.process_characters(list(references), list(hypotheses))
    return Errors(
        found.substitutions,
        found.deletions,
        found.insertions,
        found.hits + found.substitutions + found.deletions,
    )
