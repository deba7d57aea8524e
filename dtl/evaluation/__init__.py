"""Scores of held-out examples."""
