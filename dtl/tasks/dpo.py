"""Direct preference optimization: the chosen of two responses becomes more likely."""

# B pairs, P the two responses of a pair (chosen, rejected), T tokens, V vocabulary

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from dtl.config.schema.base import Record
from dtl.core.errors import Fault
from dtl.data.chat.preference import (
    COLUMNS,
    RESPONSES,
    PreferenceMessages,
    find_preference_fault,
    preference_messages,
)
from dtl.data.chat.render import ChatTokenizer
from dtl.data.example import EncodedExample, Skip
from dtl.data.modalities.text import (
    bos_tokens,
    get_text,
    limit_to_positions,
    max_characters,
    tokenize,
)
from dtl.data.padding import attention_mask, pad_sequences
from dtl.losses.cross_entropy import IGNORE_INDEX
from dtl.losses.preference import dpo_losses, log_likelihoods
from dtl.metrics.base import EvalRecord, Metric
from dtl.models.structure.wrappers import unwrap
from dtl.tasks.base import DatasetStats, Encoder, ExamplePreview, Task, TokenSpan

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor, nn

    from dtl.data.sources.rows import Row


class Options(Record):
    """Options of `task: dpo` (Rafailov et al. 2023, arXiv:2305.18290)."""

    beta: float = Field(
        0.1,
        gt=0,
        description="Strength of the penalty on the distance to the base; higher stays closer.",
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="Share of the pairs whose order is assumed to be wrong.",
    )
    max_length: int = Field(
        1024, ge=2, description="Longest prompt with a response, in tokens; the rest is truncated."
    )


class Plugin(Task):
    """-log sigmoid(beta (log-ratio of chosen - log-ratio of rejected)); a pair is one target.

    The log-ratio is that of the model to the base, which is the model with its adapter disabled.
    """

    auto_class = "AutoModelForCausalLM"
    required_columns = (
        "`prompt`, `chosen` and `rejected`, each a text or chat messages (role, content)"
    )
    metric = Metric("accuracy")
    compares_with_base = True
    truncation_options: ClassVar = {"max_length": RESPONSES}
    supervises_eos = True
    options: Options

    def find_row_fault(self, row: Row) -> Fault | None:
        return find_preference_fault(row)

    def preview(self, row: Row) -> ExamplePreview:
        if messages := preference_messages(row):
            every = [messages.prompt, messages.chosen, messages.rejected]
            target = "".join(str(message["content"] or "") for message in messages.chosen)
            return ExamplePreview(json.dumps(every, sort_keys=True, default=str), target)
        texts = [str(row.fields[column]) for column in COLUMNS]
        return ExamplePreview("\n".join(texts), texts[1])

    def token_spans(self, values: dict[str, Any]) -> list[TokenSpan]:
        """Return the prompt, the chosen response and the rejected response."""
        starts = dict(zip(RESPONSES, map(int, values["prompt"]), strict=True))
        responses = [TokenSpan(list(values[name][start:]), True) for name, start in starts.items()]
        return [TokenSpan(list(values["chosen"][: starts["chosen"]]), False), *responses]

    def collect_dataset_stats(self, rows: Iterable[Row], base_config: Any) -> DatasetStats:
        return {}

    def head_config(self, dataset_stats: DatasetStats) -> dict[str, Any]:
        return {}

    def max_length(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> int:
        """Return the length of both responses, each with the prompt."""
        return 2 * limit_to_positions(self.options.max_length, base_config)

    def encoder(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> Encoder:
        limit = limit_to_positions(self.options.max_length, base_config)

        def encode(row: Row) -> EncodedExample | Skip:
            messages = preference_messages(row)
            pair = (
                _pair_of_messages(messages, row, processor, limit=limit)
                if messages
                else _pair_of_texts(row, processor, limit=limit)
            )
            if isinstance(pair, Skip):
                return pair
            if any(response.start >= len(response.tokens) for response in pair):
                return Skip("no response left after truncation")
            values: dict[str, Any] = {
                name: response.tokens for name, response in zip(RESPONSES, pair, strict=True)
            }
            values["prompt"] = [response.start for response in pair]
            return EncodedExample(values, sum(len(response.tokens) for response in pair), 1)

        return encode

    def collate(self, examples: list[dict[str, Any]], *, pad_token_id: int) -> dict[str, Tensor]:
        both = [example[name] for example in examples for name in RESPONSES]
        starts = [int(start) for example in examples for start in example["prompt"]]
        labels = [
            [IGNORE_INDEX] * start + list(row[start:])
            for start, row in zip(starts, both, strict=True)
        ]
        flat = {
            "input_ids": pad_sequences(both, value=pad_token_id),
            "attention_mask": attention_mask(both),
            "labels": pad_sequences(labels, value=IGNORE_INDEX),
        }
        return {name: tensor.view(len(examples), 2, -1) for name, tensor in flat.items()}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        rewards_BP = self._rewards(model, batch)
        return dpo_losses(rewards_BP, label_smoothing=self.options.label_smoothing).sum()

    def eval_records(
        self, model: nn.Module, batch: dict[str, Tensor], *, processor: Any
    ) -> list[EvalRecord]:
        rewards_BP = self._rewards(model, batch)
        losses_B = dpo_losses(rewards_BP, label_smoothing=self.options.label_smoothing)
        return [
            {"loss": loss, "chosen_reward": chosen, "rejected_reward": rejected}
            for loss, (chosen, rejected) in zip(losses_B.tolist(), rewards_BP.tolist(), strict=True)
        ]

    def score(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> dict[str, float]:
        """Return loss (nats a pair), the share of pairs whose chosen response has the higher
        reward, and mean margin and rewards."""
        pairs = [(record["chosen_reward"], record["rejected_reward"]) for record in records]
        return {
            "loss": math.fsum(record["loss"] for record in records) / len(records),
            "accuracy": sum(chosen > rejected for chosen, rejected in pairs) / len(pairs),
            "margin": math.fsum(chosen - rejected for chosen, rejected in pairs) / len(pairs),
            "chosen_reward": math.fsum(chosen for chosen, _ in pairs) / len(pairs),
            "rejected_reward": math.fsum(rejected for _, rejected in pairs) / len(pairs),
        }

    def with_placeholder_target(
        self, fields: dict[str, Any], dataset_stats: DatasetStats
    ) -> dict[str, Any]:
        return fields

    def predict(
        self,
        model: nn.Module,
        batch: dict[str, Tensor],
        *,
        processor: Any,
        dataset_stats: DatasetStats,
        max_new_tokens: int | None,
    ) -> list[dict[str, Any]]:
        """Return which of the two responses has the higher reward, and the margin."""
        return [
            {
                "predicted": "chosen" if chosen > rejected else "rejected",
                "margin": chosen - rejected,
            }
            for chosen, rejected in self._rewards(model, batch).tolist()
        ]

    def metric_counts(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> ndarray:
        """Return of each pair (N, 2): whether it is right, and 1."""
        import numpy as np

        correct = [record["chosen_reward"] > record["rejected_reward"] for record in records]
        return np.array([(is_correct, 1) for is_correct in correct], dtype=np.float64)

    def metric_from_counts(self, counts: ndarray) -> ndarray:
        return counts[..., 0] / counts[..., 1]

    def _rewards(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Return beta times the log-ratio of each response (B, P), fp32."""
        with _base_mode(model):
            base_BP = _log_likelihoods(model, batch)
        return self.options.beta * (_log_likelihoods(model, batch) - base_BP)


def _log_likelihoods(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the log-likelihood of each response after its prompt (B, P), fp32."""
    logits_NTV = model(
        input_ids=batch["input_ids"].flatten(0, 1),
        attention_mask=batch["attention_mask"].flatten(0, 1),
        use_cache=False,
    ).logits[:, :-1]
    return log_likelihoods(logits_NTV, batch["labels"][..., 1:])


@contextmanager
def _base_mode(model: nn.Module) -> Iterator[None]:
    """Run the base: without adapter, gradient and dropout."""
    import torch

    inner: Any = unwrap(model)
    modes = [(module, module.training) for module in inner.modules()]
    inner.eval()
    try:
        with torch.no_grad(), inner.disable_adapter():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@dataclass(frozen=True)
class _TokenizedResponse:
    """A prompt with a response, as tokens, and the position at which the response starts."""

    tokens: list[int]
    start: int


def _pair_of_texts(row: Row, tokenizer: Any, *, limit: int) -> list[_TokenizedResponse] | Skip:
    prompt, chosen, rejected = (get_text(row, name, max_tokens=limit) for name in COLUMNS)
    if chosen == rejected:
        return Skip("both responses are the same")
    prompt_tokens = [*bos_tokens(tokenizer), *tokenize(tokenizer, prompt)]
    if not prompt_tokens:
        return Skip("no prompt")
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return [
        _TokenizedResponse(
            (prompt_tokens + tokenize(tokenizer, text) + end)[:limit], len(prompt_tokens)
        )
        for text in (chosen, rejected)
    ]


def _pair_of_messages(
    messages: PreferenceMessages, row: Row, tokenizer: Any, *, limit: int
) -> list[_TokenizedResponse] | Skip:
    """Return both responses in the model's chat template, up to the end-of-turn token."""
    if messages.chosen == messages.rejected:
        return Skip("both responses are the same")
    if not messages.prompt:
        return Skip("no prompt")
    chat_tokenizer = ChatTokenizer(
        tokenizer,
        max_tokens=limit,
        max_characters=max_characters(limit),
        plain_format="the prompt and its responses as plain texts",
        alternative="give the prompt and its responses as plain texts",
    )
    pair = []
    for response in (messages.chosen, messages.rejected):
        tokens, counted = chat_tokenizer.tokenize(
            [*messages.prompt, *response], row, supervised=[len(messages.prompt)]
        )
        start = counted.index(True) if True in counted else len(tokens)
        pair.append(_TokenizedResponse(tokens[: start + sum(counted)], start))
    return pair
