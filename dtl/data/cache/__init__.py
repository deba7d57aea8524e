"""Encoded examples and features on disk, written once and read through memory maps."""
