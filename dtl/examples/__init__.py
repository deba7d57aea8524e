"""The rows of a config, encoded once for its model."""
