"""The encoders, tokenizers and prompts of speech models."""
