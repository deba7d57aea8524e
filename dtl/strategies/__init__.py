"""Which parameters are trained: one file is one strategy; `base.py` is what they build on."""
