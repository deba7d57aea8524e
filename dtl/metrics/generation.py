"""ROUGE, BLEU and chrF of generated texts against references."""

# N texts

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from dtl.metrics.base import EvalRecord

if TYPE_CHECKING:
    import numpy as np

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def rouge_scores(records: list[EvalRecord]) -> dict[str, float]:
    """Return the mean F-measure of each ROUGE type, 0 to 1."""
    scores = _rouge(records, ROUGE_TYPES)
    return {
        name: math.fsum(score[name].fmeasure for score in scores) / len(scores)
        for name in ROUGE_TYPES
    }


def rouge_counts(records: list[EvalRecord]) -> np.ndarray:
    """Return of each text (N, 2), fp64: its ROUGE-Lsum and 1."""
    import numpy as np

    counts = [[score["rougeLsum"].fmeasure, 1] for score in _rouge(records, ("rougeLsum",))]
    return np.array(counts, dtype=np.float64)


def _rouge(records: list[EvalRecord], types: tuple[str, ...]) -> list[Any]:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(types, use_stemmer=True)
    return [
        scorer.score(
            one_sentence_per_line(record["reference"]), one_sentence_per_line(record["generated"])
        )
        for record in records
    ]


def one_sentence_per_line(text: str) -> str:
    """Return the text with a line break after each sentence, as ROUGE-Lsum expects it."""
    return re.sub(r"(?<=[.!?])\s+", "\n", text.strip())


def bleu_scores(records: list[EvalRecord]) -> dict[str, float]:
    """Return corpus BLEU and chrF by sacreBLEU, 0 to 100."""
    import sacrebleu

    generated = [record["generated"] for record in records]
    references = [record["reference"] for record in records]
    return {
        "bleu": float(sacrebleu.corpus_bleu(generated, [references]).score),
        "chrf": float(sacrebleu.corpus_chrf(generated, [references]).score),
    }


def bleu_counts(records: list[EvalRecord]) -> np.ndarray:
    """Return of each text (N, 10), fp64, what sacreBLEU counts: matching n-grams, all n-grams, the
    generated length and the reference length."""
    import numpy as np
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU()
    scores = [
        metric.corpus_score([record["generated"]], [[record["reference"]]]) for record in records
    ]
    counts = [[*one.counts, *one.totals, one.sys_len, one.ref_len] for one in scores]
    return np.array(counts, dtype=np.float64)


def bleu_from_counts(counts: np.ndarray) -> np.ndarray:
    """Return sacreBLEU's BLEU of sums of bleu_counts: (..., 10) to (...)."""
    import numpy as np

    return np.apply_along_axis(_bleu, -1, counts)


def _bleu(counts: np.ndarray) -> float:
    from sacrebleu.metrics.bleu import BLEU

    *ngrams, generated_length, reference_length = counts.astype(int).tolist()
    max_order = len(ngrams) // 2
    score = BLEU.compute_bleu(
        ngrams[:max_order],
        ngrams[max_order:],
        generated_length,
        reference_length,
        smooth_method=BLEU().smooth_method,
    )
    return float(score.score)
