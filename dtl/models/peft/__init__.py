"""PEFT adapters: attach, save, load, merge."""
