"""What is right on a GPU: sections that pass or fail, in at most eight minutes, without a network."""
