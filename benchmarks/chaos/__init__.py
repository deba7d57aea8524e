"""Fault injection: real runs, faults drawn from a seed, one table of results.

    python -m benchmarks.chaos [--kills 200 --signals 50 --corruptions 100] [--out FILE]

Each kind of fault is a module; `--only` selects kinds. To run a trial again, give its seed, kind
and number: `--seed 0 --repeat kill:7`. With `--folder` a second call continues the first.
"""
