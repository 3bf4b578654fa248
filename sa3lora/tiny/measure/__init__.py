"""Measures of the embedded model on held-out pieces: `python -m sa3lora.tiny.measure`."""
