"""Text embeddings for retrieval: a query is closer to its document than to all others."""

# B examples, N of the global batch, D documents of a query (its positive, then hard negatives),
# S = 1 + D texts of an example, T tokens, W width, C distinct documents

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from dtl.config.schema.base import Record
from dtl.core.errors import DtlError, Fault
from dtl.data.example import EncodedExample, Skip
from dtl.data.modalities.text import find_text_fault, limit_to_tokenizer, max_characters
from dtl.data.padding import attention_mask, pad_sequences
from dtl.data.sentence_transformers import sentence_transformers_files
from dtl.losses.contrastive import (
    ABSENT,
    EmbeddedBatch,
    contrastive_losses,
    find_relevant,
    global_losses_and_gradients,
    iter_row_slices,
)
from dtl.metrics.base import EvalRecord, Metric
from dtl.metrics.retrieval import ranking_records, ranking_scores
from dtl.tasks.base import DatasetStats, Encoder, ExamplePreview, Task, TokenSpan

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor, nn

    from dtl.data.sources.rows import Row

COLUMNS = ("anchor", "positive")
NEGATIVE = "negative"
ID_BITS = 31  # an id has two parts that fit into int32
DECIMALS = 7  # of a predicted embedding
LOSSES, QUERY_GRADIENTS, DOCUMENT_GRADIENTS = "losses", "query_gradients", "document_gradients"


class Options(Record):
    """Options of `task: embedding`."""

    max_length: int = Field(512, ge=2, description="Longest text in tokens; the rest is truncated.")
    pooling: Literal["mean", "cls", "last"] = Field(
        "mean", description="Embedding of a text: the mean of its tokens, its first or its last."
    )
    temperature: float = Field(
        0.05, gt=0, description="Divisor of the cosine similarities; 0.05 is a scale of 20."
    )
    symmetric: bool = Field(
        False, description="Also find the query of each document among all queries."
    )
    query_prefix: str = Field("", description='Text before each query, such as "query: ".')
    document_prefix: str = Field("", description='Text before each document, such as "passage: ".')
    max_negatives: int = Field(
        8,
        ge=0,
        description="Most hard negatives of a row. All rows are padded to the most that a training "
        "row has; further ones are not read.",
    )


class Plugin(Task):
    """Cross-entropy of the positive among all documents of the global batch; a query is one target.

    The documents of all processes and micro-batches are negatives, so that the loss is the same on
    every layout: first all are embedded without gradient, then each micro-batch with it (Gao et al.
    2021, arXiv:2101.06983).
    """

    auto_class = "AutoModel"
    required_columns = "`anchor` and `positive` (and `negative`: a text or a list of texts)"
    metric = Metric("ndcg@10")
    truncation_options: ClassVar = {"max_length": ("query", "document")}
    reads_global_batch = True
    options: Options

    def find_row_fault(self, row: Row) -> Fault | None:
        negative = row.fields.get(NEGATIVE)
        texts = negative if isinstance(negative, list) else [negative] if negative else []
        if not all(isinstance(text, str) for text in texts):
            return Fault(
                row.location,
                "`negative` is neither a text nor a list of texts",
                "write a text, a list of texts, or nothing",
            )
        return next(filter(None, (find_text_fault(row, name) for name in COLUMNS)), None)

    def preview(self, row: Row) -> ExamplePreview:
        """Return query and document together as the input, because either may repeat."""
        return ExamplePreview("\n".join(str(row.fields[name]) for name in COLUMNS))

    def token_spans(self, values: dict[str, Any]) -> list[TokenSpan]:
        return [TokenSpan(list(values["query"]), False), TokenSpan(list(values["document"]), True)]

    def collect_dataset_stats(self, rows: Iterable[Row], base_config: Any) -> DatasetStats:
        """Return how many hard negatives an example has."""
        if getattr(base_config, "is_encoder_decoder", False):
            raise DtlError.of(
                "model.path",
                f"a {base_config.model_type} model has an encoder and a decoder",
                "take a model that is one encoder or one decoder",
            )
        most = max((len(_get_negatives(row)) for row in rows), default=0)
        return {"negatives": min(most, self.options.max_negatives)}

    def head_config(self, dataset_stats: DatasetStats) -> dict[str, Any]:
        return {}

    def configure_model(self, model: nn.Module, *, processor: Any) -> None:
        """Switch off the cache of keys and values, which only generation reads."""
        config: Any = model.config
        if hasattr(config, "use_cache"):
            config.use_cache = False

    def max_length(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> int:
        """Return the length of all texts of an example."""
        texts = 2 + int(dataset_stats["negatives"])
        return texts * limit_to_tokenizer(self.options.max_length, processor, base_config)

    def encoder(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> Encoder:
        limit = limit_to_tokenizer(self.options.max_length, processor, base_config)
        slots, options = int(dataset_stats["negatives"]), self.options

        def tokenize(prefix: str, text: str) -> list[int]:
            text = prefix + text[: max_characters(limit)]
            return list(processor(text, truncation=True, max_length=limit)["input_ids"])

        def encode(row: Row) -> EncodedExample | Skip:
            anchor, positive = (str(row.fields[name]) for name in COLUMNS)
            negatives = _get_negatives(row)[:slots]
            if not all(text.strip() for text in (anchor, positive, *negatives)):
                return Skip("empty text")
            query = tokenize(options.query_prefix, anchor)
            documents = [tokenize(options.document_prefix, text) for text in (positive, *negatives)]
            if not all((query, *documents)):
                return Skip("empty text")
            return _make_example(query, documents, slots=slots)

        return encode

    def collate(self, examples: list[dict[str, Any]], *, pad_token_id: int) -> dict[str, Tensor]:
        """Return `input_ids` and `attention_mask` (B, S, T) and the ids of the texts (B, S)."""
        import torch

        texts = [text for example in examples for text in _texts(example)]
        halves = torch.tensor([list(map(int, example["ids"])) for example in examples])
        high, low = halves.view(len(examples), -1, 2).unbind(-1)
        batch = {
            "input_ids": pad_sequences(texts, value=pad_token_id),
            "attention_mask": attention_mask(texts),
        }
        shaped = {
            name: tensor.view(len(examples), -1, tensor.shape[-1]) for name, tensor in batch.items()
        }
        return {**shaped, "text_ids": torch.where(high < 0, ABSENT, (high << ID_BITS) | low)}

    def global_values(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the embeddings (B, S, W), fp32, and the ids (B, S) of all texts."""
        return {"embeddings": self._embed(model, batch), "text_ids": batch["text_ids"]}

    def combine_global_values(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the loss of each query (N,), and the gradients of the losses of all queries with
        respect to the embeddings of each example."""
        losses_N, queries_NW, documents_NDW = global_losses_and_gradients(
            _split_texts(values["embeddings"], values["text_ids"]),
            temperature=self.options.temperature,
            is_symmetric=self.options.symmetric,
        )
        return {
            LOSSES: losses_N,
            QUERY_GRADIENTS: queries_NW,
            DOCUMENT_GRADIENTS: documents_NDW,
        }

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        embedded = _split_texts(self._embed(model, batch), batch["text_ids"])
        if LOSSES not in batch:
            return self._losses(embedded, slice(None)).sum()
        # Linear in the embeddings: its gradient is that of the losses of the global batch.
        linear = (embedded.queries_NW * batch[QUERY_GRADIENTS]).sum() + (
            embedded.documents_NDW * batch[DOCUMENT_GRADIENTS]
        ).sum()
        return batch[LOSSES].sum() + linear - linear.detach()

    def _losses(self, embedded: EmbeddedBatch, rows: slice) -> Tensor:
        """Return the loss of each query in `rows` (R,)."""
        return contrastive_losses(
            embedded,
            rows,
            temperature=self.options.temperature,
            is_symmetric=self.options.symmetric,
        )

    def _embed(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Return the embedding of each text (B, S, W), fp32, of length 1."""
        from torch.nn.functional import normalize

        mask_XT = batch["attention_mask"].flatten(0, 1)
        states_XTW = model(
            input_ids=batch["input_ids"].flatten(0, 1), attention_mask=mask_XT
        ).last_hidden_state
        pooled_XW = _pool(states_XTW.float(), mask_XT, self.options.pooling)
        return normalize(pooled_XW, dim=-1).view(*batch["text_ids"].shape, -1)

    def eval_records(
        self, model: nn.Module, batch: dict[str, Tensor], *, processor: Any
    ) -> list[EvalRecord]:
        """Return the embeddings (S, W) and ids (S,) of each example, which `join_records` reads."""
        embeddings_BSW = self._embed(model, batch).cpu().numpy()
        ids_BS = batch["text_ids"].cpu().numpy()
        return [
            {"embeddings": embeddings, "text_ids": ids}
            for embeddings, ids in zip(embeddings_BSW, ids_BS, strict=True)
        ]

    def join_records(self, records: list[EvalRecord]) -> list[EvalRecord]:
        """Return loss and ranking metrics of each query, among the documents of all rows."""
        import numpy as np
        import torch

        embedded = _split_texts(
            torch.from_numpy(np.stack([record["embeddings"] for record in records])),
            torch.from_numpy(np.stack([record["text_ids"] for record in records])),
        )
        ids, first_C = np.unique(embedded.document_ids_ND.flatten().numpy(), return_index=True)
        first_C = first_C[ids != ABSENT]
        documents_CW = embedded.documents_NDW.flatten(0, 1)[first_C]
        found: list[EvalRecord] = []
        for rows in iter_row_slices(len(records)):
            losses = self._losses(embedded, rows).tolist()
            similarities_RC = (embedded.queries_NW[rows] @ documents_CW.T).numpy()
            is_relevant_RC = find_relevant(embedded, rows)[:, first_C].numpy()
            rankings = ranking_records(similarities_RC, is_relevant_RC)
            found += [
                {"loss": loss, **ranking} for loss, ranking in zip(losses, rankings, strict=True)
            ]
        joined = zip(records, found, strict=True)
        return [{**_without_embeddings(record), **scores} for record, scores in joined]

    def score(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> dict[str, float]:
        return ranking_scores(records)

    def with_placeholder_target(
        self, fields: dict[str, Any], dataset_stats: DatasetStats
    ) -> dict[str, Any]:
        """Return the fields with a query and a document; a text alone is both."""
        only = next((fields[n] for n in (*COLUMNS, "text") if fields.get(n) is not None), None)
        return {**fields, **{n: only for n in COLUMNS if fields.get(n) is None}, NEGATIVE: None}

    def predict(
        self,
        model: nn.Module,
        batch: dict[str, Tensor],
        *,
        processor: Any,
        dataset_stats: DatasetStats,
        max_new_tokens: int | None,
    ) -> list[dict[str, Any]]:
        """Return the embedding of each query, and that of its document."""
        embeddings_BSW = self._embed(model, batch)[:, :2].tolist()
        rounded = [
            [[round(value, DECIMALS) for value in vector] for vector in pair]
            for pair in embeddings_BSW
        ]
        return [{"predicted": query, "document": document} for query, document in rounded]

    def export_files(self, model_config: Any, processor: Any) -> dict[str, str]:
        """Return the files with which sentence-transformers loads the export."""
        options = self.options
        return sentence_transformers_files(
            dimension=model_config.hidden_size,
            max_length=limit_to_tokenizer(options.max_length, processor, model_config),
            pooling=options.pooling,
            prompts={"query": options.query_prefix, "document": options.document_prefix},
        )

    def metric_counts(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> ndarray:
        """Return nDCG and 1 of each query (N, 2)."""
        import numpy as np

        return np.array([(record["ndcg@10"], 1) for record in records], dtype=np.float64)

    def metric_from_counts(self, counts: ndarray) -> ndarray:
        return counts[..., 0] / counts[..., 1]


def _get_negatives(row: Row) -> list[str]:
    negative: Any = row.fields.get(NEGATIVE)
    if not negative:
        return []
    return list(negative) if isinstance(negative, list) else [str(negative)]


def _make_example(query: list[int], documents: list[list[int]], *, slots: int) -> EncodedExample:
    """Return the texts of an example; a missing hard negative is one token of the query."""
    missing = 1 + slots - len(documents)
    negatives = [*documents[1:], *([query[:1]] * missing)]
    values = {
        "query": query,
        "document": documents[0],
        "negatives": [token for text in negatives for token in text],
        "negative_lengths": [len(text) for text in negatives],
        "ids": [
            part
            for ids in (*map(_text_id, (query, *documents)), *([(ABSENT, ABSENT)] * missing))
            for part in ids
        ],
    }
    return EncodedExample(values, sum(map(len, (query, documents[0], *negatives))), 1)


def _text_id(tokens: list[int]) -> tuple[int, int]:
    """Return an id of a text, as two integers of ID_BITS bits."""
    digest = hashlib.blake2b(repr(tokens).encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "big") >> 2
    return number >> ID_BITS, number & ((1 << ID_BITS) - 1)


def _texts(example: dict[str, Any]) -> list[list[int]]:
    """Return the tokens of all texts of an example: query, positive, hard negatives."""
    texts, start = [list(example["query"]), list(example["document"])], 0
    for length in map(int, example["negative_lengths"]):
        texts.append(list(example["negatives"][start : start + length]))
        start += length
    return texts


def _split_texts(embeddings_NSW: Tensor, ids_NS: Tensor) -> EmbeddedBatch:
    return EmbeddedBatch(embeddings_NSW[:, 0], embeddings_NSW[:, 1:], ids_NS[:, 0], ids_NS[:, 1:])


def _pool(states_XTW: Tensor, mask_XT: Tensor, pooling: str) -> Tensor:
    """Return one vector of each text (X, W), without its padding."""
    import torch

    if pooling == "cls":
        return states_XTW[:, 0]
    if pooling == "last":
        return states_XTW[torch.arange(len(mask_XT)), mask_XT.sum(1) - 1]
    weights_XT1 = mask_XT[..., None].to(states_XTW.dtype)
    return (states_XTW * weights_XT1).sum(1) / weights_XT1.sum(1)


def _without_embeddings(record: EvalRecord) -> EvalRecord:
    return {name: value for name, value in record.items() if name not in ("embeddings", "text_ids")}
