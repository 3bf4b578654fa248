"""TinyClap: a small contrastive audio and text model with a text tower of its own."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from sa3lora.errors import ModelError
from sa3lora.models.clap_features import (
    FrameSettings,
    chroma_filters,
    log_bands,
    mel_filters,
    onset_periodicity,
    pitch_classes,
    power_frames,
)
from sa3lora.models.clap_layers import Block, ConvBlock, masked_mean

_MIN_WINDOW_S = 0.5
_BATCH = 32
_FILES = ("config.json", "model.safetensors", "tokenizer.json")


@dataclass(frozen=True)
class ClapConfig:
    """Sizes of both towers; `window_s` is the audio length that reports use by default."""

    name: str = "tiny-clap"
    window_s: float = 5.0
    embed_dim: int = 128
    audio_channels: tuple[int, int, int] = (16, 40, 96)
    audio_dim: int = 144
    audio_depth: int = 2
    pooled_dim: int = 96
    text_dim: int = 112
    text_depth: int = 2
    num_heads: int = 4
    vocab_size: int = 1024
    max_tokens: int = 96
    frames: FrameSettings = field(default_factory=FrameSettings)


class AudioTower(nn.Module):
    """Spectrum frames to one embedding, whatever their number."""

    mel_filters: Tensor
    chroma_filters: Tensor

    def __init__(self, config: ClapConfig) -> None:
        super().__init__()
        self.settings = config.frames
        c1, c2, c3 = config.audio_channels
        self.conv1 = ConvBlock(1, c1, stride=(2, 2))
        self.conv2 = ConvBlock(c1, c2, stride=(2, 2))
        self.conv3 = ConvBlock(c2, c3, stride=(2, 2))
        dim = config.audio_dim
        self.project = nn.Linear(c3 * config.frames.num_mels // 8, dim)
        self.context = nn.Conv1d(dim, dim, 7, padding=3, groups=dim)
        self.blocks = nn.ModuleList(
            Block(dim, config.num_heads, 0.1) for _ in range(config.audio_depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.pooled = nn.Sequential(
            nn.Linear(config.frames.num_pooled, config.pooled_dim), nn.GELU(), nn.Dropout(0.1)
        )
        self.head = nn.Linear(2 * dim + config.pooled_dim, config.embed_dim)
        self.register_buffer("mel_filters", mel_filters(config.frames), persistent=False)
        self.register_buffer("chroma_filters", chroma_filters(config.frames), persistent=False)

    def forward(self, audio: Tensor, mask: Tensor) -> Tensor:
        """Embed audio (B, N), zero where padded; `mask` is True on real frames, (B, T)."""
        mel, chroma = self.analyse(audio)
        return self.from_bands(mel, chroma, mask)

    def analyse(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Give mel power (B, M, T) and pitch-class strength (B, 12, T / 5) of audio (B, N)."""
        frames = self.settings
        power = power_frames(audio, n_fft=frames.n_fft, hop=frames.hop)
        fine = power_frames(audio, n_fft=frames.chroma_n_fft, hop=frames.chroma_hop)
        return self.mel_filters @ power, self.chroma_filters @ fine.sqrt()

    def from_bands(self, mel_power: Tensor, chroma: Tensor, mask: Tensor) -> Tensor:
        """Embed what `analyse` gave, or a crop of it."""
        mel = log_bands(mel_power) * mask[:, None]
        x, mask_t = self.conv1(mel[:, None], mask)
        x, mask_t = self.conv2(x, mask_t)
        x, mask_t = self.conv3(x, mask_t)
        x = self.project(x.permute(0, 3, 1, 2).flatten(2)) * mask_t[..., None]
        x = x + self.context(x.transpose(1, 2)).transpose(1, 2)
        for block in self.blocks:
            x = block(x, mask_t)
        x = self.norm(x)
        mean = masked_mean(x, mask_t)
        spread = (masked_mean(x.square(), mask_t) - mean.square()).clamp_min(1e-5).sqrt()
        rhythm = onset_periodicity(mel, mask, lags=self.settings.lags)
        pooled = self.pooled(torch.cat([rhythm, pitch_classes(chroma)], dim=1))
        return F.normalize(self.head(torch.cat([mean, spread, pooled], dim=1)), dim=1)


class TextTower(nn.Module):
    """Token ids to one embedding."""

    def __init__(self, config: ClapConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.text_dim)
        self.positions = nn.Embedding(config.max_tokens, config.text_dim)
        self.blocks = nn.ModuleList(
            Block(config.text_dim, config.num_heads, 0.1) for _ in range(config.text_depth)
        )
        self.norm = nn.LayerNorm(config.text_dim)
        self.head = nn.Linear(config.text_dim, config.embed_dim)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Embed ids (B, L); `mask` is True on real tokens."""
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x, mask)
        return F.normalize(self.head(masked_mean(self.norm(x), mask)), dim=1)


class TinyClap(nn.Module):
    """Both towers, the tokenizer and the learned temperature of the contrastive loss."""

    def __init__(self, config: ClapConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.audio = AudioTower(config)
        self.text = TextTower(config)
        self.log_scale = nn.Parameter(torch.tensor(2.6))

    @property
    def name(self) -> str:
        """Name in reports."""
        return self.config.name

    @property
    def sample_rate(self) -> int:
        """Sample rate that `embed_audio` wants, in Hz."""
        return self.config.frames.sample_rate

    @property
    def window_s(self) -> float:
        """Window length of reports in seconds."""
        return self.config.window_s

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> TinyClap:
        """Load a folder with `config.json`, `model.safetensors` and `tokenizer.json`, in float32.

        Raises:
            ModelError: If a file is missing or broken, or any tensor is missing, unexpected or
                misshapen.
        """
        folder = Path(folder)
        missing = [name for name in _FILES if not (folder / name).is_file()]
        if missing:
            raise ModelError(f"{folder} is no CLAP folder: it lacks {', '.join(missing)}.")
        try:
            config = config_from_dict(json.loads((folder / "config.json").read_text("utf-8")))
            words = (folder / "tokenizer.json").read_text("utf-8")
            json.loads(words)["model"]  # from_str has no type for its errors
            tokenizer = Tokenizer.from_str(words)
            tensors = load_file(folder / "model.safetensors")
        except (ValueError, TypeError, LookupError, SafetensorError) as error:
            raise ModelError(
                f"{folder} could not be read as a CLAP model: {error}. Copy it again."
            ) from error
        model = cls(config, tokenizer)
        _check_tensors(folder, tensors, model.state_dict())
        model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        return model.eval().requires_grad_(False)

    def tokenize(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Turn prompts into ids and mask, (B, L); longer prompts end at `max_tokens`."""
        rows = [self.tokenizer.encode(p).ids[: self.config.max_tokens] or [0] for p in prompts]
        length = max(len(row) for row in rows)
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        mask = torch.tensor([[True] * len(row) + [False] * (length - len(row)) for row in rows])
        device = self.log_scale.device
        return ids.to(device), mask.to(device)

    @torch.no_grad()
    def embed_audio(self, windows: list[Tensor]) -> Tensor:
        """Embed mono windows (N,) at `sample_rate`, each as if it were alone: (n, D), unit norm.

        Raises:
            ModelError: If a window is not mono or shorter than half a second.
        """
        shortest = round(_MIN_WINDOW_S * self.sample_rate)
        for window in windows:
            if window.ndim != 1 or window.shape[0] < shortest:
                raise ModelError(
                    f"CLAP wants mono windows (N,) of at least {_MIN_WINDOW_S} s at "
                    f"{self.sample_rate} Hz, got shape {tuple(window.shape)}."
                )
        parts = [self._embed_batch(windows[i : i + _BATCH]) for i in range(0, len(windows), _BATCH)]
        return torch.cat(parts) if parts else torch.zeros(0, self.config.embed_dim)

    def _embed_batch(self, windows: list[Tensor]) -> Tensor:
        device = self.log_scale.device
        lengths = torch.tensor([window.shape[0] for window in windows])
        audio = nn.utils.rnn.pad_sequence(windows, batch_first=True).float().to(device)
        frames = self.config.frames.num_frames(lengths)
        mask = torch.arange(int(frames.max())) < frames[:, None]
        embedded: Tensor = self.audio(audio, mask.to(device))
        return embedded

    @torch.no_grad()
    def embed_text(self, prompts: list[str]) -> Tensor:
        """Embed prompts: (n, D), unit norm."""
        if not prompts:
            return torch.zeros(0, self.config.embed_dim)
        embedded: Tensor = self.text(*self.tokenize(prompts))
        return embedded

    def contrastive_loss(self, audio: Tensor, text: Tensor) -> Tensor:
        """Average cross-entropy of finding each other's partner in the batch, both ways."""
        logits = self.log_scale.clamp(max=4.6).exp() * audio @ text.T
        target = torch.arange(len(audio), device=logits.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def config_to_dict(config: ClapConfig) -> dict[str, Any]:
    """Turn a configuration into what `config.json` holds."""
    return {"model_type": "sa3lora_tiny_clap", **asdict(config)}


def config_from_dict(raw: dict[str, Any]) -> ClapConfig:
    """Read `config.json`; a key that is unknown or missing is a ValueError that names it."""
    known = {item.name for item in fields(ClapConfig)} | {"model_type"}
    wrong = sorted(known.symmetric_difference(raw))
    if wrong:
        raise ValueError(f"config.json: missing or unknown keys: {', '.join(wrong)}")
    values = {name: value for name, value in raw.items() if name != "model_type"}
    values["frames"] = FrameSettings(**values["frames"])
    values["audio_channels"] = tuple(values["audio_channels"])
    return ClapConfig(**values)


def _check_tensors(folder: Path, found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    problems = [f"missing {name}" for name in sorted(wanted.keys() - found.keys())]
    problems += [f"unexpected {name}" for name in sorted(found.keys() - wanted.keys())]
    problems += [
        f"{name} is {tuple(found[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & found.keys())
        if found[name].shape != wanted[name].shape
    ]
    if problems:
        raise ModelError(f"{folder}/model.safetensors does not fit: {'; '.join(problems)}.")
