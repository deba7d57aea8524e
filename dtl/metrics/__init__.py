"""Metrics: each has a name and a direction."""
