"""A config's task and strategies, put together and checked against each other."""
