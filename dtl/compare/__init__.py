"""Comparison of strategies against training from scratch."""
