"""The texts of all beginnings of a chat from one rendering are those that transformers renders."""

from __future__ import annotations

from typing import Any

import pytest

from dtl.core.errors import DtlError
from dtl.data.chat import template as template_module
from dtl.data.chat.beginnings import render_beginnings
from dtl.data.chat.messages import Chat, normalize_messages
from dtl.data.chat.template import ChatTemplate
from dtl.data.sources.rows import Row
from tests import tiny_chat
from tests.task_bench import make_task

CHATS = {**tiny_chat.FEATURES, **tiny_chat.WILD}
# Templates that look ahead, count the messages, or write their end by what was said.
IRREGULAR = {
    "alpaca",
    "deepseek_r1",
    "deepseek_v3",
    "deepseek_v3_1",
    "glm4_5",
    "gpt_oss",
    "minimax_m2",
    "mistral_v3",
    "nemotron3",
    "olmo2",
    "qwen2_5",
    "qwen3",
    "qwen3_5",
    "smollm3",
}
LOOP = "{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}"


def three_answers() -> Chat:
    return Chat(normalize_messages(tiny_chat.FEATURES["three_turns"]["messages"]))


@pytest.mark.parametrize("name", tiny_chat.NAMES)
def test_beginnings_are_those_of_transformers(name: str) -> None:
    template = ChatTemplate(tiny_chat.tokenizer(name))
    found = 0
    for fields in CHATS.values():
        messages = normalize_messages(fields["messages"])
        chat = template.adapt(Chat(messages, tools=fields.get("tools")))
        for with_prompt in (False, True):
            beginnings = render_beginnings(template, chat, add_generation_prompt=with_prompt)
            found += beginnings is not None
            for count in range(1, len(messages) + 1) if beginnings else ():
                first = Chat(chat.messages[:count], tools=chat.tools, options=chat.options)
                expected = template.render(first, add_generation_prompt=with_prompt).text
                assert beginnings is not None and beginnings.text_of(count) == expected
    assert (found > 0) == (name not in IRREGULAR)


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.content }}{% if not loop.last %};{% endif %}{% endfor %}",
        "{% for m in messages %}{{ m.content }}{{ loop.revindex }}{% endfor %}",
        "{% for m in messages %}{{ m.content }}{{ loop.nextitem.role }}{% endfor %}",
        "{{ messages | length }}" + LOOP,
        "{{ messages[-1].role }}" + LOOP,
        "{{ messages[1].role }}" + LOOP,
        "{% for m in messages[:2] %}{{ m.content }}{% endfor %}" + LOOP,
        "{% for m in messages | list %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ messages[loop.index].role }}{{ m.content }}{% endfor %}",
        "{% set n = namespace(x=0) %}{% for m in messages %}{% set n.x = n.x + 1 %}{% endfor %}"
        + LOOP,
        "{% set n = namespace(x=0) %}{% for m in messages %}{{ m.content }}"
        "{% set n.x = n.x + 1 %}{% endfor %}{{ n.x }}",
        LOOP + "{% if messages[0].role == 'user' %}end{% endif %}",
        LOOP + LOOP,
        "{% macro all() %}{{ messages | tojson }}{% endmacro %}" + LOOP + "{{ all() }}",
        "{% if true %}" + LOOP + "{% endif %}",
        "{% set rest = messages[1:] %}{% set last = rest[1:] | list %}" + LOOP,
    ],
)
def test_template_that_may_depend_on_later_messages_is_rendered_for_each(source: str) -> None:
    tokenizer = tiny_chat.tokenizer("chatml")
    made = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, chat_template=source)
    chat = three_answers()
    assert render_beginnings(ChatTemplate(made), chat, add_generation_prompt=False) is None


@pytest.mark.parametrize(
    "source",
    [
        LOOP,
        "{% set rest = messages[1:] %}{{ messages[0].content }}"
        "{% for m in rest %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}x{% endif %}",
        "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{% if not loop.first %}{{ messages[loop.index0 - 1].role }}"
        "{% endif %}{{ m.content }}{% for c in [1, 2] %}{{ loop.last }}{% endfor %}{% endfor %}",
    ],
)
def test_template_that_writes_in_order_is_rendered_once(source: str) -> None:
    tokenizer = tiny_chat.tokenizer("chatml")
    made = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, chat_template=source)
    template, chat = ChatTemplate(made), three_answers()
    beginnings = render_beginnings(template, chat, add_generation_prompt=True)
    assert beginnings is not None
    for count in range(2, len(chat.messages) + 1):
        first = Chat(chat.messages[:count])
        expected = template.render(first, add_generation_prompt=True).text
        assert beginnings.text_of(count) == expected


def test_refused_chat_has_no_beginnings() -> None:
    template = ChatTemplate(tiny_chat.tokenizer("mistral_v1"))
    chat = Chat([{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}])
    assert render_beginnings(template, chat, add_generation_prompt=False) is None
    with pytest.raises(DtlError):
        template.render(chat)


def test_a_long_chat_is_rendered_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    renderings: list[Any] = []
    render = template_module._render
    monkeypatch.setattr(
        template_module,
        "_render",
        lambda *args, **keys: renderings.append(args) or render(*args, **keys),
    )
    tokenizer = tiny_chat.tokenizer("llama3")
    task = make_task("causal_lm", max_length=20_000)
    messages = [
        {"role": role, "content": f"the river {number}"}
        for number in range(100)
        for role in ("user", "assistant")
    ]
    row = Row(0, "rows.jsonl:1", {"messages": messages})
    (only,) = task.expand_row(row, processor=tokenizer)
    example = task.encoder(tokenizer, {}, None)(only)
    assert sum(label != -100 for label in example.values["labels"]) > 100
    assert len(renderings) < 20
