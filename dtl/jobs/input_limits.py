"""Inputs of `dtl predict` that are longer than the model may read: refused or cut, and reported."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dtl.data.example import EncodedExample, Skip
from dtl.tasks.base import Encoder

if TYPE_CHECKING:
    from dtl.data.sources.rows import Row

TOKENS = "input_ids"


@dataclass(frozen=True)
class LimitedEncoder:
    """Encodes rows to predict for, and says what is missing of them.

    `encode`: with the limits of task and model. `encode_all`: without; None: the task has no
    limits. `max_length`: of an example, in tokens. `continues_input`: whether the answer follows
    the input, so that the input is a prompt. `truncates_prompts`: whether the beginning of a prompt
    that leaves no room for an answer is cut; else the row gets no prediction.
    """

    encode: Encoder
    encode_all: Encoder | None
    max_length: int
    continues_input: bool
    truncates_prompts: bool

    def __call__(self, row: Row) -> tuple[EncodedExample | Skip, int]:
        """Return the example, and the number of tokens that were cut from its input."""
        limited = self.encode(row)
        complete = None if self.encode_all is None else self.encode_all(row)
        if not isinstance(complete, EncodedExample) or TOKENS not in complete.values:
            return limited, 0
        length = len(complete.values[TOKENS])
        if isinstance(limited, EncodedExample):  # of a prompt only the placeholder answer is cut
            cut = 0 if self.continues_input else length - len(limited.values[TOKENS])
            return limited, cut
        if self.truncates_prompts:
            return self._keep_end(complete), length - self.max_length
        reason = (
            f"the prompt has more tokens ({length}) than max_length ({self.max_length}); "
            "--truncate-prompts cuts its beginning"
        )
        return Skip(reason), 0

    def _keep_end(self, example: EncodedExample) -> EncodedExample:
        values: dict[str, Any] = {
            name: list(value)[-self.max_length :] for name, value in example.values.items()
        }
        return replace(example, values=values, length=self.max_length)
