"""The chat template of a config, `task.chat_template`, in place of the tokenizer's own."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dtl.core.errors import DtlError
from dtl.data.chat.messages import Chat
from dtl.data.chat.options import ChatOptions
from dtl.data.chat.stop_tokens import ANSWER, QUESTION
from dtl.data.chat.template import ChatTemplate, added_tokens

LOCATION = "task.chat_template"
FOLDER = Path(__file__).parent / "templates"
STATS_KEY = "chat_template"  # of the dataset stats: the text, also where its file is gone
TOKEN_LIKE = re.compile(r"<\|[^<>|\s]+\|>|\[/?[A-Z]\w*\]|</?s>|<(?:start|end)_of_turn>")
MAX_CHARACTERS = 1_000_000


def template_names() -> list[str]:
    """Return the names of the chat templates that dtl has."""
    return sorted(path.stem for path in FOLDER.glob("*.jinja"))


def set_chat_template(
    tokenizer: Any, dataset_stats: Mapping[str, Any], options: ChatOptions
) -> tuple[Any, dict[str, Any]]:
    """Return the tokenizer with the template of the config, if it has one, and the stats with its
    text; an export has it in its stats. Raises DtlError."""
    stats = dict(dataset_stats)
    if options.chat_template is None:
        return tokenizer, stats
    if STATS_KEY not in stats:
        stats[STATS_KEY] = read_template(options.chat_template)
        tokenizer.chat_template = stats[STATS_KEY]
        _check_template(tokenizer, options)
    tokenizer.chat_template = stats[STATS_KEY]
    return tokenizer, stats


def find_template_notes(options: ChatOptions) -> Iterator[str]:
    """Yield a line for plan and report on the template of the config, if it has one."""
    if options.chat_template is not None:
        yield f"chats are rendered with {LOCATION}={options.chat_template}"


def read_template(name: str) -> str:
    """Return the text of a template: of a file, or of one that dtl has. Raises DtlError."""
    path = Path(name) if name not in template_names() else FOLDER / f"{name}.jinja"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as fault:
        close = difflib.get_close_matches(name, template_names(), n=1)
        expected = f"did you mean {close[0]}?" if close else "set the path of a Jinja file"
        raise DtlError.of(
            LOCATION,
            f"{name!r} is neither a template of dtl nor a readable text file ({_reason(fault)})",
            f"{expected} Templates of dtl: {', '.join(template_names())}",
        ) from fault
    if len(text) > MAX_CHARACTERS or not text.strip():
        raise DtlError.of(
            LOCATION, f"{name!r} has {len(text)} characters", "set the path of a Jinja file"
        )
    return text.rstrip("\n")


def _reason(fault: Exception) -> str:
    is_missing = isinstance(fault, FileNotFoundError)
    return "no such file" if is_missing else getattr(fault, "strerror", None) or "not UTF-8"


def _check_template(tokenizer: Any, options: ChatOptions) -> None:
    """Raise DtlError for a template that is not valid, or whose answers have no end that the
    tokenizer knows: the model would not learn to stop."""
    text = _render_answer(tokenizer, options)
    closing = text[text.rindex(ANSWER["content"]) + len(ANSWER["content"]) :].strip()
    tokens = added_tokens(tokenizer)
    found = [] if tokens is None else list(tokens.finditer(closing))
    if not closing or (found and found[-1].end() == len(closing)):
        return
    missing = [token for token in TOKEN_LIKE.findall(text) if token not in tokenizer.get_vocab()]
    names = ", ".join(dict.fromkeys(missing))
    raise DtlError.of(
        LOCATION,
        f"the template ends an answer with {closing!r}, which is not a token of the model, so it "
        "would not learn to stop",
        f"set model.add_special_tokens=[{names}], or end answers with {{{{ eos_token }}}}"
        if names
        else "end answers with {{ eos_token }}",
    )


def _render_answer(tokenizer: Any, options: ChatOptions) -> str:
    """Return a small chat as text. Raises DtlError where the template does not render it."""
    from jinja2 import TemplateSyntaxError

    template = ChatTemplate(tokenizer, tuple(options.chat_template_kwargs.items()), LOCATION)
    try:
        text = template.render(template.adapt(Chat([QUESTION, ANSWER]))).text
    except DtlError as fault:
        cause = fault.__cause__
        if not isinstance(cause, TemplateSyntaxError):
            raise
        raise DtlError.of(
            LOCATION,
            f"line {cause.lineno} of the template is not valid Jinja ({cause.message})",
            "correct the template",
        ) from cause
    if QUESTION["content"] not in text or ANSWER["content"] not in text:
        raise DtlError.of(
            LOCATION,
            "the template does not render the messages of the user and the assistant",
            "loop over `messages`, and write the `content` of each",
        )
    return text
