"""Exports of a run: adapters, models and other formats, with a model card."""
