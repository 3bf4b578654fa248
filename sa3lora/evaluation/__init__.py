"""Scores of generated audio with their uncertainty, and the report that carries them."""
