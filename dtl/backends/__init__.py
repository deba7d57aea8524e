"""Where jobs run: one file is one backend; `base.py` is what they build on."""
