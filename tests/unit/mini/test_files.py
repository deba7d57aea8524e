"""The rows of the quick text data, and errors for unknown names."""

import json
import os
import re
import subprocess
import sys

import pytest

from dtl import mini
from dtl.core.errors import DtlError
from dtl.mini import cache, docstrings


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
