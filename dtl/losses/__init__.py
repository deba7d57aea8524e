"""Losses per target, per example or summed; the loop divides by the number of targets."""
