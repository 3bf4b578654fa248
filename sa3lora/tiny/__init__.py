"""Procedural music with exact captions, and the pretraining of the embedded model on it."""
