"""What is in the data of a config, and what in it would waste a run."""
