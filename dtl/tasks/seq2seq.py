"""One text into another with an encoder and a decoder: summaries, translations."""

# B batch, S source tokens, T target tokens, V vocabulary

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from dtl.config.record import Record
from dtl.core.errors import DtlError, Fault, near
from dtl.data.example import Encoded, Skip
from dtl.models.anatomy import unwrapped
from dtl.tasks.base import (
    IGNORE_INDEX,
    DatasetStats,
    EvalRecord,
    ExamplePreview,
    Task,
    TokenSpan,
    attention_mask,
    find_text_fault,
    get_text,
    pad_sequences,
)

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor, nn

    from dtl.data.sources.rows import Row

COLUMNS = ("source", "target")
ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
BEST = {"rouge": "rougeLsum", "bleu": "bleu", "none": "-loss"}


class Options(Record):
    """Options of `task: seq2seq`."""

    prefix: str = Field(
        "", description="Text put before each source, such as `summarize: ` for T5."
    )
    max_source_length: int = Field(
        512, ge=2, description="Longest source in tokens; the rest is cut off."
    )
    max_target_length: int = Field(
        128,
        ge=2,
        description="Longest target in tokens; the rest is not learnt. Scores are taken against "
        "the whole target.",
    )
    source_language: str | None = Field(
        None, description="Language of the sources, as the tokenizer names it (en_XX, eng_Latn)."
    )
    target_language: str | None = Field(
        None, description="Language of the targets, with whose token each generated text begins."
    )
    metric: Literal["rouge", "bleu", "none"] = Field(
        "rouge",
        description="What generated texts are scored by: rouge (ROUGE-1, 2, L and Lsum, of Latin "
        "letters and digits), bleu (sacreBLEU and chrF), or none: nothing is generated.",
    )
    generate_length: int | None = Field(
        None, ge=1, description="Longest generated text in tokens; left out: max_target_length."
    )
    beams: int | None = Field(
        None, ge=1, description="Beams of the search; left out: as the model is set, usually 1."
    )


class Plugin(Task):
    """Teacher forcing; each token of the target, its end included, is one target."""

    auto_class = "AutoModelForSeq2SeqLM"
    required_columns = "`source` and `target`"
    truncation_options: ClassVar = {
        "max_source_length": ("input_ids",),
        "max_target_length": ("labels",),
    }
    supervises_eos = True
    options: Options

    @property
    def best(self) -> str:  # type: ignore[override]
        return BEST[self.options.metric]

    def find_row_fault(self, row: Row) -> Fault | None:
        return next((fault for name in COLUMNS if (fault := find_text_fault(row, name))), None)

    def preview(self, row: Row) -> ExamplePreview:
        return ExamplePreview(str(row.fields["source"]), str(row.fields["target"]))

    def token_spans(self, values: dict[str, Any]) -> list[TokenSpan]:
        return [
            TokenSpan(list(values["input_ids"]), False),
            TokenSpan(list(values["labels"]), True),
        ]

    def collect_dataset_stats(self, rows: Iterable[Row], base_config: Any) -> DatasetStats:
        return {}

    def head_config(self, dataset_stats: DatasetStats) -> dict[str, Any]:
        return {}

    def max_length(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> int:
        """Source and target."""
        return sum(self._limits(base_config))

    def _limits(self, base: Any) -> tuple[int, int]:
        positions = getattr(base, "max_position_embeddings", None) or 2**31
        source, target = self.options.max_source_length, self.options.max_target_length
        return min(source, positions), min(target, positions)

    def encoder(
        self, processor: Any, dataset_stats: DatasetStats, base_config: Any
    ) -> Callable[[Row], Encoded | Skip]:
        options = self.options
        _set_languages(processor, options)
        longest_source, longest_target = self._limits(base_config)

        def encode(row: Row) -> Encoded | Skip:
            longest = max(longest_source, longest_target)
            source, target = (get_text(row, name, max_tokens=longest) for name in COLUMNS)
            if not source.strip() or not target.strip():
                return Skip("empty text")
            tokens = processor(options.prefix + source, truncation=True, max_length=longest_source)[
                "input_ids"
            ]
            labels = _labels(target, processor, longest_target)
            values = {
                "input_ids": list(tokens),
                "labels": labels,
                "reference": list(target.encode()),
            }
            return Encoded(values, len(tokens) + len(labels), len(labels))

        return encode

    def collate(self, examples: list[dict[str, Any]], *, pad_token_id: int) -> dict[str, Tensor]:
        inputs = [example["input_ids"] for example in examples]
        return {
            "input_ids": pad_sequences(inputs, value=pad_token_id),
            "attention_mask": attention_mask(inputs),
            "labels": pad_sequences(
                [example["labels"] for example in examples], value=IGNORE_INDEX
            ),
            "reference": pad_sequences(
                [example["reference"] for example in examples], value=IGNORE_INDEX
            ),
        }

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return _losses(model, batch)[0].sum()

    def eval_records(
        self, model: nn.Module, batch: dict[str, Tensor], *, processor: Any
    ) -> list[EvalRecord]:
        losses_BT, logits_BTV = _losses(model, batch)
        labels_BT = batch["labels"]
        outcomes: list[EvalRecord] = [
            {"loss": loss, "targets": targets, "hits": hits, "reference": reference}
            for loss, targets, hits, reference in zip(
                losses_BT.double().sum(1).tolist(),
                (labels_BT != IGNORE_INDEX).sum(1).tolist(),
                (logits_BTV.argmax(-1) == labels_BT).sum(1).tolist(),
                [_from_bytes(row) for row in batch["reference"].tolist()],
                strict=True,
            )
        ]
        if self.options.metric != "none":
            texts = self._generate(unwrapped(model), batch, processor)
            for outcome, text in zip(outcomes, texts, strict=True):
                outcome["generated"] = text
        return outcomes

    def _generate(
        self, model: Any, batch: dict[str, Tensor], tokenizer: Any, longest: int | None = None
    ) -> list[str]:
        """Under ZeRO-3, transformers itself lets a rank that is done go on until all are."""
        settings = copy.deepcopy(model.generation_config)
        longest = longest or self.options.generate_length or self.options.max_target_length
        settings.update(
            max_length=None,
            max_new_tokens=longest,
            min_length=settings.min_length if (settings.min_length or 0) < longest else 0,
            num_beams=self.options.beams or settings.num_beams,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
            **_first_token(tokenizer),
        )
        tokens_BT = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            generation_config=settings,
        )
        texts: list[str] = tokenizer.batch_decode(tokens_BT, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def score(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> dict[str, float]:
        """Loss a token (nats), perplexity = exp(loss), share of tokens guessed right after the
        right ones; and how near the generated texts are."""
        targets = sum(outcome["targets"] for outcome in records)
        loss = math.fsum(outcome["loss"] for outcome in records) / targets
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "accuracy": sum(outcome["hits"] for outcome in records) / targets,
            **_nearness(records, self.options.metric),
        }

    def with_placeholder_target(
        self, fields: dict[str, Any], dataset_stats: DatasetStats
    ) -> dict[str, Any]:
        return {**fields, "target": "-"}

    def predict(
        self,
        model: nn.Module,
        batch: dict[str, Tensor],
        *,
        processor: Any,
        dataset_stats: DatasetStats,
        max_new_tokens: int | None,
    ) -> list[dict[str, Any]]:
        texts = self._generate(unwrapped(model), batch, processor, max_new_tokens)
        return [{"predicted": text} for text in texts]

    def metric_counts(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> ndarray:
        """Loss and targets; or ROUGE-Lsum and 1; or what sacreBLEU counts of a text: n-grams that
        match, all n-grams, and both lengths."""
        import numpy as np

        count = {"none": _loss_counts, "rouge": _rouge_counts, "bleu": _bleu_counts}
        return np.array(count[self.options.metric](records), dtype=np.float64)

    def metric_from_counts(self, counts: ndarray) -> ndarray:
        if self.options.metric != "bleu":
            return counts[..., 0] / counts[..., 1]
        import numpy as np

        return np.apply_along_axis(_bleu, -1, counts)


def _losses(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Loss of each token of the target (B, T), 0 where it is padded, and the logits (B, T, V).

    Given labels, the model shifts them itself to what its decoder reads, each family in its way.
    """
    from torch.nn.functional import cross_entropy

    labels_BT = batch["labels"]
    logits_BTV = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        labels=labels_BT,
        use_cache=False,
    ).logits
    losses_BT = cross_entropy(
        logits_BTV.flatten(0, 1).float(),
        labels_BT.flatten(),
        ignore_index=IGNORE_INDEX,
        reduction="none",
    ).view(labels_BT.shape)
    return losses_BT, logits_BTV


def _labels(target: str, tokenizer: Any, limit: int) -> list[int]:
    """The target's tokens, with an end: without it, a model would not learn to stop."""
    end = tokenizer.eos_token_id
    labels = list(tokenizer(text_target=target, truncation=True, max_length=limit)["input_ids"])
    return labels if end is None or end in labels else [*labels[: limit - 1], end]


def _from_bytes(numbers: list[int]) -> str:
    return bytes(number for number in numbers if number != IGNORE_INDEX).decode()


def _set_languages(tokenizer: Any, options: Options) -> None:
    """Tell a multilingual tokenizer what it reads. Raises DtlError for a language that it lacks, or
    where none is named."""
    asked = {"src_lang": options.source_language, "tgt_lang": options.target_language}
    for attribute, language in asked.items():
        key = "task.source_language" if attribute == "src_lang" else "task.target_language"
        if language is None:
            if getattr(tokenizer, attribute, "none needed") is None:
                raise DtlError.of(
                    key,
                    f"{type(tokenizer).__name__} reads many languages, and none is named",
                    "name task.source_language and task.target_language",
                )
            continue
        if not hasattr(tokenizer, attribute):
            raise DtlError.of(
                key,
                f"{type(tokenizer).__name__} knows no languages",
                "leave the key out, or say the language in task.prefix",
            )
        if _language_token(tokenizer, language) is None:
            known = [str(token) for token in tokenizer.all_special_tokens]
            hint = near(language, known) or f"it has {', '.join(known[:20])}"
            raise DtlError.of(
                key, f"the tokenizer has no language {language!r}", f"name one of its own ({hint})"
            )
        setattr(tokenizer, attribute, language)


def _language_token(tokenizer: Any, language: str) -> int | None:
    if hasattr(tokenizer, "get_lang_id"):  # M2M100: `fr`, of which the token is `__fr__`
        return tokenizer.lang_token_to_id.get(tokenizer.lang_code_to_token.get(language))
    number = tokenizer.convert_tokens_to_ids(language)
    return None if number in (None, tokenizer.unk_token_id) else number


def _first_token(tokenizer: Any) -> dict[str, int]:
    """The language token where this model expects it: mBART-50, M2M100 and NLLB generate it first;
    mBART-25, whose targets end with it, starts from it."""
    language = getattr(tokenizer, "tgt_lang", None)
    if language is None:
        return {}
    token = _language_token(tokenizer, language)
    assert token is not None
    ends = tokenizer(text_target="a")["input_ids"][-1] == token
    return {"decoder_start_token_id" if ends else "forced_bos_token_id": token}


def _nearness(outcomes: list[EvalRecord], metric: str) -> dict[str, float]:
    if metric == "none":
        return {}
    generated = [outcome["generated"] for outcome in outcomes]
    references = [outcome["reference"] for outcome in outcomes]
    if metric == "bleu":
        import sacrebleu

        return {
            "bleu": float(sacrebleu.corpus_bleu(generated, [references]).score),
            "chrf": float(sacrebleu.corpus_chrf(generated, [references]).score),
        }
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(ROUGE, use_stemmer=True)
    found = [
        scorer.score(a_sentence_a_line(reference), a_sentence_a_line(text))
        for reference, text in zip(references, generated, strict=True)
    ]
    return {
        name: math.fsum(scores[name].fmeasure for scores in found) / len(found) for name in ROUGE
    }


def _loss_counts(outcomes: list[EvalRecord]) -> list[list[float]]:
    return [[outcome["loss"], outcome["targets"]] for outcome in outcomes]


def _rouge_counts(outcomes: list[EvalRecord]) -> list[list[float]]:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeLsum"], use_stemmer=True)
    found = [
        scorer.score(*map(a_sentence_a_line, (outcome["reference"], outcome["generated"])))
        for outcome in outcomes
    ]
    return [[scores["rougeLsum"].fmeasure, 1] for scores in found]


def _bleu_counts(outcomes: list[EvalRecord]) -> list[list[float]]:
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU()
    found = [
        metric.corpus_score([outcome["generated"]], [[outcome["reference"]]])
        for outcome in outcomes
    ]
    return [[*one.counts, *one.totals, one.sys_len, one.ref_len] for one in found]


def _bleu(sums: ndarray) -> float:
    """sacreBLEU's score of what it has counted, summed over texts."""
    from sacrebleu.metrics.bleu import BLEU

    *grams, written, wanted = sums.astype(int).tolist()
    order = len(grams) // 2
    found = BLEU.compute_bleu(
        grams[:order], grams[order:], written, wanted, smooth_method=BLEU().smooth_method
    )
    return float(found.score)


def a_sentence_a_line(text: str) -> str:
    """As ROUGE-Lsum wants it."""
    return re.sub(r"(?<=[.!?])\s+", "\n", text.strip())
