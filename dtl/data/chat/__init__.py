"""Chat messages: rendering through the tokenizer's template, and the loss mask."""
