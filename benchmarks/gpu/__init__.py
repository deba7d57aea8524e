"""What is right on a GPU: sections that pass or fail, in eight minutes, without a network."""
