"""Pretrained models: load them, find their parts, adapt them."""
