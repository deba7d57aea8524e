"""From a file of examples to the micro-batches of one optimizer step."""
