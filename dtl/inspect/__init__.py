"""Inspect data, runs and the installation: data report, audit, diff, doctor."""
