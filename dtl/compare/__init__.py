"""Comparison of transfer strategies with each other and with training from scratch."""
