"""What a run leaves: adapters, models, other formats, and their model card."""
