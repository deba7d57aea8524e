"""Pretrained models: where their parts are, and how they are loaded."""
