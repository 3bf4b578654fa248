"""The models of Stable Audio 3 in PyTorch, loading the published files unchanged."""

from sa3lora.models.denoiser import Conditioning, Denoiser
from sa3lora.models.same import SameAutoencoder
from sa3lora.models.source import ModelSource, resolve_model
from sa3lora.models.text import TextEncoder

__all__ = [
    "Conditioning",
    "Denoiser",
    "ModelSource",
    "SameAutoencoder",
    "TextEncoder",
    "resolve_model",
]
