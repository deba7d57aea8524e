"""Start the processes of a run, and restart them after a crash."""
