"""Reward models: a score for a response, learned from pairs or from scores."""

# B examples, P the responses of an example (chosen, rejected; or one), T tokens

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from dtl.core.errors import Fault
from dtl.data.chat.messages import CHAT_COLUMNS
from dtl.data.chat.options import ChatOptions
from dtl.data.chat.preference import (
    COLUMNS,
    RESPONSES,
    find_preference_fault,
    join_notes,
    preference_messages,
    preview_pair,
)
from dtl.data.chat.response import (
    RESPONSE_COLUMNS,
    ResponseTokenizer,
    TokenizedResponse,
    find_response_fault,
    preview_response,
    response_messages,
)
from dtl.data.example import EncodedExample, Skip
from dtl.data.modalities.text import limit_to_tokenizer
from dtl.data.padding import attention_mask, pad_sequences
from dtl.data.row_formats.base import RowKind
from dtl.losses.preference import reward_losses
from dtl.metrics.base import EvalRecord, Metric
from dtl.metrics.preference import accuracy_counts, pair_scores
from dtl.metrics.regression import (
    correlation_counts,
    number_records,
    number_scores,
    pearson_from_counts,
)
from dtl.tasks._chat import ChatTask
from dtl.tasks.base import DatasetStats, Encoder, ExamplePreview, TokenSpan

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor, nn

    from dtl.data.sources.rows import Row

CHOSEN, REJECTED = RESPONSES
REQUIRED_COLUMNS = {
    "pairwise": "`chosen` and `rejected` (and `prompt`, `margin`)",
    "scalar": "`prompt`, `completion` and `score` (a number)",
}
METRICS = {"pairwise": Metric("accuracy"), "scalar": Metric("pearson")}
EMPTY = "no response left after truncation"


class Options(ChatOptions):
    """Options of `task: reward`."""

    objective: Literal["pairwise", "scalar"] = Field(
        "pairwise",
        description="Learn from pairs of responses (Bradley-Terry), or from a score of each "
        "response (squared error).",
    )
    center_rewards_coefficient: float = Field(
        0.0,
        ge=0,
        description="Weight of (reward of chosen + reward of rejected)^2, which keeps the mean "
        "reward near 0 (pairwise).",
    )
    max_length: int = Field(
        1024, ge=2, description="Longest prompt with a response, in tokens; the rest is truncated."
    )


class Plugin(ChatTask):
    """-log sigmoid(reward of chosen - reward of rejected - margin), or (reward - score)^2.

    A pair, or a score, is one target. The reward is the output of a head with one label.
    """

    auto_class = "AutoModelForSequenceClassification"
    truncation_options: ClassVar = {"max_length": RESPONSES}
    options: Options

    @property
    def required_columns(self) -> str:  # type: ignore[override]
        return REQUIRED_COLUMNS[self.options.objective]

    @property
    def row_kind(self) -> RowKind | None:  # type: ignore[override]
        return "pair" if self._is_pairwise else None

    @property
    def metric(self) -> Metric:  # type: ignore[override]
        return METRICS[self.options.objective]

    @property
    def _is_pairwise(self) -> bool:
        return self.options.objective == "pairwise"

    def find_row_fault(self, row: Row) -> Fault | None:
        if self._is_pairwise:
            fault = find_preference_fault(row, needs_prompt=False)
            return fault or _find_number_fault(row, "margin", is_required=False)
        return find_response_fault(row) or _find_number_fault(row, "score", is_required=True)

    def preview(self, row: Row) -> ExamplePreview:
        preview = preview_pair if self._is_pairwise else preview_response
        return ExamplePreview(preview(row)[0])

    def read_columns(self, fields: Mapping[str, Any]) -> frozenset[str]:
        own = (*COLUMNS, "margin") if self._is_pairwise else (*RESPONSE_COLUMNS, "score")
        return frozenset((*own, *CHAT_COLUMNS))

    def token_spans(self, values: dict[str, Any]) -> list[TokenSpan]:
        return [TokenSpan(list(values[name]), True) for name in RESPONSES if len(values[name])]

    def collect_dataset_stats(self, rows: Iterable[Row], base_config: Any) -> DatasetStats:
        """Return whether the base has no reward head."""
        architectures = getattr(base_config, "architectures", None) or ()
        is_classifier = any("ForSequenceClassification" in name for name in architectures)
        return {"new_head": not (is_classifier and base_config.num_labels == 1)}

    def head_config(self, dataset_stats: DatasetStats) -> dict[str, Any]:
        return {"num_labels": 1}

    def max_length(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> int:
        limit = limit_to_tokenizer(self.options.max_length, processor, base_config)
        return 2 * limit if self._is_pairwise else limit

    def encoder(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> Encoder:
        limit = limit_to_tokenizer(self.options.max_length, processor, base_config)
        responses = ResponseTokenizer(processor, self.options, limit)
        encode = _encode_pair if self._is_pairwise else _encode_single
        return lambda row: encode(row, responses)

    def collate(self, examples: list[dict[str, Any]], *, pad_token_id: int) -> dict[str, Tensor]:
        """Return `input_ids`, `attention_mask` (B, P, T), and margins and scores (B,).

        P is 1 if no example has a rejected response. `is_single`: whether an example has none.
        """
        import torch

        is_single = [len(example[REJECTED]) == 0 for example in examples]
        names = (CHOSEN,) if all(is_single) else RESPONSES
        texts = [
            list(example[name]) or list(example[CHOSEN][:1])
            for example in examples
            for name in names
        ]
        batch = {
            "input_ids": pad_sequences(texts, value=pad_token_id),
            "attention_mask": attention_mask(texts),
        }
        return {
            **{name: each.view(len(examples), len(names), -1) for name, each in batch.items()},
            "is_single": torch.tensor(is_single),
            "target": torch.tensor(
                [float(example["target"]) for example in examples], dtype=torch.float32
            ),
        }

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return self._losses(_rewards(model, batch), batch["target"].float()).sum()

    def _losses(self, rewards_BP: Tensor, targets_B: Tensor) -> Tensor:
        """Return the loss of each example (B,). `targets_B`: margins, or scores."""
        if not self._is_pairwise:
            return (rewards_BP[:, 0] - targets_B) ** 2
        return reward_losses(
            rewards_BP, targets_B, centering=self.options.center_rewards_coefficient
        )

    def eval_records(
        self, model: nn.Module, batch: dict[str, Tensor], *, processor: Any
    ) -> list[EvalRecord]:
        rewards_BP, targets_B = _rewards(model, batch), batch["target"].float()
        losses_B = self._losses(rewards_BP, targets_B)
        if not self._is_pairwise:
            return number_records(rewards_BP, targets_B[:, None], losses_B[:, None])
        return [
            {"loss": loss, "chosen_reward": chosen, "rejected_reward": rejected}
            for loss, (chosen, rejected) in zip(losses_B.tolist(), rewards_BP.tolist(), strict=True)
        ]

    def score(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> dict[str, float]:
        return pair_scores(records) if self._is_pairwise else number_scores(records, ["score"])

    def with_placeholder_target(
        self, fields: dict[str, Any], dataset_stats: DatasetStats
    ) -> dict[str, Any]:
        """Return the fields with a score, or with a completion as both responses of a pair."""
        if not self._is_pairwise:
            return {**fields, "score": 0.0}
        if "completion" not in fields:
            return fields
        return {**fields, CHOSEN: fields["completion"], REJECTED: fields["completion"]}

    def prompt_encoder(
        self, processor: Any, dataset_stats: DatasetStats, base_config: Any
    ) -> Encoder:
        """Return an encoder of pairs, and of single completions."""
        limit = limit_to_tokenizer(self.options.max_length, processor, base_config)
        responses = ResponseTokenizer(processor, self.options, limit)

        def encode_input(row: Row) -> EncodedExample | Skip:
            is_single = row.fields.get("completion") is not None
            return (_encode_single if is_single else _encode_pair)(row, responses)

        return encode_input

    def predict(
        self,
        model: nn.Module,
        batch: dict[str, Tensor],
        *,
        processor: Any,
        dataset_stats: DatasetStats,
        max_new_tokens: int | None,
    ) -> list[dict[str, Any]]:
        """Return the reward of a completion; of a pair, which response has the higher reward."""
        rewards_BP = _rewards(model, batch).tolist()
        return [
            _describe_rewards(rewards[:1] if is_single else rewards)
            for rewards, is_single in zip(rewards_BP, batch["is_single"].tolist(), strict=True)
        ]

    def metric_counts(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> ndarray:
        return accuracy_counts(records) if self._is_pairwise else correlation_counts(records)

    def metric_from_counts(self, counts: ndarray) -> ndarray:
        return counts[..., 0] / counts[..., 1] if self._is_pairwise else pearson_from_counts(counts)


def _rewards(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the reward of each response (B, P), fp32."""
    rewards_X1: Tensor = model(
        input_ids=batch["input_ids"].flatten(0, 1),
        attention_mask=batch["attention_mask"].flatten(0, 1),
    ).logits
    return rewards_X1.float().view(batch["input_ids"].shape[:2])


def _describe_rewards(rewards: list[float]) -> dict[str, Any]:
    if len(rewards) == 1:
        return {"predicted": rewards[0]}
    chosen, rejected = rewards
    return {
        "predicted": CHOSEN if chosen > rejected else REJECTED,
        "chosen_reward": chosen,
        "rejected_reward": rejected,
    }


def _encode_pair(row: Row, responses: ResponseTokenizer) -> EncodedExample | Skip:
    """Return both responses, each with the prompt; a pair is one target."""
    messages = preference_messages(row)
    if messages is None:
        prompt = str(row.fields.get("prompt") or "")
        texts = (prompt + str(row.fields[name]) for name in RESPONSES)
        pair = [TokenizedResponse(responses.tokenize_joined_text(text), 0) for text in texts]
    else:
        pair = [
            responses.tokenize_chat(messages.prompt, response, row)
            for response in (messages.chosen, messages.rejected)
        ]
    if any(response.is_empty for response in pair):
        return Skip(EMPTY)
    if pair[0].tokens == pair[1].tokens:
        return Skip("both responses are the same, or become so by truncation")
    return _make_example(pair, row.fields.get("margin"))


def _encode_single(row: Row, responses: ResponseTokenizer) -> EncodedExample | Skip:
    """Return a response with its prompt; its score is one target."""
    messages = response_messages(row)
    if messages is None:
        text = str(row.fields.get("prompt") or "") + str(row.fields["completion"])
        response = TokenizedResponse(responses.tokenize_joined_text(text), 0)
    else:
        response = responses.tokenize_chat(*messages, row)
    return Skip(EMPTY) if response.is_empty else _make_example([response], row.fields.get("score"))


def _make_example(pair: list[TokenizedResponse], target: Any) -> EncodedExample:
    """Return the example of two responses, or of one."""
    chosen, rejected = pair[0].tokens, pair[1].tokens if len(pair) > 1 else []
    values = {
        CHOSEN: chosen,
        REJECTED: rejected,
        "target": 0.0 if target is None else float(target),
    }
    return EncodedExample(values, len(chosen) + len(rejected), 1, *join_notes(pair))


def _find_number_fault(row: Row, column: str, *, is_required: bool) -> Fault | None:
    """Return the fault of a column that is not a finite number."""
    value: Any = row.fields.get(column)
    if value is None and not is_required:
        return None
    if value is None:
        return Fault(
            row.location,
            f"the column `{column}` is missing",
            f"map the column in data.columns: {{{column}: ...}}",
        )
    try:
        is_finite = not isinstance(value, bool) and math.isfinite(float(value))
    except (TypeError, ValueError):
        is_finite = False
    if is_finite:
        return None
    return Fault(row.location, f"`{column}` is {value!r}, not a number", "write a finite number")
