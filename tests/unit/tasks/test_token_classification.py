"""Token classification: alignment of tags with tokens, and seqeval's scores over full rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dtl.core.errors import DtlError
from dtl.data.example import EncodedExample
from dtl.data.sources.rows import Row
from dtl.tasks.token_classification import Options, Plugin
from tests import tiny

NAMES = ["O", "B-PER", "I-PER"]
DATASET_STATS = {"labels": NAMES}
SENTENCE = ["The", "old", "Ship", "carries", "a-letter", "."]
TAGS = ["O", "B-PER", "I-PER", "O", "B-PER", "O"]


def task(**options: Any) -> Plugin:
    return Plugin(Options(**options))


def row(tokens: Any, tags: Any) -> Row:
    return Row(4, "rows.jsonl:5", {"tokens": tokens, "tags": tags})


def encode(tokenizer: Any, words: list[str], tags: list[Any], **options: Any) -> EncodedExample:
    encoded = task(**options).encoder(tokenizer, DATASET_STATS, None)(row(words, tags))
    assert isinstance(encoded, EncodedExample)
    return encoded


def byte_level(*, prefix: bool) -> Any:
    """As RoBERTa has it, with special tokens around."""
    from tokenizers import pre_tokenizers, processors

    made = tiny.tokenizer()
    inner = made.backend_tokenizer
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    inner.post_processor = processors.RobertaProcessing(
        ("</s>", made.eos_token_id), ("<s>", made.bos_token_id), add_prefix_space=prefix
    )
    made.add_prefix_space = prefix
    return made


def word_piece() -> Any:
    """As BERT has it: lower case, punctuation apart, special tokens around."""
    from transformers import BertTokenizer

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz.-"]
    pieces += ["##" + letter for letter in "abcdefghijklmnopqrstuvwxyz"] + ["old", "ship", "let"]
    return BertTokenizer(vocab={piece: place for place, piece in enumerate(pieces)})


@pytest.mark.parametrize("make", [word_piece, lambda: byte_level(prefix=True)])
def test_the_first_piece_of_each_word_is_that_of_the_tokenizers_own_word_numbers(make: Any) -> None:
    tokenizer = make()
    encoded = encode(tokenizer, SENTENCE, TAGS)
    theirs = tokenizer(SENTENCE, is_split_into_words=True)
    pieces = tokenizer.convert_ids_to_tokens(theirs["input_ids"])
    numbers = [  # without the tokens that are a blank alone, which word_ids counts as well
        None if piece == "Ġ" else number
        for number, piece in zip(theirs.word_ids(), pieces, strict=True)
    ]
    assert encoded.values["input_ids"] == theirs["input_ids"]
    assert encoded.values["first"] == [numbers.index(place) for place in range(len(SENTENCE))]
    expected = [
        -100 if number is None or number in numbers[:place] else NAMES.index(TAGS[number])
        for place, number in enumerate(numbers)
    ]
    assert encoded.values["labels"] == expected
    assert encoded.targets == len(SENTENCE)


def sentence_piece(*, kind: str) -> Any:
    """As XLM-RoBERTa (unigram), Llama 2 (BPE with byte fallback), or byte-level GPT-2 have it,
    trained so that a blank is often a token of its own."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = "abcdefghijklmnopqrstuvwxyz.-"
    if kind == "unigram":
        scores = [("<unk>", 0.0), ("\u2581", -1.0), ("\u2581old", -3.0), ("ship", -2.0)]
        inner = Tokenizer(models.Unigram([*scores, *((one, -4.0) for one in characters)], unk_id=0))
        inner.pre_tokenizer = pre_tokenizers.Metaspace()
    elif kind == "byte fallback":
        vocabulary = {"<unk>": 0, "\u2581": 1, **{one: at for at, one in enumerate(characters, 2)}}
        vocabulary |= {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
        inner = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
        inner.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
    else:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        inner = Tokenizer(models.BPE({one: at for at, one in enumerate(alphabet)}, []))
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


@pytest.mark.parametrize("all_tokens", [False, True])
@pytest.mark.parametrize("kind", ["unigram", "byte fallback", "byte level"])
def test_a_tag_is_on_the_first_token_with_characters(kind: str, all_tokens: bool) -> None:
    tokenizer = sentence_piece(kind=kind)
    words, tags = ["a", "old", "ship", "\u8239"], ["O", "B-PER", "I-PER", "O"]
    encoded = encode(tokenizer, words, tags, label_all_tokens=all_tokens)
    pieces = tokenizer.convert_ids_to_tokens(encoded.values["input_ids"])
    blanks = [place for place, piece in enumerate(pieces) if piece in ("\u2581", "\u0120")]
    assert len(blanks) > 1, "the blanks are tokens of their own"
    labels = encoded.values["labels"]
    assert [labels[place] for place in blanks] == [-100] * len(blanks)
    first = encoded.values["first"]
    assert [NAMES[labels[place]] for place in first] == tags
    starts = [pieces[place].strip("\u2581\u0120")[:1] for place in first]
    assert starts[:3] == ["a", "o", "s"]
    assert all(place == 0 or place - 1 in blanks or pieces[place][0] == "\u2581" for place in first)


def test_words_are_read_as_in_running_text() -> None:
    """With a byte-level tokenizer that puts no blank before a text, as ModernBERT's."""
    tokenizer = byte_level(prefix=False)
    encoded = encode(tokenizer, ["the", "river", "turns"], ["O", "B-PER", "O"])
    assert encoded.values["input_ids"] == tokenizer("the river turns")["input_ids"]
    pieces = tokenizer.convert_ids_to_tokens(encoded.values["input_ids"])
    first = [pieces[place] for place in encoded.values["first"]]
    assert [piece.strip("Ġ")[:1] for piece in first] == ["t", "r", "t"]
    assert encoded.values["first"][0] == 1, "after the start token"


def test_all_pieces_may_be_labeled_and_only_the_first_begins() -> None:
    tokenizer = word_piece()
    encoded = encode(tokenizer, ["ships", "go"], ["B-PER", "I-PER"], label_all_tokens=True)
    pieces = tokenizer.convert_ids_to_tokens(encoded.values["input_ids"])
    assert pieces == ["[CLS]", "ship", "##s", "g", "##o", "[SEP]"]
    labels = [-100 if label < 0 else NAMES[label] for label in encoded.values["labels"]]
    assert labels == [-100, "B-PER", "I-PER", "I-PER", "I-PER", -100]
    assert encoded.targets == 4


def test_word_without_tokens_counts_as_missed() -> None:
    encoded = encode(word_piece(), ["old", "\u200b", "ship"], ["O", "B-PER", "O"])
    assert encoded.values["first"] == [1, -1, 2]
    assert encoded.targets == 2
    assert (
        task().encoder(word_piece(), DATASET_STATS, None)(row(["\u200b"], ["O"])).reason
        == "no words"
    )  # type: ignore[union-attr]


class Oracle(torch.nn.Module):
    """Tags a token by its own number: what it read is what it says."""

    def __init__(self, answers: dict[int, int]) -> None:
        super().__init__()
        self.answers = answers

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        from types import SimpleNamespace

        chosen = [[self.answers.get(int(token), 0) for token in row] for row in input_ids]
        return SimpleNamespace(logits=torch.nn.functional.one_hot(torch.tensor(chosen), 3).float())


def test_truncated_entities_count_as_missed() -> None:
    """A model that is right on all that it reads: seqeval over the full rows finds what is lost."""
    from seqeval.metrics import f1_score, precision_score, recall_score

    tokenizer = word_piece()
    words = [["a", "ship", "b"], ["b", "c"] * 6 + ["ship", "a", "ship"], ["a"] * 9 + ["ship"]]
    tags = [["B-PER" if word == "ship" else "O" for word in text] for text in words]
    plugin = task(max_length=8)  # six words, with [CLS] and [SEP]
    encoder = plugin.encoder(tokenizer, DATASET_STATS, None)
    examples = [encoder(row(*pair)) for pair in zip(words, tags, strict=True)]
    batch = plugin.collate([example.values for example in examples], pad_token_id=0)  # type: ignore[union-attr]
    model = Oracle({tokenizer.convert_tokens_to_ids("ship"): NAMES.index("B-PER")})
    scores = plugin.score(plugin.eval_records(model, batch, processor=tokenizer), DATASET_STATS)
    seen = [text[:6] + ["O"] * (len(text) - 6) for text in tags]
    assert scores["recall"] == recall_score(tags, seen) == 1 / 4
    assert scores["precision"] == precision_score(tags, seen) == 1.0
    assert scores["f1"] == f1_score(tags, seen) == pytest.approx(0.4)
    assert scores["support/PER"] == 4


def make_records(truth: list[list[str]], guess: list[list[str]], names: list[str]) -> list[Any]:
    return [
        {
            "loss": 0.5,
            "targets": len(tags),
            "tags": [names.index(tag) for tag in tags],
            "predicted": [names.index(tag) for tag in guessed],
        }
        for tags, guessed in zip(truth, guess, strict=True)
    ]


def test_scores_are_those_of_seqeval_in_a_table_by_type() -> None:
    from seqeval.metrics import accuracy_score, classification_report

    names = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    truth = [
        ["B-PER", "I-PER", "O", "B-LOC"],
        ["O", "I-LOC", "I-LOC", "O"],  # an entity without its B- is one, as conlleval has it
        ["B-LOC", "B-LOC", "I-LOC"],
    ]
    guess = [
        ["B-PER", "I-PER", "O", "B-PER"],
        ["O", "B-LOC", "I-LOC", "O"],
        ["B-LOC", "I-LOC", "I-LOC"],
    ]
    scores = task().score(make_records(truth, guess, names), {"labels": names})
    report = classification_report(truth, guess, output_dict=True, zero_division=0)
    assert scores["f1"] == report["micro avg"]["f1-score"] == pytest.approx(2 * 2 / (5 + 4))
    assert scores["precision"] == report["micro avg"]["precision"]
    assert scores["recall"] == report["micro avg"]["recall"]
    assert scores["accuracy"] == accuracy_score(truth, guess)
    for kind in ("LOC", "PER"):
        assert scores[f"precision/{kind}"] == report[kind]["precision"]
        assert scores[f"recall/{kind}"] == report[kind]["recall"]
        assert scores[f"f1/{kind}"] == report[kind]["f1-score"]
        assert scores[f"support/{kind}"] == report[kind]["support"]
    assert scores["loss"] == pytest.approx(1.5 / 11)


def test_without_any_entity_there_is_nothing_to_find() -> None:
    scores = task().score(make_records([["O", "O"]], [["O", "O"]], NAMES), DATASET_STATS)
    assert (scores["f1"], scores["accuracy"]) == (0.0, 1.0)


def test_tags_of_no_scheme_are_scored_word_by_word() -> None:
    """Parts of speech: F1 over all is the share of words that are right."""
    names = ["ADJ", "NOUN"]
    truth, guess = [["ADJ", "NOUN", "NOUN", "NOUN"]], [["ADJ", "NOUN", "NOUN", "ADJ"]]
    scores = task().score(make_records(truth, guess, names), {"labels": names})
    assert scores["f1"] == scores["accuracy"] == 0.75
    assert scores["f1/ADJ"] == pytest.approx(2 / 3) and scores["f1/NOUN"] == pytest.approx(0.8)


@pytest.mark.parametrize("base", ["encoder", "decoder"])
def test_loss_is_that_of_transformers(base: str, request: pytest.FixtureRequest) -> None:
    from transformers import AutoModelForTokenClassification

    folder = request.getfixturevalue(base)
    model = AutoModelForTokenClassification.from_pretrained(folder, num_labels=3).eval()
    encoder = task().encoder(tiny.tokenizer(), DATASET_STATS, model.config)
    rows = [row(["the", "ship", "turns"], ["O", "B-PER", "O"]), row(["night"], ["I-PER"])]
    examples = [encoder(one) for one in rows]
    batch = task().collate([example.values for example in examples], pad_token_id=0)  # type: ignore[union-attr]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    with torch.no_grad():
        mean = float(model(**inputs).loss)
        assert float(task().loss(model, batch)) == pytest.approx(mean * 4, rel=1e-5)


def test_tags_are_those_of_the_rows_the_outside_first() -> None:
    rows = [row(["a", "b"], ["B-PER", "I-PER"]), row(["c", "d"], ["O", "B-LOC"])]
    assert task().collect_dataset_stats(rows, None) == {"labels": ["O", "B-LOC", "B-PER", "I-PER"]}
    all_pieces = task(label_all_tokens=True).collect_dataset_stats(rows, None)
    assert all_pieces == {"labels": ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]}
    assert task(labels=("B-PER", "O", "I-PER", "B-LOC", "B-X")).collect_dataset_stats(
        rows, None
    ) == {"labels": ["B-PER", "O", "I-PER", "B-LOC", "B-X"]}
    head = task().head_config(DATASET_STATS)
    assert head["id2label"] == {0: "O", 1: "B-PER", 2: "I-PER"}
    assert (head["num_labels"], head["label2id"]["I-PER"]) == (3, 2)


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (["B-PER", "O", "I-PER"], ["B-PER", "O", "I-PER"]),
        (["B-PER", "O", "I-PER", "B-LOC"], NAMES),
        (["LABEL_0", "LABEL_1"], NAMES),
    ],
)
def test_the_bases_own_order_is_retained_only_where_its_tags_are_the_same(
    known: list[str], expected: list[str]
) -> None:
    from types import SimpleNamespace

    base = SimpleNamespace(id2label=dict(enumerate(known)))
    assert task().collect_dataset_stats([row(["a", "b", "c"], NAMES)], base) == {"labels": expected}


def test_class_numbers_have_the_names_that_are_given() -> None:
    plugin = task(labels=tuple(NAMES))
    rows = [row(["a", "b", "c"], [0, 1, 2])]
    assert plugin.collect_dataset_stats(rows, None) == DATASET_STATS
    assert encode(tiny.tokenizer(), ["a", "b", "c"], [0, 1, 2], labels=NAMES).values["tags"] == [
        0,
        1,
        2,
    ]


@pytest.mark.parametrize(
    ("tokens", "tags", "message"),
    [
        (["a", "b"], ["O"], "2 tokens have 1 tags"),
        ("a b", ["O", "O"], "`tokens` is str ('a b'), not a list"),
        (["a"], None, "the column `tags` is missing"),
        (["a", 5], ["O", "O"], "the word 5 is not text"),
        (["a"], [0.5], "the tag 0.5 is not text"),
        (["a"], [1], "the class number 1 has no name"),
        (["a"], ["1"], "the class number 1 has no name"),
        (["a"], [None], "a tag is missing (None)"),
        (["a"], [""], "a tag is missing ('')"),
        (["a"], ["nan"], "a tag is missing ('nan')"),
        (["a"], [float("nan")], "a tag is missing (nan)"),
        (["a"], [-1], "a tag is missing (-1)"),
        (["a"], [-100], "the class number -100 has no name"),
        (["a"], [True], "the tag True is not text"),
        (["a"], [["O"]], "is not text"),
    ],
)
def test_a_row_at_fault_is_named(tokens: Any, tags: Any, message: str) -> None:
    fault = task().find_row_fault(row(tokens, tags))
    assert fault is not None and fault.location == "rows.jsonl:5"
    assert message in fault.problem and fault.fix


@pytest.mark.parametrize(
    ("tag", "message"),
    [("B-PRE", "did you mean 'B-PER'?"), ("X", "the tags are O, B-PER, I-PER")],
)
def test_a_tag_that_is_not_known_is_named(tag: str, message: str) -> None:
    fault = task(labels=tuple(NAMES)).find_row_fault(row(["a"], [tag]))
    assert fault is not None and message in fault.problem
    with pytest.raises(DtlError) as caught:
        encode(tiny.tokenizer(), ["a"], [tag])
    assert caught.value.faults[0].location == "rows.jsonl:5"
    assert message in str(caught.value)


def test_a_row_in_order_has_no_fault() -> None:
    assert task().find_row_fault(row(SENTENCE, TAGS)) is None
    assert task(labels=tuple(NAMES)).find_row_fault(row(["a", "b"], [2, "O"])) is None
    inside = task(labels=("O", "B-PER"), label_all_tokens=True)
    assert inside.find_row_fault(row(["a", "b"], ["B-PER", "I-PER"])) is None


def test_words_and_tags_are_read_from_every_carrier() -> None:
    """A CSV file has lists as texts, and numbers may have become floats."""
    expected = encode(tiny.tokenizer(), ["a", "b"], ["B-PER", "O"]).values
    plugin = task(labels=NAMES)
    encoder = plugin.encoder(tiny.tokenizer(), DATASET_STATS, None)
    for words in (["a", "b"], '["a", "b"]', "['a', 'b']"):
        for tags in ([1, 0], [1.0, 0.0], "[1, 0]", ["1", "0"], ["B-PER ", " O"], '["B-PER", "O"]'):
            given = row(words, tags)
            assert plugin.find_row_fault(given) is None
            values = encoder(given).values  # type: ignore[union-attr]
            assert all(list(values[name]) == list(expected[name]) for name in expected)


def test_a_class_number_beyond_the_names_is_reported() -> None:
    fault = task(labels=tuple(NAMES)).find_row_fault(row(["a"], [3]))
    assert fault is not None and "the class number 3 exceeds the 3 task.labels" in fault.problem


def test_a_tag_outside_of_the_scheme_is_reported_where_others_are_in_it() -> None:
    rows = [row(["a"], ["O"]), Row(5, "rows.jsonl:6", {"tokens": ["b"], "tags": ["PER"]})]
    with pytest.raises(DtlError, match="'PER' is not O, B-name or I-name") as caught:
        task().collect_dataset_stats(rows, None)
    assert caught.value.faults[0].location == "rows.jsonl:6"
    parts_of_speech = [row(["a", "b"], ["DET", "NOUN"])]
    assert task().collect_dataset_stats(parts_of_speech, None) == {"labels": ["DET", "NOUN"]}


@pytest.mark.parametrize("tags", [["O"], []])
def test_one_tag_is_not_a_choice(tags: list[str]) -> None:
    with pytest.raises(DtlError, match="at least two tags"):
        task().collect_dataset_stats([row(["a"] * len(tags), tags)], None)


def test_slow_tokenizer_is_rejected() -> None:
    from transformers import ByT5Tokenizer

    with pytest.raises(DtlError, match="ByT5Tokenizer is a slow tokenizer"):
        task().encoder(ByT5Tokenizer(), DATASET_STATS, None)
