"""Bases whose linear layers are held in 4 or 8 bits, by bitsandbytes."""
