"""Look before, during and after a run: data report, audit, diff, doctor."""
