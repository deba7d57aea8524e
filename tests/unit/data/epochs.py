"""Batches of an epoch, for the tests of orders and micro-batches."""

from dtl.data.batching import Batching


def form_batches(examples, *, seed, epoch, global_batch):
    return Batching(examples, global_batch, seed).form_epoch(epoch)


def flatten(batches):
    return [int(number) for batch in batches for number in batch]
