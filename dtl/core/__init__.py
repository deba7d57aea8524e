"""What every package may use: errors, units, statistics, signals, locks, files."""
