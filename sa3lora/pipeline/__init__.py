"""From prompts to sound: text-to-audio, audio-to-audio, inpainting and continuation."""

from sa3lora.pipeline.generation import GenerationOutput
from sa3lora.pipeline.guided import Guidance, GuidedVelocity
from sa3lora.pipeline.inputs import AudioInput, Region
from sa3lora.pipeline.pipeline import SA3Pipeline

__all__ = [
    "AudioInput",
    "GenerationOutput",
    "Guidance",
    "GuidedVelocity",
    "Region",
    "SA3Pipeline",
]
