"""Proof that a run survives: real runs, faults drawn from a seed, one table.

    python -m benchmarks.chaos [--kills 200 --signals 50 --corruptions 100] [--out FILE]

One kind of fault a module; `--only` chooses among them. A trial is repeated by its seed, kind and
number: `--seed 0 --repeat kill:7`. With `--folder` a second call goes on where the first one ended.
"""
