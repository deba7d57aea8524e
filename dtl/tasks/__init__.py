"""What is learned: one file is one task; `base.py` is what they build on."""
