"""Causal language modeling: chat messages, prompt and completion, or plain text."""

# B batch, T tokens, V vocabulary

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from dtl.config.schema.base import Record
from dtl.core.errors import Fault
from dtl.data.chat.render import ChatTokenizer, assistant_indices, find_messages_fault
from dtl.data.example import EncodedExample, Skip
from dtl.data.modalities.text import (
    bos_tokens,
    find_text_fault,
    get_text,
    limit_to_positions,
    max_characters,
    tokenize,
)
from dtl.data.padding import pad_sequences, pad_token_inputs
from dtl.losses.cross_entropy import IGNORE_INDEX, token_cross_entropy
from dtl.metrics.base import EvalRecord, Metric
from dtl.metrics.perplexity import (
    loss_counts,
    perplexity_from_counts,
    perplexity_scores,
    token_records,
)
from dtl.models.structure.wrappers import unwrap
from dtl.tasks.base import DatasetStats, Encoder, ExamplePreview, Task

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor, nn

    from dtl.data.sources.rows import Row

DEFAULT_NEW_TOKENS = 128  # that are generated, unless another number is requested
NO_TARGET_LEFT = "no target left after truncation"


class Options(Record):
    """Options of `task: causal_lm`."""

    max_length: int = Field(
        512, ge=2, description="Longest example in tokens; the rest is truncated."
    )
    train_on: Literal["completion", "all"] = Field(
        "completion",
        description="Which tokens of a prompt/completion or chat row count in the loss: the "
        "completion (the assistant's messages), or all. All tokens of plain text count.",
    )
    append_eos: bool = Field(
        True,
        description="Append the end-of-sequence token to plain text and completions; it counts in "
        "the loss.",
    )


class Plugin(Task):
    """Next-token prediction; each supervised token is one target."""

    auto_class = "AutoModelForCausalLM"
    required_columns = "`messages` (role, content), or `prompt` and `completion`, or `text`"
    row_kind = "chat"
    metric = Metric("perplexity", higher_is_better=False)
    truncation_options: ClassVar = {"max_length": ("input_ids",)}
    supervises_eos = True
    options: Options

    def find_row_fault(self, row: Row) -> Fault | None:
        columns = _columns(row)
        if not columns:
            has = ", ".join(map(repr, row.fields)) or "nothing"
            return Fault(
                row.location,
                f"the row has {has}; the task reads {self.required_columns}",
                "map them in data.columns, for example `columns: {text: body}`",
            )
        if columns == ("messages",):
            return find_messages_fault(row, "messages")
        return next(filter(None, (find_text_fault(row, column) for column in columns)), None)

    def preview(self, row: Row) -> ExamplePreview:
        """Return prompt and response together as the input, because prompts may repeat."""
        columns = _columns(row)
        if columns != ("messages",):
            texts = [str(row.fields[column]) for column in columns]
            return ExamplePreview("\n".join(texts), texts[1] if len(texts) > 1 else None)
        messages: Any = row.fields["messages"]
        responses = [turn["content"] for turn in messages if turn["role"] == "assistant"]
        calls_tools = any(turn.get("tool_calls") for turn in messages)
        target = None if calls_tools else "".join(str(text or "") for text in responses)
        return ExamplePreview(json.dumps(messages, sort_keys=True, default=str), target)

    def collect_dataset_stats(self, rows: Iterable[Row], base_config: Any) -> DatasetStats:
        return {}

    def head_config(self, dataset_stats: DatasetStats) -> dict[str, Any]:
        return {}

    def max_length(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> int:
        return limit_to_positions(self.options.max_length, base_config)

    def encoder(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> Encoder:
        limit = self.max_length(processor, dataset_stats, base_config)

        def encode(row: Row) -> EncodedExample | Skip:
            tokens, supervised = self._tokens(row, processor, limit)
            if not tokens:
                return Skip("empty text")
            labels = [
                token if counts else IGNORE_INDEX
                for token, counts in zip(tokens, supervised, strict=True)
            ]
            tokens, labels = tokens[:limit], labels[:limit]
            targets = sum(label != IGNORE_INDEX for label in labels[1:])
            if targets == 0:
                return Skip(NO_TARGET_LEFT)
            return EncodedExample({"input_ids": tokens, "labels": labels}, len(tokens), targets)

        return encode

    def _tokens(self, row: Row, tokenizer: Any, limit: int) -> tuple[list[int], list[bool]]:
        """Return the tokens of a row, and whether each is supervised; those beyond the limit may
        be missing."""
        columns = _columns(row)
        if columns == ("messages",):
            return self._chat_tokens(row, tokenizer, limit)
        start = bos_tokens(tokenizer)
        has_end = self.options.append_eos and tokenizer.eos_token_id is not None
        end = [tokenizer.eos_token_id] if has_end else []
        texts = [tokenize(tokenizer, get_text(row, column, max_tokens=limit)) for column in columns]
        if columns == ("text",):
            tokens = start + texts[0] + end if texts[0] else []
            return tokens, [True] * len(tokens)
        prompt, completion = start + texts[0], texts[1] + end
        supervised = [self.options.train_on == "all"] * len(prompt) + [True] * len(completion)
        return prompt + completion, supervised

    def _chat_tokens(self, row: Row, tokenizer: Any, limit: int) -> tuple[list[int], list[bool]]:
        """Supervise what each assistant turn adds, or all tokens."""
        messages: Any = row.fields["messages"]
        chat_tokenizer = ChatTokenizer(
            tokenizer,
            max_tokens=limit,
            max_characters=max_characters(limit),
            plain_format="`prompt` and `completion`",
            alternative="set task.train_on=all, or give the data as `prompt` and `completion`",
        )
        supervised = None if self.options.train_on == "all" else assistant_indices(messages)
        return chat_tokenizer.tokenize(messages, row, supervised=supervised)

    def collate(self, examples: list[dict[str, Any]], *, pad_token_id: int) -> dict[str, Tensor]:
        labels = [example["labels"] for example in examples]
        return {
            **pad_token_inputs(examples, pad_token_id=pad_token_id),
            "labels": pad_sequences(labels, value=IGNORE_INDEX),
        }

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        logits_BTV = _next_token_logits(model, batch)
        return token_cross_entropy(logits_BTV, batch["labels"][:, 1:]).sum()

    def eval_records(
        self, model: nn.Module, batch: dict[str, Tensor], *, processor: Any
    ) -> list[EvalRecord]:
        labels_BT = batch["labels"][:, 1:]
        logits_BTV = _next_token_logits(model, batch)
        return token_records(token_cross_entropy(logits_BTV, labels_BT), logits_BTV, labels_BT)

    def score(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> dict[str, float]:
        return perplexity_scores(records)

    def with_placeholder_target(
        self, fields: dict[str, Any], dataset_stats: DatasetStats
    ) -> dict[str, Any]:
        """Return the fields with a completion, or with one more turn of the assistant."""
        messages = fields.get("messages")
        if isinstance(messages, list):
            return {**fields, "messages": [*messages, {"role": "assistant", "content": "-"}]}
        prompt = {"prompt": fields["text"]} if "prompt" not in fields and "text" in fields else {}
        return {**fields, **prompt, "completion": "-"}

    def prompt_encoder(
        self, processor: Any, dataset_stats: DatasetStats, base_config: Any
    ) -> Encoder:
        """Return an encoder that supervises only the completion; `predict` splits there."""
        completion_task = Plugin(self.options.model_copy(update={"train_on": "completion"}))
        return completion_task.encoder(processor, dataset_stats, base_config)

    def predict(
        self,
        model: nn.Module,
        batch: dict[str, Tensor],
        *,
        processor: Any,
        dataset_stats: DatasetStats,
        max_new_tokens: int | None,
    ) -> list[dict[str, Any]]:
        """Return what the model generates after each prompt, greedily."""
        import torch

        prompts = [
            tokens[: _start_of_completion(labels)]
            for tokens, labels in zip(
                batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True
            )
        ]
        width = max(map(len, prompts))
        padding = processor.pad_token_id
        left_padded = [[padding] * (width - len(prompt)) + prompt for prompt in prompts]
        masks = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        device = batch["input_ids"].device
        tokens_BT = unwrap(model).generate(  # type: ignore[operator]
            input_ids=torch.tensor(left_padded, device=device),
            attention_mask=torch.tensor(masks, device=device),
            max_new_tokens=max_new_tokens or DEFAULT_NEW_TOKENS,
            do_sample=False,
            pad_token_id=padding,
        )
        texts = processor.batch_decode(tokens_BT[:, width:], skip_special_tokens=True)
        return [{"predicted": text} for text in texts]

    def metric_counts(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> ndarray:
        return loss_counts(records)

    def metric_from_counts(self, counts: ndarray) -> ndarray:
        return perplexity_from_counts(counts)


def _next_token_logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the logits of each next token (B, T-1, V), in the model's dtype."""
    logits_BTV: Tensor = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    ).logits
    return logits_BTV[:, :-1]


def _start_of_completion(labels: list[int]) -> int:
    """Return the position of the first token of the last contiguous supervised span."""
    end = max(position for position, label in enumerate(labels) if label != IGNORE_INDEX)
    while end > 0 and labels[end - 1] != IGNORE_INDEX:
        end -= 1
    return end


def _columns(row: Row) -> tuple[str, ...]:
    """Return the columns of a row that are read; none where it has none of the three kinds."""
    for columns in (("messages",), ("prompt", "completion"), ("text",)):
        if all(row.fields.get(column) is not None for column in columns):
            return columns
    return ()
