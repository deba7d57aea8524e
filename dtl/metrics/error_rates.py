"""Word and character error rates (WER, CER) of transcripts."""

# N texts

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dtl.metrics.base import EvalRecord

if TYPE_CHECKING:
    import numpy as np

APOSTROPHES = "'\u2019"
SEPARATORS = ("P", "S")  # Unicode categories: punctuation, symbols


@dataclass(frozen=True)
class EditCounts:
    """Edits over all texts together. `reference_length`: words or characters."""

    substitutions: int
    deletions: int
    insertions: int
    reference_length: int

    @property
    def edits(self) -> int:
        """All edits."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Edits for each word or character of the references; it can exceed 1."""
        if not self.reference_length:
            return float(self.edits > 0)
        return self.edits / self.reference_length


def text_normalizer(language: str | None) -> Callable[[str], str]:
    """Return the function that normalizes texts before they are compared.

    For English it is Whisper's, without its spelling table: numbers and contractions get one form.
    Otherwise lower case, no punctuation, one blank between words. Marks stay, because they are
    characters in Indic and many other scripts.
    """
    if language != "en":
        return _normalize_basic
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    normalize: Callable[[str], str] = EnglishTextNormalizer({})
    return normalize


def _normalize_basic(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).lower()
    characters = (
        "" if mark in APOSTROPHES else " " if _is_separator(mark) else mark for mark in folded
    )
    return re.sub(r"\s+", " ", "".join(characters)).strip()


def _is_separator(mark: str) -> bool:
    return unicodedata.category(mark)[0] in SEPARATORS


def count_word_edits(references: Sequence[str], hypotheses: Sequence[str]) -> EditCounts:
    """Return the edits by words, which blanks separate."""
    import jiwer

    return _edit_counts(jiwer.process_words(list(references), list(hypotheses)))


def count_character_edits(references: Sequence[str], hypotheses: Sequence[str]) -> EditCounts:
    """Return the edits by characters, including blanks between words."""
    import jiwer

    return _edit_counts(jiwer.process_characters(list(references), list(hypotheses)))


def _edit_counts(alignment: Any) -> EditCounts:
    return EditCounts(
        alignment.substitutions,
        alignment.deletions,
        alignment.insertions,
        alignment.hits + alignment.substitutions + alignment.deletions,
    )


def transcript_scores(records: list[EvalRecord], *, language: str | None) -> dict[str, float]:
    """Return WER and CER of `hypothesis` against `reference`, as written and normalized.

    The counts of edits are those of words as written.
    """
    references = [record["reference"] for record in records]
    hypotheses = [record["hypothesis"] for record in records]
    normalize = text_normalizer(language)
    words = count_word_edits(references, hypotheses)
    normalized = list(map(normalize, references)), list(map(normalize, hypotheses))
    return {
        "wer": words.rate,
        "cer": count_character_edits(references, hypotheses).rate,
        "wer_normalized": count_word_edits(*normalized).rate,
        "cer_normalized": count_character_edits(*normalized).rate,
        "substitutions": words.substitutions,
        "deletions": words.deletions,
        "insertions": words.insertions,
        "hits": words.reference_length - words.substitutions - words.deletions,
    }


def wer_counts(records: list[EvalRecord]) -> np.ndarray:
    """Return of each text (N, 2), fp64: its edits by words, and the words of its reference."""
    import numpy as np

    counts = [count_word_edits([one["reference"]], [one["hypothesis"]]) for one in records]
    edits = [one.edits for one in counts]
    return np.array([edits, [one.reference_length for one in counts]], dtype=np.float64).T


def wer_from_counts(counts: np.ndarray) -> np.ndarray:
    """Return the word error rate of sums of wer_counts: (..., 2) to (...)."""
    import numpy as np

    edits, words = counts[..., 0], counts[..., 1]
    return np.where(words > 0, edits / np.where(words > 0, words, 1), edits > 0)
