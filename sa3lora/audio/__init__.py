"""Read, resample, write and draw audio; nothing else in the project decodes it.

What a container promises is compared with what is there: libsndfile alone plays a file that lost
its second half as if it had always been short.
"""

from __future__ import annotations

from sa3lora.audio.convert import resample, to_channels
from sa3lora.audio.reading import AUDIO_EXTENSIONS, AudioInfo, probe_audio, read_audio
from sa3lora.audio.spectrogram import spectrogram_png
from sa3lora.audio.writing import wav_bytes, write_audio

__all__ = [
    "AUDIO_EXTENSIONS",
    "AudioInfo",
    "probe_audio",
    "read_audio",
    "resample",
    "spectrogram_png",
    "to_channels",
    "wav_bytes",
    "write_audio",
]
