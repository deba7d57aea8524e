"""The plan: how a config is laid out over the hardware, and what it needs there."""
