"""The training loop and what it needs: setup, optimizer, checkpoints, guards, log."""
