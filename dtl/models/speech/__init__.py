"""What the speech models of transformers share."""
