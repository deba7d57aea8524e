"""Training of a head on cached features of the frozen base."""
