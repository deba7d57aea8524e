"""Preferences: of two answers to a prompt, the better one becomes more likely."""

# B pairs, P the two answers of a pair (chosen, rejected), T tokens, V vocabulary

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from dtl.config.record import Record
from dtl.core.errors import Fault
from dtl.data.chat.render import Turn, chat_tokens, is_turns, turns_fault
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
    max_characters,
    pad_sequences,
)

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor, nn

    from dtl.data.sources.rows import Row

COLUMNS = ("prompt", "chosen", "rejected")
ANSWERS = COLUMNS[1:]


class Options(Record):
    """Options of `task: dpo` (Rafailov et al. 2023, arXiv:2305.18290)."""

    beta: float = Field(
        0.1, gt=0, description="How near the model stays to the base: higher is nearer."
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="Share of the pairs that are taken to be the wrong way round.",
    )
    max_length: int = Field(
        1024, ge=2, description="Longest prompt with an answer, in tokens; the rest is cut off."
    )


class Plugin(Task):
    """-log sigmoid(beta (log-ratio of chosen - log-ratio of rejected)); a pair is one target.

    The log-ratio is that of the model to the base, which is the model with its adapter set aside.
    """

    auto_class = "AutoModelForCausalLM"
    required_columns = (
        "`prompt`, `chosen` and `rejected`, each a text or chat turns (role, content)"
    )
    best = "accuracy"
    compares_with_base = True
    truncation_options: ClassVar = {"max_length": ANSWERS}
    supervises_eos = True
    options: Options

    def find_row_fault(self, row: Row) -> Fault | None:
        fields = row.fields
        implicit = fields.get("prompt") is None and all(is_turns(fields.get(n)) for n in ANSWERS)
        for name in ANSWERS if implicit else COLUMNS:
            holds_turns = isinstance(fields.get(name), list)
            if fault := turns_fault(row, name) if holds_turns else find_text_fault(row, name):
                return fault
        return _answers_fault(row)

    def preview(self, row: Row) -> ExamplePreview:
        if talk := _talk(row):
            every = [talk.prompt, talk.chosen, talk.rejected]
            told = "".join(str(turn["content"] or "") for turn in talk.chosen)
            return ExamplePreview(json.dumps(every, sort_keys=True, default=str), told)
        texts = [str(row.fields[column]) for column in COLUMNS]
        return ExamplePreview("\n".join(texts), texts[1])

    def token_spans(self, values: dict[str, Any]) -> list[TokenSpan]:
        """The prompt, the chosen answer, the rejected answer."""
        starts = dict(zip(ANSWERS, map(int, values["prompt"]), strict=True))
        answers = [TokenSpan(list(values[name][start:]), True) for name, start in starts.items()]
        return [TokenSpan(list(values["chosen"][: starts["chosen"]]), False), *answers]

    def collect_dataset_stats(self, rows: Iterable[Row], base_config: Any) -> DatasetStats:
        return {}

    def head_config(self, dataset_stats: DatasetStats) -> dict[str, Any]:
        return {}

    def max_length(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> int:
        """Both answers, each with the prompt."""
        return 2 * self._limit(base_config)

    def _limit(self, base: Any) -> int:
        positions = getattr(base, "max_position_embeddings", None) or 2**31
        return int(min(self.options.max_length, positions))

    def encoder(
        self, processor: Any, dataset_stats: DatasetStats, base_config: Any
    ) -> Callable[[Row], Encoded | Skip]:
        limit = self._limit(base_config)

        def encode(row: Row) -> Encoded | Skip:
            talk = _talk(row)
            pair = (
                _pair_of_turns(talk, row, processor, limit=limit)
                if talk
                else _pair_of_texts(row, processor, limit=limit)
            )
            if isinstance(pair, Skip):
                return pair
            if any(answer.start >= len(answer.tokens) for answer in pair):
                return Skip("no answer left after truncation")
            values: dict[str, Any] = {
                name: answer.tokens for name, answer in zip(ANSWERS, pair, strict=True)
            }
            values["prompt"] = [answer.start for answer in pair]
            return Encoded(values, sum(len(answer.tokens) for answer in pair), 1)

        return encode

    def collate(self, examples: list[dict[str, Any]], *, pad_token_id: int) -> dict[str, Tensor]:
        both = [example[name] for example in examples for name in ANSWERS]
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
        return self._losses(self._rewards(model, batch)).sum()

    def eval_records(
        self, model: nn.Module, batch: dict[str, Tensor], *, processor: Any
    ) -> list[EvalRecord]:
        rewards_BP = self._rewards(model, batch)
        return [
            {"loss": loss, "chosen_reward": chosen, "rejected_reward": rejected}
            for loss, (chosen, rejected) in zip(
                self._losses(rewards_BP).tolist(), rewards_BP.tolist(), strict=True
            )
        ]

    def score(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> dict[str, float]:
        """Share of pairs whose chosen answer has the higher reward, and by how much on average."""
        pairs = [(outcome["chosen_reward"], outcome["rejected_reward"]) for outcome in records]
        return {
            "loss": math.fsum(outcome["loss"] for outcome in records) / len(records),
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
        """Which of the two answers the model prefers, as training counts it."""
        return [
            {
                "predicted": "chosen" if chosen > rejected else "rejected",
                "margin": chosen - rejected,
            }
            for chosen, rejected in self._rewards(model, batch).tolist()
        ]

    def metric_counts(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> ndarray:
        import numpy as np

        right = [outcome["chosen_reward"] > outcome["rejected_reward"] for outcome in records]
        return np.array([(hit, 1) for hit in right], dtype=np.float64)

    def metric_from_counts(self, counts: ndarray) -> ndarray:
        return counts[..., 0] / counts[..., 1]

    def _rewards(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """beta times the log-ratio of each answer (B, P), in fp32."""
        with _as_base(model):
            of_base_BP = _log_likelihoods(model, batch)
        return self.options.beta * (_log_likelihoods(model, batch) - of_base_BP)

    def _losses(self, rewards_BP: Tensor) -> Tensor:
        """Of each pair (B,)."""
        from torch.nn.functional import logsigmoid

        margins_B = rewards_BP[:, 0] - rewards_BP[:, 1]
        wrong = self.options.label_smoothing
        return -(1 - wrong) * logsigmoid(margins_B) - wrong * logsigmoid(-margins_B)


def _log_likelihoods(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Of each answer after its prompt (B, P), summed over its tokens, in fp32."""
    from torch.nn.functional import cross_entropy

    labels_BPT = batch["labels"]
    logits = model(
        input_ids=batch["input_ids"].flatten(0, 1),
        attention_mask=batch["attention_mask"].flatten(0, 1),
        use_cache=False,
    ).logits[:, :-1]
    losses = cross_entropy(
        logits.flatten(0, 1).float(),
        labels_BPT[..., 1:].flatten(),
        ignore_index=IGNORE_INDEX,
        reduction="none",
    )
    return -losses.view(*labels_BPT.shape[:2], -1).sum(-1)


@contextmanager
def _as_base(model: nn.Module) -> Iterator[None]:
    """The base as it was: without adapter, gradient and dropout."""
    import torch

    inner: Any = unwrapped(model)
    modes = [(module, module.training) for module in inner.modules()]
    inner.eval()
    try:
        with torch.no_grad(), inner.disable_adapter():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@dataclass(frozen=True)
class _Talk:
    """A pair as turns: what both answers follow, and each answer."""

    prompt: list[Turn]
    chosen: list[Turn]
    rejected: list[Turn]


def _talk(row: Row) -> _Talk | None:
    """The row as turns: those of `prompt` and two answers, or two conversations, of which the
    prompt is what they have in common; None where it holds texts."""
    prompt, chosen, rejected = (row.fields.get(column) for column in COLUMNS)
    if is_turns(prompt):
        return _Talk(list(prompt), _turns_after(prompt, chosen), _turns_after(prompt, rejected))  # type: ignore[call-overload]
    if not (is_turns(chosen) and is_turns(rejected)):
        return None
    chosen, rejected = list(chosen), list(rejected)  # type: ignore[call-overload]
    same = 0
    while same < min(len(chosen), len(rejected)) - 1 and chosen[same] == rejected[same]:
        same += 1
    return _Talk(chosen[:same], chosen[same:], rejected[same:])


def _turns_after(prompt: Any, answer: Any) -> list[Turn]:
    """An answer's own turns; it may be a text, or repeat the prompt."""
    if isinstance(answer, str):
        return [{"role": "assistant", "content": answer}]
    return list(answer[len(prompt) :] if answer[: len(prompt)] == prompt else answer)


def _answers_fault(row: Row) -> Fault | None:
    """What is wrong with the answers of a row whose columns are each a text or turns."""
    talk = _talk(row)
    if talk is None:
        mixed = [name for name in ANSWERS if isinstance(row.fields[name], list)]
        fix = "give turns in both, or in `prompt`"
        what = "of the two answers, only `{}` holds turns"
        return Fault(row.location, what.format(mixed[0]), fix) if mixed else None
    for name, turns in zip(ANSWERS, (talk.chosen, talk.rejected), strict=True):
        roles = [turn["role"] for turn in turns]
        if roles != ["assistant"]:
            return Fault(
                row.location,
                f"after the prompt, `{name}` is not one turn of the assistant's (it has "
                f"{', '.join(roles) or 'none'})",
                "let the two differ in their last turn alone, the assistant's",
            )
    return None


@dataclass(frozen=True)
class _Answered:
    """A prompt with an answer, as tokens, and where the answer starts."""

    tokens: list[int]
    start: int


def _pair_of_texts(row: Row, tokenizer: Any, *, limit: int) -> list[_Answered] | Skip:
    prompt, chosen, rejected = (get_text(row, name, max_tokens=limit) for name in COLUMNS)
    if chosen == rejected:
        return Skip("both answers are the same")
    start = _tokens(tokenizer, prompt, opens=True)
    if not start:
        return Skip("no prompt")
    answers = [_tokens(tokenizer, text, closes=True) for text in (chosen, rejected)]
    return [_Answered((start + answer)[:limit], len(start)) for answer in answers]


def _pair_of_turns(talk: _Talk, row: Row, tokenizer: Any, *, limit: int) -> list[_Answered] | Skip:
    """By the model's own chat template, up to the end-of-turn mark of the answer."""
    if talk.chosen == talk.rejected:
        return Skip("both answers are the same")
    if not talk.prompt:
        return Skip("no prompt")
    pair = []
    for answer in (talk.chosen, talk.rejected):
        tokens, counted = chat_tokens(
            tokenizer,
            [*talk.prompt, *answer],
            row,
            answers=[len(talk.prompt)],
            limit=limit,
            characters=max_characters(limit),
            plain="the prompt and its answers as plain texts",
            otherwise="give the prompt and its answers as plain texts",
        )
        start = counted.index(True) if True in counted else len(tokens)
        pair.append(_Answered(tokens[: start + sum(counted)], start))
    return pair


def _tokens(tokenizer: Any, text: str, *, opens: bool = False, closes: bool = False) -> list[int]:
    """Tokens of a prompt, with the start token where the tokenizer itself puts one, or of an
    answer, with its end."""
    tokens = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    if opens and start is not None and tokenizer("a")["input_ids"][:1] == [start]:
        tokens = [start, *tokens]
    return [*tokens, end] if closes and end is not None else tokens
