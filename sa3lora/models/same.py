"""SAME, the autoencoder of Stable Audio 3: SAME-S (chunked) and SAME-L (band attention)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sa3lora.models.config import ResamplingConfig, SameConfig
from sa3lora.models.layers import WeightNormConv1d
from sa3lora.models.same_block import SameBlock


class Resampler(nn.Module):
    """Change the frame rate by attention between given and learned tokens.

    Every group holds one latent's patches and one latent: the encoder appends one learned token to
    `stride` patches and keeps it, the decoder appends `stride` learned tokens to one latent and
    keeps those.
    """

    def __init__(self, config: ResamplingConfig, *, decoder: bool) -> None:
        super().__init__()
        self.config = config
        self.given, self.new = (1, config.stride) if decoder else (config.stride, 1)
        kernel = 3 if config.conv_mapping else 1
        ends = (config.width, config.patch_channels)
        in_channels, out_channels = ends if decoder else ends[::-1]
        self.decoder = decoder
        self.mapping = WeightNormConv1d(in_channels, out_channels, kernel)
        places = 1 if config.shared_new_token else self.new
        self.new_tokens = nn.Parameter(1e-5 * torch.randn(1, places, config.width))
        self.transformers = nn.ModuleList(
            # the last n - 1 blocks, as the official rule `depth - j < n` gives
            SameBlock(config, sine=decoder and config.depth - j < config.sine_blocks)
            for j in range(config.depth)
        )

    @property
    def blocks(self) -> list[SameBlock]:
        """The transformer blocks in order."""
        return [block for block in self.transformers if isinstance(block, SameBlock)]

    @property
    def alignment(self) -> int:
        """Latents in one attention chunk: lengths are padded to a multiple of it."""
        chunk = self.config.chunk_size
        return 1 if chunk is None else max(chunk // self.config.stride, 1)

    def forward(self, x: Tensor, token_noise: Tensor | None) -> Tensor:
        """Resample (B, channels, frames); `token_noise` has the shape of `noise_shape`."""
        multiple = self.alignment * self.given
        x = F.pad(x, (0, -x.shape[-1] % multiple))
        if not self.decoder:
            x = self.mapping(x)
        batch, width = x.shape[:2]
        groups = x.transpose(1, 2).reshape(batch, -1, self.given, width)  # (B, n, given, E)
        count = groups.shape[1]
        tokens = self.new_tokens.expand(batch * count, self.new, width)
        if token_noise is not None:
            tokens = tokens + self.config.mask_noise * token_noise
        tokens = tokens.reshape(batch, count, self.new, width)
        sequence = torch.cat([groups, tokens], dim=2).flatten(1, 2)  # (B, 17 n, E)
        sequence = self._attend(sequence)
        grouped = sequence.reshape(batch, count, self.given + self.new, width)
        kept = grouped[:, :, self.given :].flatten(1, 2)
        out = kept.transpose(1, 2)
        mapped: Tensor = self.mapping(out) if self.decoder else out
        return mapped

    def noise_shape(self, batch: int, latents: int) -> tuple[int, int, int]:
        """Shape of the noise on learned tokens for `latents` frames before padding."""
        padded = latents + -latents % self.alignment
        return batch * padded, self.new, self.config.width

    def _attend(self, x: Tensor) -> Tensor:
        stride, chunk_size = self.config.stride, self.config.chunk_size
        if chunk_size is None:
            assert self.config.window is not None
            for block in self.transformers:
                x = block(x, self.config.window * (stride + 1))
            return x
        chunk = chunk_size + chunk_size // stride
        half = len(self.transformers) // 2 if self.config.midpoint_shift else len(self.transformers)
        batch, length = x.shape[:2]
        x = x.reshape(-1, chunk, x.shape[-1])
        for block in self.transformers[:half]:
            x = block(x, None)
        if half == len(self.transformers):
            return x.reshape(batch, length, -1)
        shift = chunk // 2
        x = x.reshape(batch, length, -1)
        x = torch.cat([x[:, :shift], x, x[:, -shift:]], dim=1).reshape(-1, chunk, x.shape[-1])
        for block in self.transformers[half:]:
            x = block(x, None)
        return x.reshape(batch, length + 2 * shift, -1)[:, shift:-shift]


class _Transpose(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class _Coder(nn.Module):
    """Resampler and latent projection in the published order of layers."""

    def __init__(self, config: ResamplingConfig, *, decoder: bool) -> None:
        super().__init__()
        resampler = Resampler(config, decoder=decoder)
        if decoder:
            linear = nn.Linear(config.latent_dim, config.width)
            layers = [_Transpose(), linear, _Transpose(), resampler]
        else:
            linear = nn.Linear(config.width, config.latent_dim)
            layers = [resampler, _Transpose(), linear, _Transpose()]
        self.layers = nn.ModuleList(layers)

    @property
    def resampler(self) -> Resampler:
        """The part that changes the frame rate."""
        return next(layer for layer in self.layers if isinstance(layer, Resampler))

    @property
    def projection(self) -> nn.Linear:
        """The linear layer between width and latent channels."""
        return next(layer for layer in self.layers if isinstance(layer, nn.Linear))

    def forward(self, x: Tensor, token_noise: Tensor | None) -> Tensor:
        for layer in self.layers:
            x = layer(x, token_noise) if isinstance(layer, Resampler) else layer(x)
        return x


class SoftNorm(nn.Module):
    """Affine scaling of latents to about unit variance."""

    running_std: Tensor

    def __init__(self, channels: int, *, auto_scale: bool) -> None:
        super().__init__()
        self.scaling_factor = nn.Parameter(torch.ones(1, channels, 1))
        self.bias = nn.Parameter(torch.zeros(1, channels, 1))
        self.noise_scaling_factor = nn.Parameter(torch.zeros(1, 0, 1))
        if auto_scale:
            self.register_buffer("running_std", torch.ones(1))
        self.auto_scale = auto_scale

    def encode(self, x: Tensor) -> Tensor:
        """Scale encoder output to latents."""
        x = x * self.scaling_factor + self.bias
        return x / self.running_std if self.auto_scale else x

    def decode(self, z: Tensor) -> Tensor:
        """Undo the division by the running deviation."""
        return z * self.running_std if self.auto_scale else z

    def noise_level(self, z: Tensor) -> Tensor:
        """Deviation of the decoder's regularising noise."""
        scale = self.running_std if self.auto_scale else z.std(dim=-1, keepdim=True)
        return scale * 1e-3


class SameAutoencoder(nn.Module):
    """Audio (B, 2, N) to latents (B, C, T) and back.

    The official decoder adds a little noise at inference too. Pass a generator to draw it in the
    official order; without one no noise is added and the result is deterministic.
    """

    def __init__(self, config: SameConfig) -> None:
        super().__init__()
        self.config = config
        self.bottleneck = SoftNorm(config.latent_dim, auto_scale=config.auto_scale)
        self.encoder = _Coder(config.encoder, decoder=False)
        self.decoder = _Coder(config.decoder, decoder=True)

    @property
    def downsampling_ratio(self) -> int:
        """Audio samples of one latent frame."""
        return self.config.downsampling_ratio

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self.config.sample_rate

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.bottleneck.bias.dtype

    def encode(self, audio: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Encode audio, (B, K, N), to ceil(N / ratio) latents, rounded up to whole chunks."""
        latents = -(-audio.shape[-1] // self.downsampling_ratio)
        noise = self.token_noise(self.encoder, audio.shape[0], latents, generator)
        return self.encode_with_noise(audio, noise)

    def decode(self, latents: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Decode latents, (B, C, T), to audio (B, K, N); N covers T rounded up to whole chunks."""
        z = self.add_bottleneck_noise(latents, generator)
        noise = self.token_noise(self.decoder, z.shape[0], z.shape[-1], generator)
        return self.decode_with_noise(z, noise)

    def encode_with_noise(self, audio: Tensor, token_noise: Tensor | None) -> Tensor:
        """Encode with the given noise on learned tokens (None for none)."""
        size, channels = self.config.patch_size, self.config.audio_channels
        if audio.ndim != 3 or audio.shape[1] != channels:
            raise ValueError(f"audio must be (B, {channels}, N), got {tuple(audio.shape)}")
        audio = F.pad(audio.to(self.dtype), (0, -audio.shape[-1] % size))
        count = audio.shape[-1] // size
        patches = audio.reshape(-1, channels, count, size).transpose(2, 3).flatten(1, 2)
        return self.bottleneck.encode(self.encoder(patches, token_noise))

    def decode_with_noise(self, z: Tensor, token_noise: Tensor | None) -> Tensor:
        """Decode what `add_bottleneck_noise` returned."""
        patches: Tensor = self.decoder(z, token_noise)
        size, channels = self.config.patch_size, self.config.audio_channels
        split = patches.reshape(-1, channels, size, patches.shape[-1])
        return split.transpose(2, 3).flatten(2)

    def add_bottleneck_noise(self, latents: Tensor, generator: torch.Generator | None) -> Tensor:
        """Scale latents for the decoder and add the official regularising noise."""
        z = self.bottleneck.decode(latents.to(self.dtype))
        if generator is not None and self.config.noise_regularize:
            z = z + draw(z.shape, z, generator) * self.bottleneck.noise_level(z)
        return z

    def token_noise(
        self, coder: _Coder, batch: int, latents: int, generator: torch.Generator | None
    ) -> Tensor | None:
        """Draw the noise on learned tokens, or None where the model has none."""
        if generator is None or coder.resampler.config.mask_noise == 0:
            return None
        return draw(coder.resampler.noise_shape(batch, latents), self.bottleneck.bias, generator)


def draw(shape: torch.Size | tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise in the dtype and on the device of `like`."""
    noise = torch.randn(shape, generator=generator, device=generator.device, dtype=like.dtype)
    return noise.to(like.device)
