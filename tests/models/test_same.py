from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from sa3lora.models import ModelSource, SameAutoencoder
from sa3lora.models.config import SameConfig


def sound(config: SameConfig, latents: float, *, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    samples = int(latents * config.downsampling_ratio)
    return torch.randn(batch, config.audio_channels, samples, generator=generator) * 0.1


def noisy(config: SameConfig, *, encoder: float = 0.0, decoder: float = 0.1) -> SameConfig:
    return dataclasses.replace(
        config,
        noise_regularize=True,
        encoder=dataclasses.replace(config.encoder, mask_noise=encoder),
        decoder=dataclasses.replace(config.decoder, mask_noise=decoder),
    )


@pytest.mark.parametrize("latents", [0.1, 1, 1.5, 4, 5, 6.01])
@torch.no_grad()
def test_lengths_are_rounded_up_to_whole_chunks(
    autoencoder: SameAutoencoder, latents: float
) -> None:
    config = autoencoder.config
    align = autoencoder.encoder.resampler.alignment
    z = autoencoder.encode(sound(config, latents))
    whole = -(-int(latents * config.downsampling_ratio) // (config.downsampling_ratio * align))
    assert z.shape == (2, config.latent_dim, whole * align)
    back = autoencoder.decode(z)
    assert back.shape == (2, config.audio_channels, whole * align * config.downsampling_ratio)


@torch.no_grad()
def test_clips_of_a_batch_do_not_see_each_other(autoencoder: SameAutoencoder) -> None:
    audio = sound(autoencoder.config, 6)
    z = autoencoder.encode(audio)
    assert_close(autoencoder.encode(audio[1:]), z[1:])
    assert_close(autoencoder.decode(z[1:]), autoencoder.decode(z)[1:])


@torch.no_grad()
def test_the_end_is_silence_as_written_out(autoencoder: SameAutoencoder) -> None:
    audio = sound(autoencoder.config, 3.3)
    ratio = autoencoder.downsampling_ratio
    padded = nn.functional.pad(audio, (0, 4 * ratio - audio.shape[-1]))
    assert_close(autoencoder.encode(audio), autoencoder.encode(padded))


@torch.no_grad()
def test_both_channels_and_every_sample_matter(autoencoder: SameAutoencoder) -> None:
    audio = sound(autoencoder.config, 4, batch=1)
    z = autoencoder.encode(audio)
    for channel in (0, 1):
        changed = audio.clone()
        changed[:, channel, -1] += 1.0
        assert (autoencoder.encode(changed) - z)[..., -1].abs().max() > 1e-4


@torch.no_grad()
def test_a_latent_reaches_no_further_than_the_receptive_field(
    autoencoder: SameAutoencoder,
) -> None:
    from sa3lora.models.blocks import halo

    resampler = autoencoder.decoder.resampler
    reach = halo(resampler) + resampler.alignment - 1  # blocks start at whole chunks
    frames, at = 4 * reach + 4, 2 * reach
    z = torch.zeros(1, autoencoder.config.latent_dim, frames)
    changed = z.clone()
    changed[..., at] = 3.0
    moved = (autoencoder.decode(changed) - autoencoder.decode(z)).abs().amax(dim=(0, 1))
    moved = moved.reshape(frames, -1).amax(dim=1)
    assert moved[at] > 1e-3
    assert moved[: at - reach].max() == 0
    assert moved[at + reach + 1 :].max() == 0


def test_mono_is_refused(autoencoder: SameAutoencoder) -> None:
    with pytest.raises(ValueError, match=r"audio must be \(B, 2, N\), got \(1, 1, 50\)"):
        autoencoder.encode(torch.zeros(1, 1, 50))


@torch.no_grad()
def test_noise_is_drawn_only_from_a_generator(
    source: ModelSource, enliven: Callable[[nn.Module], nn.Module]
) -> None:
    ae = enliven(SameAutoencoder(noisy(source.config.same, encoder=0.1)))
    assert isinstance(ae, SameAutoencoder)
    audio = sound(ae.config, 4)
    for run in (ae.encode, ae.decode):
        given = audio if run == ae.encode else ae.encode(audio)
        assert torch.equal(run(given), run(given))
        drawn = [run(given, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
        assert torch.equal(drawn[0], drawn[1])
        assert not torch.equal(drawn[0], drawn[2])
        assert not torch.equal(drawn[0], run(given))


@torch.no_grad()
def test_decoder_noise_comes_in_the_official_order(
    source: ModelSource, enliven: Callable[[nn.Module], nn.Module]
) -> None:
    ae = enliven(SameAutoencoder(noisy(source.config.same)))
    assert isinstance(ae, SameAutoencoder)
    z = torch.randn(2, ae.config.latent_dim, 5)
    decoded = ae.decode(z, generator=torch.Generator().manual_seed(9))
    torch.manual_seed(9)  # bottleneck first, then the learned tokens of the padded length
    bottleneck = torch.randn(z.shape)
    tokens = torch.randn(ae.decoder.resampler.noise_shape(2, 5))
    level = ae.bottleneck.noise_level(z)
    assert_close(
        ae.decode_with_noise(ae.bottleneck.decode(z) + bottleneck * level, tokens), decoded
    )


@torch.no_grad()
def test_noise_without_a_running_deviation_follows_the_clip(source: ModelSource) -> None:
    config = dataclasses.replace(noisy(source.config.same), auto_scale=False)
    ae = SameAutoencoder(config)
    z = torch.randn(1, config.latent_dim, 50)
    z[:, 0] *= 10
    level = ae.bottleneck.noise_level(z)
    assert_close(level, z.std(dim=-1, keepdim=True) * 1e-3)
    assert "bottleneck.running_std" not in ae.state_dict()


@torch.no_grad()
def test_latents_are_divided_by_the_running_deviation(
    source: ModelSource, autoencoder: SameAutoencoder
) -> None:
    if not source.config.same.auto_scale:
        pytest.skip("this case has no running deviation")
    scaled = source.load_autoencoder()
    scaled.bottleneck.running_std.mul_(2)
    audio = sound(scaled.config, 4)
    z = autoencoder.encode(audio)
    assert_close(scaled.encode(audio), z / 2)
    assert_close(scaled.decode(z / 2), autoencoder.decode(z))


@pytest.mark.parametrize("blocks", [0, 1, 3, 4])
def test_n_sine_blocks_mean_the_last_n_minus_1(source: ModelSource, blocks: int) -> None:
    decoder = dataclasses.replace(source.config.same.decoder, depth=4, sine_blocks=blocks)
    ae = SameAutoencoder(dataclasses.replace(source.config.same, decoder=decoder))
    gates = [block.ff.ff[0].sine for block in ae.decoder.resampler.transformers]
    assert gates == [4 - j < blocks for j in range(4)]
    assert sum(gates) == max(blocks - 1, 0)
