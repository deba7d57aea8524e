"""Losses over tokens and pairs, as sums over targets."""
