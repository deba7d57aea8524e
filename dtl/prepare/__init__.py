"""What is prepared before any process starts: encoded examples, a plan, a run folder."""
