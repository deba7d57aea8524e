"""Helpers for rows of text."""

import re


def texts(rows):
    return [row["text"] for row in rows]


def eight_word_sequences(text):
    words = re.findall("[a-z]+", text.lower())
    return {tuple(words[i : i + 8]) for i in range(len(words) - 7)}


def all_sequences(rows):
    return set().union(*(eight_word_sequences(text) for text in texts(rows)))


def words_of(rows):
    return set().union(*(re.findall("[a-z]+", text.lower()) for text in texts(rows)))
