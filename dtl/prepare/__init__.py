"""What is prepared before any process starts: the data, the plan, the run folder."""
