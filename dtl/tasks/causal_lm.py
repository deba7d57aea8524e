"""Causal language modeling: chat messages, prompt and completion, or plain text."""

# B batch, T tokens

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from dtl.core.errors import Fault
from dtl.data.chat.messages import (
    CHAT_COLUMNS,
    Chat,
    find_chat_fault,
    normalize_messages,
    read_chat,
    supervised_indices,
)
from dtl.data.chat.options import ChatOptions
from dtl.data.chat.render import ChatRenderer, ChatTokenizer
from dtl.data.example import EncodedExample, Skip
from dtl.data.modalities.special_tokens import as_textual
from dtl.data.modalities.text import (
    NO_LIMIT,
    find_text_fault,
    get_text,
    limit_to_positions,
    max_characters,
    tokenize_texts,
)
from dtl.data.padding import pad_sequences, pad_token_inputs
from dtl.losses.cross_entropy import IGNORE_INDEX
from dtl.losses.language_model import next_tokens, score_tokens, sum_token_losses
from dtl.metrics.base import EvalRecord, Metric
from dtl.metrics.perplexity import (
    loss_counts,
    perplexity_from_counts,
    perplexity_scores,
    token_records,
)
from dtl.models.structure.padding import right_padded_inputs
from dtl.models.structure.wrappers import unwrap
from dtl.tasks._chat import GenerativeChatTask
from dtl.tasks.base import DatasetStats, Encoder, ExamplePreview

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor, nn

    from dtl.data.sources.rows import Row

DEFAULT_NEW_TOKENS = 128  # that are generated, unless another number is requested
MESSAGES_PER_TOKEN = 4  # more than any chat template renders
ASSISTANT = "assistant"
NO_TARGET_LEFT = "no target left after truncation"
NO_SUPERVISED_ANSWER = "no answer of the assistant is trained on (`weight: 0` or `train: false`)"


class Options(ChatOptions):
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
    expand_turns: bool | None = Field(
        None,
        description="Learn each answer of a chat from an example of its own, which ends with it; "
        "false: all answers from the full chat, as the chat template renders it. Default: an "
        "example of its own only for an answer that the template renders differently in a longer "
        "chat.",
    )


class Plugin(GenerativeChatTask):
    """Next-token prediction; each supervised token is one target."""

    auto_class = "AutoModelForCausalLM"
    predicts_tokens = True
    packs_examples = True
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
            return find_chat_fault(row)
        return next(filter(None, (find_text_fault(row, column) for column in columns)), None)

    def preview(self, row: Row) -> ExamplePreview:
        """Return prompt and response together as the input, because prompts may repeat."""
        columns = _columns(row)
        if columns != ("messages",):
            texts = [str(row.fields[column]) for column in columns]
            return ExamplePreview("\n".join(texts), texts[1] if len(texts) > 1 else None)
        chat = read_chat(row)
        responses = [turn for turn in chat.messages if turn["role"] == "assistant"]
        calls_tools = any(turn.get("tool_calls") for turn in responses)
        target = (
            None if calls_tools else "".join(str(turn.get("content", "")) for turn in responses)
        )
        content = [chat.messages, chat.tools, chat.documents]
        shown = content if any(content[1:]) else chat.messages
        return ExamplePreview(json.dumps(shown, sort_keys=True, default=str), target)

    def read_columns(self, fields: Mapping[str, Any]) -> frozenset[str]:
        columns = _columns_of(fields)
        return frozenset((*columns, *CHAT_COLUMNS) if columns == ("messages",) else columns)

    def max_length(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> int:
        return limit_to_positions(self.options.max_length, base_config)

    def encoder(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> Encoder:
        limit = self.max_length(processor, dataset_stats, base_config)

        chat_tokenizer = self._chat_tokenizer(processor, limit)

        def encode(row: Row) -> EncodedExample | Skip:
            if _columns(row) == ("messages",):
                return self._encode_chat(row, chat_tokenizer, limit)
            return _make_example(*self._tokens(row, processor, limit), limit)

        return encode

    def expand_row(self, row: Row, *, processor: Any) -> list[Row]:
        """Return a chat as several, where an answer is learned from an example of its own."""
        if _columns(row) != ("messages",) or self.options.train_on == "all":
            return [row]
        if self.options.expand_turns is False:
            return [row]
        chat = self._read_chat(row)
        conversations = self._chat_tokenizer(processor, NO_LIMIT).expand_messages(chat, row)
        if len(conversations) == 1 and len(conversations[0]) == len(chat.messages):
            return [row]
        return [
            replace(row, fields={**row.fields, "messages": messages}) for messages in conversations
        ]

    def _read_chat(self, row: Row) -> Chat:
        """Return the messages of a row that its first `max_length` tokens can come from: to locate
        the answers of a chat of 100,000 messages would take hours."""
        return read_chat(row).first(self.options.max_length * MESSAGES_PER_TOKEN)

    def _encode_chat(
        self, row: Row, chat_tokenizer: ChatTokenizer, limit: int
    ) -> EncodedExample | Skip:
        """Supervise what each answer adds, or all tokens."""
        chat = self._read_chat(row)
        supervised = supervised_indices(chat.messages)
        if not supervised and self.options.train_on == "completion":
            return Skip(_why_nothing_is_learned(chat))
        is_all = self.options.train_on == "all"
        encoded = chat_tokenizer.encode(chat, row, supervised=None if is_all else supervised)
        example = _make_example(encoded.tokens, encoded.supervised, limit)
        if isinstance(example, Skip):
            return example
        notes = () if is_all else encoded.notes
        return replace(example, dropped=encoded.dropped, notes=notes)

    def _tokens(self, row: Row, tokenizer: Any, limit: int) -> tuple[list[int], list[bool]]:
        """Return the tokens of a row of texts, and whether each is supervised; those beyond the
        limit may be missing."""
        columns, options = _columns(row), self.options
        texts = tokenize_texts(
            tokenizer,
            [get_text(row, column, max_tokens=limit) for column in columns],
            has_end=options.append_eos,
            reads_special_tokens=options.special_tokens != "text",
        )
        if columns == ("text",):
            tokens = texts[0] if row.fields["text"] else []
            return tokens, [True] * len(tokens)
        prompt, completion = texts
        supervised = [options.train_on == "all"] * len(prompt) + [True] * len(completion)
        return prompt + completion, supervised

    def _chat_tokenizer(self, tokenizer: Any, limit: int) -> ChatTokenizer:
        is_textual = self.options.special_tokens == "text"
        return ChatTokenizer(
            as_textual(tokenizer) if is_textual else tokenizer,
            max_tokens=limit,
            max_characters=max_characters(limit),
            plain_format="`prompt` and `completion`",
            options=self.options.chat_template_kwargs,
            expand=self.options.expand_turns,
            renderer=self._chat_renderer,
        )

    @cached_property
    def _chat_renderer(self) -> ChatRenderer:
        return ChatRenderer()

    def collate(self, examples: list[dict[str, Any]], *, pad_token_id: int) -> dict[str, Tensor]:
        labels = [example["labels"] for example in examples]
        return {
            **pad_token_inputs(examples, pad_token_id=pad_token_id),
            "labels": pad_sequences(labels, value=IGNORE_INDEX),
        }

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return sum_token_losses(model, _model_inputs(model, batch), next_tokens(batch["labels"]))

    def eval_records(
        self, model: nn.Module, batch: dict[str, Tensor], *, processor: Any
    ) -> list[EvalRecord]:
        targets_BT = next_tokens(batch["labels"])
        return token_records(
            score_tokens(model, _model_inputs(model, batch), targets_BT), targets_BT
        )

    def score(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> dict[str, float]:
        return perplexity_scores(records)

    def with_placeholder_target(
        self, fields: dict[str, Any], dataset_stats: DatasetStats
    ) -> dict[str, Any]:
        """Return the fields with a completion; of a chat, without the answers at its end."""
        if fields.get("messages") is not None:
            messages = normalize_messages(fields["messages"])
            while isinstance(messages, list) and len(messages) > 1 and _is_answer(messages[-1]):
                messages = messages[:-1]
            return {**fields, "messages": messages}
        prompt = {"prompt": fields["text"]} if "prompt" not in fields and "text" in fields else {}
        return {**fields, **prompt, "completion": "-"}

    def prompt_encoder(
        self, processor: Any, dataset_stats: DatasetStats, base_config: Any
    ) -> Encoder:
        """Return an encoder whose last token stands for the completion; `predict` splits there."""
        completion_task = Plugin(self.options.model_copy(update={"train_on": "completion"}))
        encode_texts = completion_task.encoder(processor, dataset_stats, base_config)
        limit = self.max_length(processor, dataset_stats, base_config)
        chat_tokenizer = self._chat_tokenizer(processor, limit)

        def encode(row: Row) -> EncodedExample | Skip:
            if _columns(row) != ("messages",):
                return encode_texts(row)
            prompt = chat_tokenizer.encode_prompt(read_chat(row), row)
            tokens = [*prompt.tokens, processor.pad_token_id]
            example = _make_example(tokens, [*prompt.supervised, True], limit)
            if isinstance(example, Skip):
                return example
            return replace(example, dropped=prompt.dropped)

        return encode

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


def _model_inputs(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Any]:
    return right_padded_inputs(model, batch["input_ids"], batch["attention_mask"])


def _start_of_completion(labels: list[int]) -> int:
    """Return the position of the first token of the last contiguous supervised span."""
    end = max(position for position, label in enumerate(labels) if label != IGNORE_INDEX)
    while end > 0 and labels[end - 1] != IGNORE_INDEX:
        end -= 1
    return end


def _make_example(tokens: list[int], supervised: list[bool], limit: int) -> EncodedExample | Skip:
    """Return the example of at most `limit` tokens."""
    if not tokens:
        return Skip("empty text")
    labels = [
        token if counts else IGNORE_INDEX for token, counts in zip(tokens, supervised, strict=True)
    ]
    tokens, labels = tokens[:limit], labels[:limit]
    targets = sum(label != IGNORE_INDEX for label in labels[1:])
    if targets == 0:
        return Skip(NO_TARGET_LEFT)
    return EncodedExample({"input_ids": tokens, "labels": labels}, len(tokens), targets)


def _why_nothing_is_learned(chat: Chat) -> str:
    roles = dict.fromkeys(message["role"] for message in chat.messages)
    if ASSISTANT in roles:
        return NO_SUPERVISED_ANSWER
    return f"no message of the role {ASSISTANT} (the roles are {', '.join(roles)})"


def _is_answer(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") == ASSISTANT


def _columns(row: Row) -> tuple[str, ...]:
    """Return the columns of a row that are read; none where it has none of the three kinds."""
    return _columns_of(row.fields)


def _columns_of(fields: Mapping[str, Any]) -> tuple[str, ...]:
    for columns in (("messages",), ("prompt", "completion"), ("text",)):
        if all(fields.get(column) is not None for column in columns):
            return columns
    return ()
