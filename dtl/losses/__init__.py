"""Losses in nats of each token, example or pair; the tasks sum them."""
