"""Bases whose linear layers are stored in 4 or 8 bits, with bitsandbytes."""
