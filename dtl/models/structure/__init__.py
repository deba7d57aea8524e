"""The structure of a transformers model: its blocks, its head, its kinds of parameters."""
