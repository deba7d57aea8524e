"""Tiny models with their tokenizers, and data of uneven lengths, made where they are needed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

WORDS = (  # noqa: SIM905
    "the a one old new small large river stone light night morning house garden letter engine ship "
    "reads writes carries opens closes finds keeps breaks mends sends holds turns follows leaves "
    "quietly slowly often never again together under over beside after before"
).split()
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tokenizer(*, chat: bool = False) -> Any:
    """A byte-level BPE of 320 entries."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    if chat:
        made.chat_template = TEMPLATE
    return made


def decoder(
    folder: Path, *, tied: bool = False, chat: bool = False, seed: int = 7, made: Any = None
) -> Path:
    """A Llama of 2 blocks with random weights, saved with its tokenizer or with `made`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    made = made or tokenizer(chat=chat)
    config = LlamaConfig(
        vocab_size=len(made),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        bos_token_id=made.bos_token_id,
        eos_token_id=made.eos_token_id,
        pad_token_id=made.pad_token_id,
    )
    return _save(LlamaForCausalLM(config), made, folder)


def encoder(folder: Path, *, seed: int = 7) -> Path:
    """A BERT of 2 blocks without a task head, saved with its tokenizer."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    made = tokenizer()
    config = BertConfig(
        vocab_size=len(made),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        pad_token_id=made.pad_token_id,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return _save(BertModel(config), made, folder)


def closing_tokenizer() -> Any:
    """The same, which closes each text with the end token, as T5's does."""
    from tokenizers.processors import TemplateProcessing

    made = tokenizer()
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", made.eos_token_id)]
    )
    return made


def t5(folder: Path, *, tied: bool = False, seed: int = 7) -> Path:
    """A T5 of 2 blocks a side with random weights, its output not tied to its input (as v1.1)."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    made = closing_tokenizer()
    config = T5Config(
        vocab_size=len(made),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        tie_word_embeddings=tied,
        pad_token_id=made.pad_token_id,
        eos_token_id=made.eos_token_id,
        decoder_start_token_id=made.pad_token_id,
    )
    model = T5ForConditionalGeneration(config)
    if not tied:  # transformers 5 ties them unless the file holds two
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.shared.weight) * 0.05)
    return _save(model, made, folder)


def bart(folder: Path, *, seed: int = 7) -> Path:
    """A BART of 2 blocks a side with random weights; its output is tied to its input."""
    import torch
    from transformers import BartConfig, BartForConditionalGeneration

    torch.manual_seed(seed)
    made = closing_tokenizer()
    config = BartConfig(
        vocab_size=len(made),
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=128,
        dropout=0.0,
        pad_token_id=made.pad_token_id,
        bos_token_id=made.bos_token_id,
        eos_token_id=made.eos_token_id,
        decoder_start_token_id=made.eos_token_id,
        forced_eos_token_id=made.eos_token_id,
    )
    return _save(BartForConditionalGeneration(config), made, folder)


def _save(model: Any, made: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def sentence(draw: random.Random, longest: int) -> str:
    """Between 2 and `longest` words."""
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(2, longest)))


def write_texts(path: Path, rows: int, *, longest: int = 24, seed: int = 1) -> Path:
    """Plain text of uneven length."""
    draw = random.Random(seed)
    return write_rows(path, [{"text": sentence(draw, longest)} for _ in range(rows)])


def write_labelled(path: Path, rows: int, *, longest: int = 16, seed: int = 1) -> Path:
    """Texts with the label `early` or `late`, which one word decides."""
    draw = random.Random(seed)
    made = []
    for _ in range(rows):
        label = draw.choice(["early", "late"])
        word = "morning" if label == "early" else "night"
        made.append({"text": f"{sentence(draw, longest)} {word}", "label": label})
    return write_rows(path, made)


def tag(text: str) -> dict[str, Any]:
    """Some nouns are things, together with the word before; others are places of one word."""
    words, tags = text.split(), []
    for word in words:
        kind = {"river": "B-PLACE", "house": "B-PLACE"}.get(word, "O")
        if word in ("stone", "light", "ship", "engine", "letter"):
            kind = "B-THING"
            if tags and tags[-1] == "O":
                tags[-1], kind = "B-THING", "I-THING"
        tags.append(kind)
    return {"tokens": words, "tags": tags}


def shorten(text: str) -> dict[str, Any]:
    """The target is the first third of the source."""
    words = text.split()
    return {"source": text, "target": " ".join(words[: 1 + len(words) // 3])}


def tagged(rows: int, *, seed: int, longest: int = 24) -> list[dict[str, Any]]:
    """Words with their tags; some rows are longer than 48 tokens."""
    draw = random.Random(seed)
    return [tag(sentence(draw, longest)) for _ in range(rows)]


def shortened(rows: int, *, seed: int, longest: int = 16) -> list[dict[str, Any]]:
    """Sources and targets of uneven length."""
    draw = random.Random(seed)
    return [shorten(sentence(draw, longest)) for _ in range(rows)]


def pairs(rows: int, *, seed: int) -> list[dict[str, Any]]:
    """A prompt, and of two answers the one that names a river is chosen."""
    draw = random.Random(seed)
    return [
        {
            "prompt": sentence(draw, 8),
            "chosen": f" {sentence(draw, 6)} river",
            "rejected": f" {sentence(draw, 6)} stone",
        }
        for _ in range(rows)
    ]


def judged(rows: int, *, seed: int) -> list[dict[str, Any]]:
    """A prompt with one answer, desirable if it names a river."""
    return [
        {
            "prompt": pair["prompt"],
            "completion": pair["chosen" if index % 3 else "rejected"],
            "label": bool(index % 3),
        }
        for index, pair in enumerate(pairs(rows, seed=seed))
    ]


def searched(rows: int, *, seed: int) -> list[dict[str, Any]]:
    """A query of two words, the text that has both, and every other time a hard negative."""
    draw = random.Random(seed)
    made: list[dict[str, Any]] = []
    for index in range(rows):
        first, second = draw.sample(WORDS, 2)
        row = {"anchor": f"{first} {second}", "positive": f"{sentence(draw, 5)} {first} {second}"}
        made.append({**row, "negative": f"{first} {sentence(draw, 4)}"} if index % 2 else row)
    return made


def teach_tags(base: Path, rows: list[dict[str, Any]], folder: Path, *, steps: int = 80) -> Path:
    """Save a tagger that has learned a little, in plain PyTorch."""
    import torch
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    labels = sorted({tag for row in rows for tag in row["tags"]})
    torch.manual_seed(3)
    model = AutoModelForTokenClassification.from_pretrained(
        base, id2label=dict(enumerate(labels)), label2id={name: i for i, name in enumerate(labels)}
    )
    made = AutoTokenizer.from_pretrained(base)
    examples = []
    for row in rows:
        pieces = [made(" " * bool(place) + word) for place, word in enumerate(row["tokens"])]
        ids = [piece for word in pieces for piece in word["input_ids"]]
        numbers = [
            labels.index(name)
            for name, word in zip(row["tags"], pieces, strict=True)
            for _ in word["input_ids"]
        ]
        examples.append((ids[:128], numbers[:128]))
    _teach(model, examples, steps)
    return _save(model, made, folder)


LABELS = ("night", "river", "letter")  # words that a text may have


def label_sets(count: int, *, seed: int) -> list[dict[str, Any]]:
    """Texts with the words of LABELS that they have."""
    draw = random.Random(seed)
    texts = [sentence(draw, 12) for _ in range(count)]
    return [{"text": text, "label": [one for one in LABELS if one in text]} for text in texts]


def numbered(count: int, *, seed: int) -> list[dict[str, Any]]:
    """Texts with their number of words (tenths) and of labels."""
    rows = label_sets(count, seed=seed)
    return [{**row, "label": [len(row["text"].split()) / 10, len(row["label"])]} for row in rows]


def classifier(base: Path, names: tuple[str, ...], problem_type: str, folder: Path) -> Path:
    """Save an encoder with a head of random weights that has these outputs."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(
        base,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
        problem_type=problem_type,
    )
    return _save(model, AutoTokenizer.from_pretrained(base), folder)


def teach_summaries(
    base: Path, rows: list[dict[str, Any]], folder: Path, *, steps: int = 60
) -> Path:
    """Save a model that has learned to shorten a little, in plain PyTorch."""
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    torch.manual_seed(3)
    model = AutoModelForSeq2SeqLM.from_pretrained(base)
    made = AutoTokenizer.from_pretrained(base)
    examples = [
        (made("shorten: " + row["source"])["input_ids"], made(row["target"])["input_ids"])
        for row in rows
    ]
    _teach(model, examples, steps)
    return _save(model, made, folder)


def teach_chats(base: Path, rows: list[dict[str, Any]], end: str, *, steps: int = 100) -> None:
    """Let a model learn the last answer of each chat, with the token that ends it, in plain PyTorch
    and in place: after the tokens of the generation prompt."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, made = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    examples = []
    for row in rows:
        prompt = made.apply_chat_template(
            row["messages"][:-1], add_generation_prompt=True, return_dict=False
        )
        text = row["messages"][-1]["content"] + end
        answer = made(text, add_special_tokens=False)["input_ids"]
        examples.append((prompt + answer, [-100] * len(prompt) + answer))
    _teach(model, examples, steps)
    model.save_pretrained(base)


def _teach(model: Any, examples: list[tuple[list[int], list[int]]], steps: int) -> None:
    """A few steps on all examples, padded to the longest; on one thread, as they are so small."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    inputs, labels = [
        pad_sequence([torch.tensor(row) for row in part], batch_first=True, padding_value=filled)
        for part, filled in zip(zip(*examples, strict=True), (0, -100), strict=True)
    ]
    there = [torch.ones(len(row), dtype=torch.long) for row, _ in examples]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(steps):
        mask = pad_sequence(there, batch_first=True)
        model(input_ids=inputs, attention_mask=mask, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.set_num_threads(threads)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
