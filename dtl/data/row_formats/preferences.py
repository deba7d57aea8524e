"""Preferences as texts: with the prompt in both responses, as hh-rlhf, as UltraFeedback."""

from __future__ import annotations

import re
from itertools import takewhile
from typing import Any

from dtl.data.nested_text import parse_text
from dtl.data.row_formats.base import RowFormat
from dtl.data.row_formats.values import (
    Message,
    RowFormatError,
    get_list,
    replace_columns,
    require_text,
)
from dtl.data.sources.results import Fields

SPEAKER = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}
OTHER_PROMPTS = ("system", "system_prompt", "input", "context", "history", "post")
SCORES = ("fine-grained_score", "overall_score")  # the second one has errors: 10 instead of 1


def _has_texts(fields: Fields) -> bool:
    texts = (fields.get("chosen"), fields.get("rejected"))
    return all(isinstance(text, str) for text in texts) and not fields.get("prompt")


def _is_hh(fields: Fields) -> bool:
    return _has_texts(fields) and all(
        {"Human", "Assistant"} <= set(SPEAKER.findall(fields[name].lstrip("\n ")))
        for name in ("chosen", "rejected")
    )


def from_hh(fields: Fields) -> Fields:
    """Return the row with the messages of both conversations in `chosen` and `rejected`."""
    columns = {name: _split_speakers(require_text(fields, name)) for name in ("chosen", "rejected")}
    return fields | columns


def _split_speakers(text: str) -> list[Message]:
    pieces = SPEAKER.split(text.lstrip("\n "))
    if pieces[0].strip() or len(pieces) < 3:
        raise RowFormatError(
            f"the text begins with {text[:40]!r}, not with a speaker",
            "begin it with Human: or Assistant:",
        )
    return [
        {"role": ROLES[speaker], "content": content.strip()}
        for speaker, content in zip(pieces[1::2], pieces[2::2], strict=True)
    ]


def from_implicit_prompt(fields: Fields) -> Fields:
    """Return the row with the common beginning of both texts as `prompt`.

    As in TRL, a blank at its end belongs to the responses.
    """
    if others := [name for name in OTHER_PROMPTS if fields.get(name)]:
        raise RowFormatError(
            f"`{others[0]}` stands beside responses that begin with their prompt",
            "map the prompt in data.columns: {prompt: ...}, or rename the column",
        )
    chosen, rejected = (require_text(fields, name) for name in ("chosen", "rejected"))
    characters = zip(chosen, rejected, strict=False)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], characters))
    prompt = chosen[:shared].removesuffix(" ")
    return fields | {
        "prompt": prompt,
        "chosen": chosen[len(prompt) :],
        "rejected": rejected[len(prompt) :],
    }


def from_ultrafeedback(fields: Fields) -> Fields:
    """Return the row with the completions of the highest and the lowest score."""
    completions = [item for item in get_list(fields, "completions") if isinstance(item, dict)]
    scored = [(_get_score(item), require_text(item, "response")) for item in completions]
    if not scored or max(scored)[0] == min(scored)[0]:
        raise RowFormatError(
            "all completions have the same score",
            "remove the row, or set data.on_bad_row=skip and data.max_bad_fraction",
        )
    best = max(scored, key=lambda each: each[0])[1]
    worst = min(scored, key=lambda each: each[0])[1]
    prompt = [{"role": "user", "content": require_text(fields, "instruction")}]
    return replace_columns(
        fields,
        ("instruction", "completions"),
        prompt=prompt,
        chosen=[{"role": "assistant", "content": best}],
        rejected=[{"role": "assistant", "content": worst}],
    )


def _get_score(completion: dict[str, Any]) -> float:
    value = next((completion[name] for name in SCORES if completion.get(name) is not None), None)
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise RowFormatError(
            f"a completion has the score {value!r}", f"give each a number in `{SCORES[1]}`"
        ) from None


HH = RowFormat("hh_rlhf", "hh-rlhf", {"pair": from_hh}, _is_hh)
IMPLICIT_PROMPT = RowFormat(
    "implicit_prompt", "implicit prompt", {"pair": from_implicit_prompt}, _has_texts
)
ULTRAFEEDBACK = RowFormat(
    "ultrafeedback",
    "UltraFeedback",
    {"pair": from_ultrafeedback},
    lambda fields: (
        "instruction" in fields and isinstance(parse_text(fields.get("completions")), list)
    ),
)
