"""What the tasks on pairs of responses share: rows, batches, likelihoods and scores."""

# B pairs, P the two responses of a pair (chosen, rejected), T tokens

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from dtl.core.errors import Fault
from dtl.data.chat.messages import CHAT_COLUMNS
from dtl.data.chat.options import ChatOptions
from dtl.data.chat.preference import (
    COLUMNS,
    RESPONSES,
    encode_pair,
    find_preference_fault,
    pair_token_parts,
    preview_pair,
)
from dtl.data.chat.response import ResponseTokenizer
from dtl.data.modalities.text import limit_to_positions
from dtl.data.padding import attention_mask, pad_sequences
from dtl.losses.cross_entropy import IGNORE_INDEX
from dtl.losses.language_model import next_tokens, token_losses
from dtl.losses.preference import response_lengths
from dtl.metrics.base import EvalRecord, Metric
from dtl.metrics.preference import accuracy_counts, pair_scores
from dtl.models.structure.padding import right_padded_inputs
from dtl.models.structure.wrappers import unwrap
from dtl.tasks._chat import GenerativeChatTask
from dtl.tasks.base import DatasetStats, Encoder, ExamplePreview, TokenSpan

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor, nn

    from dtl.data.sources.rows import Row

PAIR_COLUMNS = "`prompt`, `chosen` and `rejected`, each a text or chat messages (role, content)"


class PairOptions(ChatOptions):
    """Options of every task on pairs of responses."""

    max_length: int = Field(
        1024, ge=2, description="Longest prompt with a response, in tokens; the rest is truncated."
    )


@dataclass(frozen=True)
class PairLosses:
    """The losses of a batch (B,), and the rewards of both responses (B, P), fp32.

    `nll_B`: the negative log-likelihood of a token of the chosen response (nats), where the loss
    has it.
    """

    losses_B: Tensor
    rewards_BP: Tensor
    nll_B: Tensor | None = None


class PairTask(GenerativeChatTask):
    """A language model learns which of two responses to a prompt is better; a pair is one target.

    A plugin defines `pair_losses`.
    """

    auto_class = "AutoModelForCausalLM"
    predicts_tokens = True
    packs_examples = True
    required_columns = PAIR_COLUMNS
    row_kind = "pair"
    metric = Metric("accuracy")
    truncation_options: ClassVar = {"max_length": RESPONSES}
    supervises_eos = True
    options: PairOptions

    @abstractmethod
    def pair_losses(self, model: nn.Module, batch: dict[str, Tensor]) -> PairLosses:
        """Return losses and rewards of a batch; the reward is that of the paper."""

    def find_row_fault(self, row: Row) -> Fault | None:
        return find_preference_fault(row)

    def preview(self, row: Row) -> ExamplePreview:
        return ExamplePreview(*preview_pair(row))

    def read_columns(self, fields: Mapping[str, Any]) -> frozenset[str]:
        return frozenset((*COLUMNS, *CHAT_COLUMNS))

    def token_spans(self, values: dict[str, Any]) -> list[TokenSpan]:
        """Return the prompt, the chosen response and the rejected response."""
        prompt, *responses = pair_token_parts(values)
        return [TokenSpan(prompt, False), *(TokenSpan(part, True) for part in responses)]

    def max_length(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> int:
        """Return the length of both responses, each with the prompt."""
        return 2 * limit_to_positions(self.options.max_length, base_config)

    def encoder(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> Encoder:
        limit = limit_to_positions(self.options.max_length, base_config)
        responses = ResponseTokenizer(processor, self.options, limit)
        return lambda row: encode_pair(row, responses)

    def collate(self, examples: list[dict[str, Any]], *, pad_token_id: int) -> dict[str, Tensor]:
        return collate_pairs(examples, pad_token_id=pad_token_id)

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return self.pair_losses(model, batch).losses_B.sum()

    def eval_records(
        self, model: nn.Module, batch: dict[str, Tensor], *, processor: Any
    ) -> list[EvalRecord]:
        found = self.pair_losses(model, batch)
        records: list[EvalRecord] = [
            {"loss": loss, "chosen_reward": chosen, "rejected_reward": rejected}
            for loss, (chosen, rejected) in zip(
                found.losses_B.tolist(), found.rewards_BP.tolist(), strict=True
            )
        ]
        if found.nll_B is None:
            return records
        return [
            {**record, "nll": nll}
            for record, nll in zip(records, found.nll_B.tolist(), strict=True)
        ]

    def score(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> dict[str, float]:
        """Return mean loss, the share of pairs whose chosen response has the higher reward, mean
        margin and rewards, and the mean negative log-likelihood where the loss has it."""
        scores = pair_scores(records)
        if "nll" in records[0]:
            scores["nll"] = math.fsum(record["nll"] for record in records) / len(records)
        return scores

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
            for chosen, rejected in self.pair_losses(model, batch).rewards_BP.tolist()
        ]

    def metric_counts(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> ndarray:
        return accuracy_counts(records)

    def metric_from_counts(self, counts: ndarray) -> ndarray:
        return counts[..., 0] / counts[..., 1]


def collate_pairs(examples: list[dict[str, Any]], *, pad_token_id: int) -> dict[str, Tensor]:
    """Return `input_ids`, `attention_mask` and `labels` (B, P, T) of encoded pairs."""
    both = [example[name] for example in examples for name in RESPONSES]
    starts = [int(start) for example in examples for start in example["prompt"]]
    flat = collate_responses(both, starts, pad_token_id=pad_token_id)
    return {name: tensor.view(len(examples), 2, -1) for name, tensor in flat.items()}


def collate_responses(
    tokens: list[Any], starts: list[int], *, pad_token_id: int
) -> dict[str, Tensor]:
    """Return `input_ids`, `attention_mask` and `labels` (N, T) of prompts with their responses.

    `starts`: where each response starts; labels are IGNORE_INDEX before.
    """
    labels = [
        [IGNORE_INDEX] * start + list(row[start:])
        for start, row in zip(starts, tokens, strict=True)
    ]
    return {
        "input_ids": pad_sequences(tokens, value=pad_token_id),
        "attention_mask": attention_mask(tokens),
        "labels": pad_sequences(labels, value=IGNORE_INDEX),
    }


@dataclass(frozen=True)
class ResponseLikelihoods:
    """The log-likelihoods of responses (B, P), fp32, and their numbers of tokens (B, P)."""

    sums_BP: Tensor
    lengths_BP: Tensor

    @property
    def means_BP(self) -> Tensor:
        """The mean log-likelihood of a token of each response (B, P)."""
        return self.sums_BP / self.lengths_BP


def compute_likelihoods(model: nn.Module, batch: dict[str, Tensor]) -> ResponseLikelihoods:
    """Return the log-likelihood of each response after its prompt.

    `batch`: `input_ids`, `attention_mask` and `labels` (B, P, T), P responses to a prompt.
    """
    tokens_NT, mask_NT = (batch[name].flatten(0, 1) for name in ("input_ids", "attention_mask"))
    targets_BPT = next_tokens(batch["labels"])
    inputs = right_padded_inputs(model, tokens_NT, mask_NT)
    losses_NT = token_losses(model, inputs, targets_BPT.flatten(0, 1))
    sums_BP = -losses_NT.view(targets_BPT.shape).sum(-1)
    return ResponseLikelihoods(sums_BP, response_lengths(targets_BPT))


def compute_log_ratios(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the log-ratio of model to base of each response (B, P), fp32."""
    with base_mode(model):
        base_BP = compute_likelihoods(model, batch).sums_BP
    return compute_likelihoods(model, batch).sums_BP - base_BP


@contextmanager
def base_mode(model: nn.Module) -> Iterator[None]:
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
