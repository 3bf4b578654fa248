"""From a folder of audio to a latents dataset."""
