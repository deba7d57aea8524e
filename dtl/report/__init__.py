"""Reports of runs and comparisons: an HTML page, and its charts as CSV and PNG files."""
