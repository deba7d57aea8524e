"""What every room may use: errors, units, statistics, signals, locks, files."""
