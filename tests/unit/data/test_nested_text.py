"""A text is the list or object that it writes, or stays as it is; no text raises an error."""

import pytest

from dtl.data.label_values import parse_list
from dtl.data.nested_text import parse_text


@pytest.mark.parametrize("text", ['["a", "b"]', "['a', 'b']", ' ["a", "b"] '])
def test_list_is_read_as_json_or_as_python_writes_it(text):
    assert parse_text(text) == parse_list(text) == ["a", "b"]


def test_object_is_no_list_of_labels():
    assert parse_text('{"a": 1}') == {"a": 1} and parse_list('{"a": 1}') == '{"a": 1}'


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[1,", "[a]", "{}}", "plain"])
def test_other_text_is_unchanged(text):
    assert parse_text(text) == text and parse_list(text) == text
