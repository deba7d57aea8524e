"""Rows of each format, and the same content in the columns of the task."""

import json

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "weather", "description": "The weather of a city.", "parameters": CITY}
TOOLS = [{"type": "function", "function": FUNCTION}]
CALL = {"name": "weather", "arguments": {"city": "Köln"}}
SYSTEM = {"role": "system", "content": "be old"}
ASK = {"role": "user", "content": "the river\nand stone"}
GOOD = {"role": "assistant", "content": "a light"}
BAD = {"role": "assistant", "content": "the night"}
CALLS = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": CALL}]}
RESULT = {"role": "tool", "content": '{"sky": "grey"}'}
TALK = {"messages": [SYSTEM, ASK, GOOD]}
TOOL_TALK = {"messages": [SYSTEM, ASK, CALLS, RESULT, GOOD], "tools": TOOLS}
PAIR = {"prompt": [SYSTEM, ASK], "chosen": [GOOD], "rejected": [BAD]}
LABELED = {"prompt": [SYSTEM, ASK], "completion": [GOOD], "label": True}


def said(*messages):
    """Messages as ShareGPT has them."""
    names = {"user": "human", "assistant": "gpt", "tool": "observation"}
    return [
        {"from": names.get(m["role"], m["role"]), "value": m["content"]}
        if "tool_calls" not in m
        else {"from": "function_call", "value": json.dumps(m["tool_calls"][0]["function"])}
        for m in messages
    ]


ALPACA = {"instruction": "the river", "input": "and stone", "system": "be old"}
OLDER = [{"role": "user", "content": "old"}, {"role": "assistant", "content": "stone"}]

# Format, kind of rows, a row in the format, the same content in the task's columns.
SAME_CONTENT = {
    "sharegpt": ("sharegpt", "chat", {"conversations": said(SYSTEM, ASK, GOOD)}, TALK),
    "sharegpt_system": (
        "sharegpt",
        "chat",
        {"conversations": said(ASK, GOOD), "system": "be old"},
        TALK,
    ),
    "sharegpt_tools": (
        "sharegpt",
        "chat",
        {
            "conversations": said(SYSTEM, ASK, CALLS, RESULT, GOOD),
            "tools": json.dumps([FUNCTION]),
        },
        TOOL_TALK,
    ),
    "sharegpt_weights": (
        "sharegpt",
        "chat",
        {
            "conversations": [
                *said(SYSTEM, ASK),
                {"from": "gpt", "value": "no", "weight": 0},
                *said(ASK, GOOD),
            ]
        },
        {
            "messages": [
                SYSTEM,
                ASK,
                {"role": "assistant", "content": "no", "weight": 0},
                ASK,
                GOOD,
            ]
        },
    ),
    "sharegpt_roles": (
        "sharegpt",
        "chat",
        {"conversations": [SYSTEM, ASK, GOOD], "system": "", "tools": "[]"},
        TALK,
    ),
    "sharegpt_messages": ("sharegpt", "chat", {"messages": said(SYSTEM, ASK, GOOD)}, TALK),
    "sharegpt_pair": (
        "sharegpt",
        "pair",
        {
            "conversations": said(SYSTEM, ASK),
            "chosen": said(GOOD)[0],
            "rejected": said(BAD)[0],
        },
        PAIR,
    ),
    "sharegpt_kto": (
        "sharegpt",
        "labeled",
        {"conversations": said(SYSTEM, ASK, GOOD), "kto_tag": True},
        LABELED,
    ),
    "alpaca": ("alpaca", "chat", {**ALPACA, "output": "a light"}, TALK),
    "alpaca_history": (
        "alpaca",
        "chat",
        {**ALPACA, "output": "a light", "history": [["old", "stone"]]},
        {"messages": [SYSTEM, *OLDER, ASK, GOOD]},
    ),
    "alpaca_without_input": (
        "alpaca",
        "chat",
        {"instruction": "the river\nand stone", "input": "", "output": "a light", "system": None},
        {"messages": [ASK, GOOD]},
    ),
    "dolly": (
        "alpaca",
        "chat",
        {"instruction": "the river", "context": "and stone", "response": "a light"},
        {"messages": [ASK, GOOD]},
    ),
    "open_orca": (
        "alpaca",
        "chat",
        {
            "id": "flan.1",
            "system_prompt": "be old",
            "question": "the river\nand stone",
            "response": "a light",
        },
        TALK,
    ),
    "orca_pair": (
        "alpaca",
        "pair",
        {
            "system": "be old",
            "question": "the river\nand stone",
            "chosen": "a light",
            "rejected": "the night",
        },
        PAIR,
    ),
    "question_answer": (
        "alpaca",
        "chat",
        {"question": "the river\nand stone", "answer": "a light"},
        {"messages": [ASK, GOOD]},
    ),
    "system_beside_messages": (
        "openai",
        "chat",
        {"system": "be old", "messages": [ASK, GOOD]},
        TALK,
    ),
    "alpaca_pair": (
        "alpaca",
        "pair",
        {**ALPACA, "chosen": "a light", "rejected": "the night"},
        PAIR,
    ),
    "alpaca_kto": (
        "alpaca",
        "labeled",
        {**ALPACA, "output": "a light", "kto_tag": True},
        LABELED,
    ),
    "openai_functions": (
        "openai",
        "chat",
        {
            "messages": [
                {"role": "developer", "content": "be old"},
                ASK,
                {"role": "assistant", "content": "", "function_call": CALL},
                {"role": "function", "content": '{"sky": "grey"}'},
                GOOD,
            ],
            "functions": [FUNCTION],
        },
        TOOL_TALK,
    ),
    "openai_preference": (
        "openai_preference",
        "pair",
        {
            "input": {"messages": [SYSTEM, ASK], "tools": [], "parallel_tool_calls": True},
            "preferred_output": [GOOD],
            "non_preferred_output": [BAD],
        },
        PAIR,
    ),
    "openai_preference_tools": (
        "openai_preference",
        "pair",
        {
            "input": {"messages": [SYSTEM, ASK, CALLS, RESULT], "tools": TOOLS},
            "preferred_output": [GOOD],
            "non_preferred_output": [BAD],
        },
        {**PAIR, "prompt": [SYSTEM, ASK, CALLS, RESULT], "tools": TOOLS},
    ),
    "trl_prompt_completion": (
        "trl",
        "chat",
        {"prompt": [SYSTEM, *OLDER, ASK], "completion": [GOOD]},
        {"messages": [SYSTEM, OLDER[0], {**OLDER[1], "weight": 0}, ASK, GOOD]},
    ),
    "trl_pair_as_text": (
        "trl",
        "pair",
        {name: json.dumps(value) for name, value in PAIR.items()},
        PAIR,
    ),
    "trl_implicit_conversations": (
        None,
        "pair",
        {"chosen": [SYSTEM, ASK, GOOD], "rejected": [SYSTEM, ASK, BAD]},
        PAIR,
    ),
    "implicit_prompt": (
        "implicit_prompt",
        "pair",
        {"chosen": "the sky is blue", "rejected": "the sky is green"},
        {"prompt": "the sky is", "chosen": " blue", "rejected": " green"},
    ),
    "hh_rlhf": (
        "hh_rlhf",
        "pair",
        {
            "chosen": "\n\nHuman: old\n\nAssistant: stone\n\nHuman: the river\nand stone"
            "\n\nAssistant: a light",
            "rejected": "\n\nHuman: old\n\nAssistant: stone\n\nHuman: the river\nand stone"
            "\n\nAssistant: the night",
        },
        {"prompt": [*OLDER, ASK], "chosen": [GOOD], "rejected": [BAD]},
    ),
    "ultrafeedback": (
        "ultrafeedback",
        "pair",
        {
            "instruction": "the river\nand stone",
            "source": "wiki",
            "completions": [
                {"response": "so so", "overall_score": 5.0},
                {"response": "the night", "overall_score": 2},
                {"response": "a light", "overall_score": 8.5},
            ],
        },
        {"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]},
    ),
    "ultrafeedback_binarized": (
        None,
        "pair",
        {
            "prompt": "the river\nand stone",
            "prompt_id": "7",
            "chosen": [ASK, GOOD],
            "rejected": [ASK, BAD],
            "messages": [ASK, GOOD],
            "score_chosen": 8.5,
            "score_rejected": 2.0,
        },
        {"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]},
    ),
    "kto": (
        "kto",
        "labeled",
        {"prompt": "the river", "completion": " light", "label": "False"},
        {"prompt": "the river", "completion": " light", "label": False},
    ),
    "kto_conversations_as_text": (
        "kto",
        "labeled",
        {"prompt": json.dumps([SYSTEM, ASK]), "completion": json.dumps([GOOD]), "label": 1},
        LABELED,
    ),
}
