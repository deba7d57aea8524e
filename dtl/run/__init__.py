"""One run on disk: its folder, its records and its submission to a queue."""
