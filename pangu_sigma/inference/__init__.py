"""Generating text with a trained model: cached decoding, sampling, export."""
