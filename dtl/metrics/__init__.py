"""Metrics: how predictions compare with the targets."""
