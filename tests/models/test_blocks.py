from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from sa3lora.models import SameAutoencoder
from sa3lora.models.blocks import decode_latents, decode_official, encode_audio, encode_official
from sa3lora.models.config_parse import parse_config
from sa3lora.models.fixtures import released_config

EXACT = {"atol": 1e-5, "rtol": 0.0}


@pytest.fixture(scope="module")
def noisy(
    autoencoder: SameAutoencoder, enliven: Callable[[nn.Module], nn.Module]
) -> SameAutoencoder:
    """An autoencoder of the same shape with every kind of noise, and a deeper decoder."""
    config = autoencoder.config
    loud = dataclasses.replace(
        config,
        noise_regularize=True,
        encoder=dataclasses.replace(config.encoder, mask_noise=0.1),
        decoder=dataclasses.replace(config.decoder, mask_noise=0.1, depth=3),
    )
    ae = enliven(SameAutoencoder(loud))
    assert isinstance(ae, SameAutoencoder)
    return ae


def sound(ae: SameAutoencoder, latents: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(8)
    return 0.1 * torch.randn(2, 2, int(latents * ae.downsampling_ratio), generator=generator)


@pytest.mark.parametrize("block", [1, 2, 3, 4, 7, 16])
@pytest.mark.parametrize("latents", [1, 2, 5, 8, 16, 16.4, 31])
@torch.no_grad()
def test_blocks_equal_the_whole(noisy: SameAutoencoder, latents: float, block: int) -> None:
    audio = sound(noisy, latents)
    frames = -(-audio.shape[-1] // noisy.downsampling_ratio)
    whole = noisy.encode(audio)[..., :frames]
    assert_close(encode_audio(noisy, audio, block=block), whole, **EXACT)
    back = noisy.decode(whole)[..., : frames * noisy.downsampling_ratio]
    assert_close(decode_latents(noisy, whole, block=block), back, **EXACT)


@pytest.mark.parametrize("block", [2, 5, 8])
@pytest.mark.parametrize("latents", [9, 14])
@torch.no_grad()
def test_blocks_equal_the_whole_with_noise_too(
    noisy: SameAutoencoder, latents: int, block: int
) -> None:
    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(6)

    audio = sound(noisy, latents)
    whole = noisy.encode(audio, generator=seeded())[..., :latents]
    assert_close(encode_audio(noisy, audio, block=block, generator=seeded()), whole, **EXACT)
    back = noisy.decode(whole, generator=seeded())[..., : latents * noisy.downsampling_ratio]
    assert_close(decode_latents(noisy, whole, block=block, generator=seeded()), back, **EXACT)


@torch.no_grad()
def test_official_blocks_are_the_plain_path_below_128_latents(noisy: SameAutoencoder) -> None:
    audio = sound(noisy, 127)
    z = encode_audio(noisy, audio, official=True)
    assert torch.equal(z, noisy.encode(audio)[..., :127])
    back = decode_latents(noisy, z, official=True)
    assert torch.equal(back, noisy.decode(z)[..., : 127 * noisy.downsampling_ratio])


@pytest.mark.parametrize("latents", [128, 129, 225, 300])
@torch.no_grad()
def test_official_blocks_come_close_to_the_whole(noisy: SameAutoencoder, latents: int) -> None:
    audio = sound(noisy, latents)
    z = encode_audio(noisy, audio, official=True)
    exact = encode_audio(noisy, audio)
    assert (z - exact).norm() < 0.02 * exact.norm()
    back, exact = decode_latents(noisy, z, official=True), decode_latents(noisy, z)
    assert (back - exact).norm() < 0.02 * exact.norm()


@torch.no_grad()
def test_official_blocks_draw_anew_in_each_block(noisy: SameAutoencoder) -> None:
    z = torch.randn(1, noisy.config.latent_dim, 225)
    decoded = decode_official(noisy, z, generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    # model specification, section 5.4: starts 0, 96, 97; the middle block owns one latent
    parts = [noisy.decode(z[..., s : s + 128], generator=generator) for s in (0, 96, 97)]
    r = noisy.downsampling_ratio
    owned = [parts[0][..., : 112 * r], parts[1][..., 16 * r : 17 * r], parts[2][..., 16 * r :]]
    assert torch.equal(decoded, torch.cat(owned, dim=-1))


@torch.no_grad()
def test_official_blocks_lose_what_follows_the_last_whole_latent(noisy: SameAutoencoder) -> None:
    assert encode_official(noisy, sound(noisy, 150.5)).shape[-1] == 150
    assert encode_audio(noisy, sound(noisy, 150.5)).shape[-1] == 151


def _released(
    name: str, enliven: Callable[[nn.Module], nn.Module], *, depth: int | None = None
) -> SameAutoencoder:
    config = parse_config(released_config(name)).same
    if depth is not None:
        config = dataclasses.replace(
            config,
            encoder=dataclasses.replace(config.encoder, depth=depth),
            decoder=dataclasses.replace(config.decoder, depth=depth),
        )
    with torch.device("meta"):
        empty = SameAutoencoder(config)
    ae = enliven(empty.to_empty(device="cpu"))
    assert isinstance(ae, SameAutoencoder)
    return ae


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "most"), [(24, 0.75), (120, 0.82)])
@torch.no_grad()
def test_exact_blocks_take_less_time_than_the_official_ones(
    enliven: Callable[[nn.Module], nn.Module], seconds: int, most: float
) -> None:
    ae = _released("same-s", enliven)
    audio = 0.1 * torch.randn(1, 2, seconds * 44100)
    z = torch.randn(1, 256, -(-seconds * 44100 // 4096))
    taken = {}
    for official in (False, True):
        started = time.process_time()  # of this process alone, whatever else runs
        encode_audio(ae, audio, official=official)
        decode_latents(ae, z, official=official)
        taken[official] = time.process_time() - started
    assert taken[False] <= most * taken[True], taken


@pytest.mark.slow
@pytest.mark.parametrize("name", ["same-s", "same-l"])
@torch.no_grad()
def test_a_track_of_380_s_stays_below_6_gb(
    enliven: Callable[[nn.Module], nn.Module], name: str
) -> None:
    import resource

    # only one layer of one block is alive at a time, so two layers need what twelve need
    ae = _released(name, enliven, depth=2)
    encode_audio(ae, torch.zeros(1, 2, 4096))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    z = encode_audio(ae, 0.1 * torch.randn(1, 2, 380 * 44100))
    decode_latents(ae, z)
    above_gb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e9
    assert above_gb < 6, f"{above_gb:.2f} GB above the weights"
