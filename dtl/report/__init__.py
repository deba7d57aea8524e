"""A report of a run or a comparison: one page, with its charts beside it."""
