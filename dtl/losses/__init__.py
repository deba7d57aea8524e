"""Losses as sums or one number a target; the loop divides by the number of targets."""
