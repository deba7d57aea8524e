"""Miniature models and data that come with dtl, so that examples and tests need no download."""

from dtl.mini.files import BASES, PREFIX, SHIPPED_DATA, SPLITS, base_folder, data_file, load_rows

__all__ = ["BASES", "PREFIX", "SHIPPED_DATA", "SPLITS", "base_folder", "data_file", "load_rows"]
