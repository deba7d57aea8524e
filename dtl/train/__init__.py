"""The loop, and what it needs: optimizer, evaluation, checkpoints, log, export."""
