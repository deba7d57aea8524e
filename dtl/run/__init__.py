"""One run on disk, and what is prepared before any process starts."""
