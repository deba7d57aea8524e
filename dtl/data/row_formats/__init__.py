"""Formats of rows that data sets have, converted into the columns that tasks read."""
