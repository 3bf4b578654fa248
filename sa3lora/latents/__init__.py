"""The latents dataset: its format, reading, length-true batches and cached text embeddings."""
