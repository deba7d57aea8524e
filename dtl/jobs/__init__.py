"""Jobs that one process runs: train, evaluate, predict, export, push, track."""
