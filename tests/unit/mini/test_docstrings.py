"""Docstrings are read as clean paragraphs, without importing their package."""

from dtl.mini import docstrings


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
    assert read == [
        ("package/module.py", "About the module."),
        ("package/module.py", "About A."),
        ("package/module.py", "About run."),
    ]
