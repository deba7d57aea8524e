"""Language modelling: chat messages, prompt and completion, or plain text."""

# B batch, T tokens, V vocabulary

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from dtl.config.record import Record
from dtl.core.errors import Fault
from dtl.data.chat.render import answering, chat_tokens, turns_fault
from dtl.data.example import Encoded, Skip
from dtl.models.anatomy import unwrapped
from dtl.tasks.base import (
    IGNORE_INDEX,
    DatasetStats,
    EvalRecord,
    ExamplePreview,
    Task,
    attention_mask,
    find_text_fault,
    get_text,
    max_characters,
    pad_sequences,
)

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor, nn

    from dtl.data.sources.rows import Row

NEW_TOKENS = 128  # that are written, unless another number is asked for
NOTHING_LEFT = "no target left after truncation"
LARGEST_EXPONENT = 700.0  # of a float64


class Options(Record):
    """Options of `task: causal_lm`."""

    max_length: int = Field(
        512, ge=2, description="Longest example in tokens; the rest is cut off."
    )
    learn: Literal["completion", "all"] = Field(
        "completion",
        description="Which tokens of a prompt/completion or chat row are learnt: the completion "
        "(the assistant's turns) or all. Plain text is always learnt whole.",
    )
    end_token: bool = Field(
        True, description="Close plain text and completions with the end-of-sequence token, learnt."
    )


class Plugin(Task):
    """Next-token prediction; the loss counts each learnt token once."""

    auto_class = "AutoModelForCausalLM"
    required_columns = "`messages` (role, content), or `prompt` and `completion`, or `text`"
    best = "-perplexity"
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
                "name them in data.columns, for example `columns: {text: body}`",
            )
        if columns == ("messages",):
            return turns_fault(row, "messages")
        return next(filter(None, (find_text_fault(row, column) for column in columns)), None)

    def preview(self, row: Row) -> ExamplePreview:
        """Prompts may repeat; a row is known by all that it says."""
        columns = _columns(row)
        if columns != ("messages",):
            texts = [str(row.fields[column]) for column in columns]
            return ExamplePreview("\n".join(texts), texts[1] if len(texts) > 1 else None)
        messages: Any = row.fields["messages"]
        answers = [turn["content"] for turn in messages if turn["role"] == "assistant"]
        calls = any(turn.get("tool_calls") for turn in messages)
        said = None if calls else "".join(str(answer or "") for answer in answers)
        return ExamplePreview(json.dumps(messages, sort_keys=True, default=str), said)

    def collect_dataset_stats(self, rows: Iterable[Row], base_config: Any) -> DatasetStats:
        return {}

    def head_config(self, dataset_stats: DatasetStats) -> dict[str, Any]:
        return {}

    def max_length(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> int:
        return int(
            min(
                self.options.max_length,
                getattr(base_config, "max_position_embeddings", None) or 2**31,
            )
        )

    def encoder(
        self, processor: Any, dataset_stats: DatasetStats, base_config: Any
    ) -> Callable[[Row], Encoded | Skip]:
        limit = self.max_length(processor, dataset_stats, base_config)

        def encode(row: Row) -> Encoded | Skip:
            tokens, learnt = self._tokens(row, processor, limit)
            if not tokens:
                return Skip("empty text")
            labels = [
                token if counts else IGNORE_INDEX
                for token, counts in zip(tokens, learnt, strict=True)
            ]
            tokens, labels = tokens[:limit], labels[:limit]
            targets = sum(label != IGNORE_INDEX for label in labels[1:])
            if targets == 0:
                return Skip(NOTHING_LEFT)
            return Encoded({"input_ids": tokens, "labels": labels}, len(tokens), targets)

        return encode

    def _tokens(self, row: Row, tokenizer: Any, limit: int) -> tuple[list[int], list[bool]]:
        """Token ids of a row, and whether each is learnt; those beyond the limit may be missing."""
        columns = _columns(row)
        if columns == ("messages",):
            return self._chat(row, tokenizer, limit)
        start = [tokenizer.bos_token_id] if _opens_with_start(tokenizer) else []
        end = [tokenizer.eos_token_id] if self._closes(tokenizer) else []
        texts = [_ids(tokenizer, get_text(row, column, max_tokens=limit)) for column in columns]
        if columns == ("text",):
            tokens = start + texts[0] + end if texts[0] else []
            return tokens, [True] * len(tokens)
        prompt, completion = start + texts[0], texts[1] + end
        learnt = [self.options.learn == "all"] * len(prompt) + [True] * len(completion)
        return prompt + completion, learnt

    def _closes(self, tokenizer: Any) -> bool:
        return self.options.end_token and tokenizer.eos_token_id is not None

    def _chat(self, row: Row, tokenizer: Any, limit: int) -> tuple[list[int], list[bool]]:
        """Learn what each assistant turn adds, or all."""
        turns: Any = row.fields["messages"]
        return chat_tokens(
            tokenizer,
            turns,
            row,
            answers=None if self.options.learn == "all" else answering(turns),
            limit=limit,
            characters=max_characters(limit),
            plain="`prompt` and `completion`",
            otherwise="set task.learn=all, or give the data as `prompt` and `completion`",
        )

    def collate(self, examples: list[dict[str, Any]], *, pad_token_id: int) -> dict[str, Tensor]:
        inputs = [example["input_ids"] for example in examples]
        return {
            "input_ids": pad_sequences(inputs, value=pad_token_id),
            "attention_mask": attention_mask(inputs),
            "labels": pad_sequences(
                [example["labels"] for example in examples], value=IGNORE_INDEX
            ),
        }

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return _losses(model, batch)[0].sum()

    def eval_records(
        self, model: nn.Module, batch: dict[str, Tensor], *, processor: Any
    ) -> list[EvalRecord]:
        losses_BT, logits_BTV = _losses(model, batch)
        labels_BT = batch["labels"][:, 1:]
        hits_BT = logits_BTV.argmax(-1) == labels_BT
        targets_B = (labels_BT != IGNORE_INDEX).sum(1)
        return [
            {"loss": loss, "targets": targets, "hits": hits}
            for loss, targets, hits in zip(
                losses_BT.double().sum(1).tolist(),
                targets_B.tolist(),
                hits_BT.sum(1).tolist(),
                strict=True,
            )
        ]

    def score(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> dict[str, float]:
        """Loss a token (nats), perplexity = exp(loss), share of tokens guessed right."""
        targets = sum(outcome["targets"] for outcome in records)
        loss = math.fsum(outcome["loss"] for outcome in records) / targets
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, LARGEST_EXPONENT)),
            "accuracy": sum(outcome["hits"] for outcome in records) / targets,
        }

    def with_placeholder_target(
        self, fields: dict[str, Any], dataset_stats: DatasetStats
    ) -> dict[str, Any]:
        """A prompt, a text that goes on, or turns of which the last asks."""
        turns = fields.get("messages")
        if isinstance(turns, list):
            return {**fields, "messages": [*turns, {"role": "assistant", "content": "-"}]}
        prompt = {"prompt": fields["text"]} if "prompt" not in fields and "text" in fields else {}
        return {**fields, **prompt, "completion": "-"}

    def prompt_encoder(
        self, processor: Any, dataset_stats: DatasetStats, base_config: Any
    ) -> Callable[[Row], Encoded | Skip]:
        """The answer alone counts as learnt, so that `predict` finds where the prompt ends."""
        asking = Plugin(self.options.model_copy(update={"learn": "completion"}))
        return asking.encoder(processor, dataset_stats, base_config)

    def predict(
        self,
        model: nn.Module,
        batch: dict[str, Tensor],
        *,
        processor: Any,
        dataset_stats: DatasetStats,
        max_new_tokens: int | None,
    ) -> list[dict[str, Any]]:
        """What the model writes after each prompt, greedily."""
        import torch

        prompts = [
            tokens[: _start_of_answer(labels)]
            for tokens, labels in zip(
                batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True
            )
        ]
        widest = max(map(len, prompts))
        padding = processor.pad_token_id
        left = [[padding] * (widest - len(prompt)) + prompt for prompt in prompts]
        seen = [[0] * (widest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        device = batch["input_ids"].device
        tokens_BT = unwrapped(model).generate(  # type: ignore[operator]
            input_ids=torch.tensor(left, device=device),
            attention_mask=torch.tensor(seen, device=device),
            max_new_tokens=max_new_tokens or NEW_TOKENS,
            do_sample=False,
            pad_token_id=padding,
        )
        texts = processor.batch_decode(tokens_BT[:, widest:], skip_special_tokens=True)
        return [{"predicted": text} for text in texts]

    def metric_counts(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> ndarray:
        import numpy as np

        return np.array(
            [(outcome["loss"], outcome["targets"]) for outcome in records], dtype=np.float64
        )

    def metric_from_counts(self, counts: ndarray) -> ndarray:
        import numpy as np

        return np.exp(np.minimum(counts[..., 0] / counts[..., 1], LARGEST_EXPONENT))


def _losses(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Loss of each next token (B, T-1), 0 where it is not counted, and the logits (B, T-1, V)."""
    from torch.nn.functional import cross_entropy

    logits_BTV = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    ).logits[:, :-1]
    labels_BT = batch["labels"][:, 1:]
    losses_BT = cross_entropy(
        logits_BTV.flatten(0, 1).float(),
        labels_BT.flatten(),
        ignore_index=IGNORE_INDEX,
        reduction="none",
    ).view(labels_BT.shape)
    return losses_BT, logits_BTV


def _start_of_answer(labels: list[int]) -> int:
    """Where the last run of learnt tokens begins."""
    end = max(place for place, label in enumerate(labels) if label != IGNORE_INDEX)
    while end > 0 and labels[end - 1] != IGNORE_INDEX:
        end -= 1
    return end


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _opens_with_start(tokenizer: Any) -> bool:
    """Whether this tokenizer itself puts the start token before a text, as in pretraining."""
    if tokenizer.bos_token_id is None:
        return False
    return list(tokenizer("a")["input_ids"])[:1] == [tokenizer.bos_token_id]


def _columns(row: Row) -> tuple[str, ...]:
    """Which columns of a row are read; none where it has none of the three kinds."""
    for columns in (("messages",), ("prompt", "completion"), ("text",)):
        if all(row.fields.get(column) is not None for column in columns):
            return columns
    return ()
