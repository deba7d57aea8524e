"""Decoding and preprocessing of audio and images."""
