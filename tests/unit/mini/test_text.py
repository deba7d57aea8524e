"""The generated text data is deterministic, and its source contains nothing of the target."""

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dtl import mini
from dtl.core.errors import DtlError
from dtl.mini import cache, docstrings, lexicon, prose

QUICK_DATA = ("graphs", "sentiment")


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """The rows of the data that is quick to generate: {(name, split): rows}."""
    before = os.environ.get("DTL_CACHE")
    os.environ["DTL_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    try:
        yield {
            (name, split): mini.load_rows(name, split)
            for name in QUICK_DATA
            for split in mini.SPLITS[name]
        }
    finally:
        os.environ.pop("DTL_CACHE")
        if before is not None:
            os.environ["DTL_CACHE"] = before


def texts(rows):
    return [row["text"] for row in rows]


def eight_word_sequences(text):
    words = re.findall("[a-z]+", text.lower())
    return {tuple(words[i : i + 8]) for i in range(len(words) - 7)}


def all_sequences(rows):
    return set().union(*(eight_word_sequences(text) for text in texts(rows)))


# --- rows


def test_split_sizes(generated):
    sizes = {key: len(rows) for key, rows in generated.items()}
    assert sizes["graphs", "heldout"] == 101
    assert sizes["graphs", "train"] >= 1000
    assert sizes["sentiment", "train"] == 200
    assert sizes["sentiment", "heldout"] == 101


def test_rows_are_ascii_text_up_to_the_maximum_length(generated):
    for (name, split), rows in generated.items():
        is_labeled = name == "sentiment" and split != "unlabeled"
        for row in rows:
            assert set(row) == ({"text", "label"} if is_labeled else {"text"})
            assert row["text"] == row["text"].strip() and row["text"].isascii()
            assert len(row["text"]) <= 700
            assert not re.search(r"^\s*>>>", row["text"], re.MULTILINE)


def test_another_process_generates_equal_rows_without_importing_packages(generated, tmp_path):
    program = (
        "import sys; from dtl import mini\n"
        "for name in ('graphs', 'sentiment'):\n"
        "    for split in mini.SPLITS[name]: mini.data_file(name, split)\n"
        "assert not {'networkx', 'torch', 'transformers'} & set(sys.modules), sys.modules\n"
    )
    environment = {**os.environ, "DTL_CACHE": str(tmp_path), "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    for (name, split), rows in generated.items():
        (again,) = tmp_path.glob(f"mini/{name}-*/{split}.jsonl")
        assert [json.loads(line) for line in again.read_text().splitlines()] == rows


def test_heldout_graph_texts_are_not_in_training_rows(generated):
    train, heldout = generated["graphs", "train"], generated["graphs", "heldout"]
    assert len({text.lower() for text in texts(train)}) == len(train)
    assert not set(texts(train)) & set(texts(heldout))
    seen = all_sequences(train)
    shares = [
        len(own & seen) / len(own) for own in map(eight_word_sequences, texts(heldout)) if own
    ]
    assert max(shares) < 0.3
    assert sum(shares) / len(shares) < 0.05


def test_first_two_hundred_rows_cover_all_areas(generated):
    """`limit: 200` must not select a single file."""
    folder = docstrings.package_folder("networkx")
    areas = {"algorithms", "generators", "classes", "readwrite"}
    by_area = {
        area: "".join(p.read_text() for p in (folder / area).rglob("*.py")) for area in areas
    }
    first_lines = [text.splitlines()[0] for text in texts(generated["graphs", "train"][:200])]
    found = {area for area in areas if any(line in by_area[area] for line in first_lines)}
    assert found == areas


# --- sentiment


def words_of(rows):
    return set().union(*(re.findall("[a-z]+", text.lower()) for text in texts(rows)))


def test_lexicon_has_two_disjoint_lists():
    assert len(set(lexicon.POSITIVE)) == len(lexicon.POSITIVE) >= 60
    assert len(set(lexicon.NEGATIVE)) == len(lexicon.NEGATIVE) >= 60
    assert not set(lexicon.POSITIVE) & set(lexicon.NEGATIVE)


def test_heldout_words_are_only_in_the_source(generated):
    polar_words = set(lexicon.POSITIVE + lexicon.NEGATIVE)
    is_labeled = words_of(generated["sentiment", "train"]) & polar_words
    heldout = words_of(generated["sentiment", "heldout"]) & polar_words
    assert len(heldout) >= 50
    assert not is_labeled & heldout
    source = " ".join(texts(generated["sentiment", "unlabeled"])).lower()
    counts = {word: len(re.findall(rf"\b{word}\b", source)) for word in heldout}
    assert min(counts.values()) >= 50


def test_labels_follow_the_lexicon_and_are_balanced(generated):
    for split in ("train", "heldout"):
        rows = generated["sentiment", split]
        for row in rows:
            words = set(re.findall("[a-z]+", row["text"].lower()))
            is_positive = bool(words & set(lexicon.POSITIVE))
            is_negative = bool(words & set(lexicon.NEGATIVE))
            assert (is_positive, is_negative) == (
                (True, False) if row["label"] == "positive" else (False, True)
            )
        positive = sum(row["label"] == "positive" for row in rows)
        assert abs(2 * positive - len(rows)) <= 1


def test_no_labeled_sentence_is_in_the_source(generated):
    source = "\n".join(texts(generated["sentiment", "unlabeled"]))
    labeled = texts(generated["sentiment", "train"] + generated["sentiment", "heldout"])
    assert len(set(labeled)) == len(labeled)
    assert not [text for text in labeled if text in source]


def test_review_changes_polarity_only_with_but(generated):
    for text in texts(generated["sentiment", "unlabeled"]):
        without_contrast = [s for s in re.split(r"(?<=[.!]) ", text) if ", but " not in s]
        words = set(re.findall("[a-z]+", " ".join(without_contrast).lower()))
        assert not (words & set(lexicon.POSITIVE) and words & set(lexicon.NEGATIVE)), text


# --- the source


@pytest.fixture
def small_source(monkeypatch):
    """The source from one package and the topics."""
    monkeypatch.setattr(prose, "PACKAGES", ("accelerate",))
    iterate_all = docstrings.iterate_docstrings

    def without_the_standard_library(folder, *, name, exclude=()):
        return iter(()) if name == "python" else iterate_all(folder, name=name, exclude=exclude)

    monkeypatch.setattr(docstrings, "iterate_docstrings", without_the_standard_library)
    return prose.generate()


def test_source_has_the_reviews_and_nothing_of_the_target(small_source, generated):
    train, heldout = small_source["train"], small_source["heldout"]
    assert not set(texts(train)) & set(texts(heldout))
    assert not any("networkx" in text.lower() for text in texts(train))
    reviews = set(texts(generated["sentiment", "unlabeled"]))
    assert reviews <= set(texts(train + heldout))
    labeled = texts(generated["sentiment", "train"] + generated["sentiment", "heldout"])
    text = "\n".join(texts(train + heldout))
    assert not [sentence for sentence in labeled if sentence in text]
    assert len(all_sequences(generated["graphs", "heldout"]) & all_sequences(train)) <= 3


def test_source_repeats_no_paragraph(small_source):
    blocks = [
        block
        for text in texts(small_source["train"])
        for block in text.split("\n\n")
        if len(block) > 200
    ]
    assert len(blocks) - len(set(blocks)) <= 0.002 * len(blocks)  # equal ends of split paragraphs


@pytest.mark.slow
def test_full_source(generated, monkeypatch, tmp_path):
    monkeypatch.setenv("DTL_CACHE", str(tmp_path))
    train, heldout = mini.load_rows("prose", "train"), mini.load_rows("prose", "heldout")
    characters = sum(map(len, texts(train)))
    assert 12_000_000 < characters < 24_000_000  # about 3 to 6 M tokens
    assert len(heldout) >= 400
    assert not set(texts(train)) & set(texts(heldout))
    seen, target = all_sequences(train), all_sequences(generated["graphs", "heldout"])
    assert len(target & seen) / len(target) < 0.001


# --- reading docstrings


def test_extract_paragraphs_returns_only_prose():
    raw = """Return the shortest way between two places.

        The way is found by looking at all the roads.

        >>> way("a", "b")
        ['a', 'b']

        References
        ----------
        .. [1] A paper that nobody has read to its end.

        +-----+-----+
        | 1   | 2   |
        +-----+-----+

        ```python
        x = take_the_first_road(and_then=the_second)
        ```

        Parameters
        ----------
        start : place
            Where the way begins, as “the map” names it.
        """
    assert docstrings.extract_paragraphs(raw) == [
        "Return the shortest way between two places.",
        "The way is found by looking at all the roads.",
        'Parameters\n----------\nstart : place\n    Where the way begins, as "the map" names it.',
    ]


def test_pack_paragraphs_keeps_limit_and_all_words():
    blocks = [
        "one two three. " * 7,
        "a : int\n    first entry\nb : int\n    second entry",
        "\n".join(["a line of a paragraph"] * 9),
    ]
    packed = list(docstrings.pack_paragraphs(blocks, max_characters=60))
    assert max(map(len, packed)) <= 60
    assert " ".join(packed).split() == " ".join(blocks).split()


def test_too_long_sentence_is_truncated():
    assert list(docstrings.pack_paragraphs(["x " * 90], max_characters=60)) == [("x " * 30).strip()]


def test_docstrings_are_read_without_import(tmp_path):
    (tmp_path / "module.py").write_text(
        '"""About the module."""\nraise SystemExit("imported!")\n'
        'class A:\n    """About A."""\n    def run(self):\n        """About run."""\n'
    )
    (tmp_path / "broken.py").write_text('"""Never closed.\n')
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_a.py").write_text('"""A test."""\n')
    read = [(one.file, one.text) for one in docstrings.iterate_docstrings(tmp_path, name="package")]
    assert texts == [
        ("package/module.py", "About the module."),
        ("package/module.py", "About A."),
        ("package/module.py", "About run."),
    ]


# --- the cache


def test_failed_generation_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("DTL_CACHE", str(tmp_path))

    def generate_invalid_row():
        return {"train": [{"text": "a"}], "heldout": [{"text": object()}]}

    with pytest.raises(TypeError):
        cache.ensure_generated("data", splits=("train", "heldout"), generate=generate_invalid_row)
    assert list((tmp_path / "mini").iterdir()) == []


def test_concurrent_generation_leaves_one_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("DTL_CACHE", str(tmp_path))

    def generate(_):
        return cache.ensure_generated(
            "data", splits=("train",), generate=lambda: {"train": [{"text": "a"}]}
        )

    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(generate, range(8)))
    assert len(folders) == 1
    assert [path.name for path in (tmp_path / "mini").iterdir()] == [folders.pop().name]


def test_existing_folder_is_not_generated_again(monkeypatch, tmp_path):
    monkeypatch.setenv("DTL_CACHE", str(tmp_path))
    first = cache.ensure_generated(
        "data", splits=("train",), generate=lambda: {"train": [{"text": "a"}]}
    )
    second = cache.ensure_generated(
        "data", splits=("train",), generate=lambda: pytest.fail("generated again")
    )
    assert first == second


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mini.load_rows("graph", "train"), "did you mean 'graphs'?"),
        (lambda: mini.load_rows("graphs", "helduot"), "did you mean 'heldout'?"),
        (lambda: mini.base_folder("txt"), "did you mean 'text'?"),
        (lambda: cache.cache_key(["no-such-package-here"]), "pip install no-such-package-here"),
        (lambda: docstrings.package_folder("no_such_package_here"), "is not installed"),
    ],
)
def test_error_message_has_a_fix(call, message):
    with pytest.raises(DtlError, match=re.escape(message)):
        call()


# --- the shipped base


def test_shipped_tokenizer_decodes_what_it_encodes():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(mini.base_folder("text"))
    special_ids = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    assert len(special_ids) == 3 and None not in special_ids
    assert len(tokenizer) == 4096
    assert tokenizer.chat_template is None
    for text in ("The room was lovely.", "    indented\n\tcode_like(x) ", "naïve 北京 🙂", ""):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids) == text
        assert tokenizer(text).input_ids == [tokenizer.bos_token_id, *ids]


def test_sentiment_words_are_single_tokens():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(mini.base_folder("text"))
    words = lexicon.POSITIVE + lexicon.NEGATIVE
    lengths = [len(tokenizer(f" {word}", add_special_tokens=False).input_ids) for word in words]
    assert sum(lengths) / len(lengths) < 1.1


def test_command_writes_config_and_tokenizer(small_source, monkeypatch, tmp_path):
    """`python -m dtl.mini text FOLDER` on a small source: the architecture of the shipped base."""
    from transformers import AutoConfig, AutoTokenizer

    from dtl.mini.__main__ import main

    monkeypatch.setattr(mini, "load_rows", lambda name, split: small_source[split])
    assert main(["text", str(tmp_path / "base")]) == 0
    written, shipped = (
        AutoConfig.from_pretrained(folder).to_diff_dict()
        for folder in (tmp_path / "base", mini.base_folder("text"))
    )
    assert written == shipped
    assert len(AutoTokenizer.from_pretrained(tmp_path / "base")) == 4096
    names = {path.name for path in Path(tmp_path / "base").iterdir()}
    assert names == {"config.json", "tokenizer.json", "tokenizer_config.json"}


def test_command_without_arguments_prints_usage(capsys):
    from dtl.mini.__main__ import main

    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "usage" in capsys.readouterr().err


def test_base_can_be_trained_and_packed_again(small_source, cache, monkeypatch, tmp_path):
    """Trains configs/mini/text.yaml at a small scale, then packs its weights."""
    from safetensors.torch import load_file

    from dtl import api
    from dtl.config.load import load_config
    from dtl.mini.__main__ import main

    monkeypatch.chdir(tmp_path)
    for split in ("train", "heldout"):
        lines = "".join(json.dumps(row) + "\n" for row in small_source[split][:24])
        (tmp_path / f"{split}.jsonl").write_text(lines)
    recipe = Path(__file__).parents[3] / "configs" / "mini" / "text.yaml"
    overrides = ["data.train=train.jsonl", "data.eval=heldout.jsonl", "task.max_length=16"]
    overrides += ["train.epochs=null", "train.steps=2", "train.global_batch=4"]
    outcome = api.train(load_config(recipe, overrides), say=lambda line: None)
    assert outcome.exit_code == 0
    assert main(["text", str(tmp_path / "base"), "--weights", str(outcome.run.export)]) == 0
    made = load_file(tmp_path / "base" / "model.safetensors")
    shipped = load_file(mini.base_folder("text") / "model.safetensors")
    assert {name: (v.shape, v.dtype) for name, v in generated.items()} == {
        name: (v.shape, v.dtype) for name, v in shipped.items()
    }
    assert sum(value.numel() for value in made.values()) == 2_557_632
