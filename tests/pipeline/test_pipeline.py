from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sa3lora.errors import AdapterError
from sa3lora.models import ModelSource
from sa3lora.pipeline import GenerationOutput, SA3Pipeline

RATE = 8000


def make(pipe: SA3Pipeline, prompt: str | list[str] = "glass", **options: Any) -> GenerationOutput:
    settings: dict[str, Any] = {
        "duration_s": 0.3, "num_inference_steps": 2, "seed": 4, "headroom_s": 0.1,
    }  # fmt: skip
    return pipe(prompt, **settings | options)


def tone(seconds: float, *, rate: int = RATE, channels: int = 2) -> tuple[Tensor, int]:
    place = torch.arange(int(seconds * rate)) / rate
    wave = 0.3 * torch.sin(2 * torch.pi * 220 * place)
    return wave.expand(channels, -1).clone(), rate


def test_each_clip_has_its_own_duration(pipe: SA3Pipeline) -> None:
    out = make(pipe, ["glass", "drums"], duration_s=[0.3, 0.71])
    assert [audio.shape for audio in out.audio] == [(2, 2400), (2, 5680)]
    assert out.sample_rate == RATE
    assert all(torch.isfinite(a).all() and a.abs().max() <= 1 for a in out.audio)
    assert all(a.std() > 1e-4 for a in out.audio)


def test_beyond_its_headroom_a_short_clip_is_silent(pipe: SA3Pipeline) -> None:
    out = make(pipe, duration_s=[0.2, 0.8])
    assert out.padded[0, :, int(0.31 * RATE) :].count_nonzero() == 0
    assert out.padded[1, :, int(0.31 * RATE) :].count_nonzero() > 0


def test_the_same_seed_gives_the_same_sound(pipe: SA3Pipeline) -> None:
    first, again, other = make(pipe), make(pipe), make(pipe, seed=5)
    assert torch.equal(first.audio[0], again.audio[0])
    assert not torch.equal(first.audio[0], other.audio[0])
    unseeded = make(pipe, seed=None)
    assert torch.equal(make(pipe, seed=unseeded.seed).audio[0], unseeded.audio[0])


def test_generating_leaves_the_global_random_state_alone(pipe: SA3Pipeline) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    make(pipe)
    assert torch.equal(torch.rand(3), expected)


def test_prompt_duration_and_negative_prompt_matter(pipe: SA3Pipeline) -> None:
    base = make(pipe).latents
    for changes in ({"prompt": "drums"}, {"duration_s": 0.29}, {"negative_prompt": "noise"}):
        assert not torch.equal(make(pipe, **changes).latents, base), changes


def test_the_empty_prompt_is_allowed(pipe: SA3Pipeline) -> None:
    empty = make(pipe, "")
    assert torch.isfinite(empty.audio[0]).all()
    assert not torch.equal(empty.latents, make(pipe, "glass").latents)


@pytest.mark.parametrize("sampler", ["euler", "pingpong", "dpmpp", "rk4"])
def test_every_sampler_leaves_its_noise(pipe: SA3Pipeline, sampler: str) -> None:
    out = make(pipe, ["glass", "drums"], duration_s=[0.2, 0.3], sampler=sampler)
    noise = torch.randn(out.latents.shape, generator=torch.Generator().manual_seed(4))
    assert torch.isfinite(out.latents).all()
    assert (out.latents - noise).norm() > 0.1 * noise.norm()


def test_rk4_and_euler_meet_at_many_steps(pipe: SA3Pipeline) -> None:
    fine = make(pipe, num_inference_steps=64, sampler="euler", guidance_scale=1.0).latents
    rk4 = make(pipe, num_inference_steps=12, sampler="rk4", guidance_scale=1.0).latents
    coarse = make(pipe, num_inference_steps=3, sampler="euler", guidance_scale=1.0).latents
    assert (rk4 - fine).norm() < 0.3 * (coarse - fine).norm()


def test_progress_counts_the_steps(pipe: SA3Pipeline) -> None:
    seen: list[tuple[int, int]] = []
    make(pipe, num_inference_steps=3, progress=lambda *done: seen.append(done))
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("seconds", [0, -1, 2, [0.3, 5.0]])
def test_durations_beyond_the_model_are_refused(
    pipe: SA3Pipeline, seconds: float | list[float]
) -> None:
    with pytest.raises(ValueError, match=r"at most 1\.02 s for this model"):
        make(pipe, duration_s=seconds)


@pytest.mark.parametrize("official", [False, True])
def test_no_noise_gives_the_initial_sound_back(medium_pipe: SA3Pipeline, official: bool) -> None:
    audio = tone(0.3)
    out = make(medium_pipe, init_audio=audio, init_noise_level=0.0, official_blocks=official)
    coded = medium_pipe.decode(medium_pipe.encode_audio(*audio))
    end = 2400 - 32 * 30  # the last frames see the silence that follows the tone
    assert_close(out.audio[0][:, :end], coded[:, :end], atol=2e-3, rtol=0)


def test_full_noise_ignores_the_initial_sound(pipe: SA3Pipeline) -> None:
    plain = make(pipe)
    given = make(pipe, init_audio=tone(0.3), init_noise_level=1.0)
    assert_close(given.latents, plain.latents)
    part = make(pipe, init_audio=tone(0.3), init_noise_level=0.5)
    assert (part.latents - plain.latents).abs().max() > 1e-2


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("rate", [8000, 22050, 44100])
def test_initial_sound_of_any_rate_and_channels(
    pipe: SA3Pipeline, rate: int, channels: int
) -> None:
    reference = make(pipe, init_audio=tone(0.3), init_noise_level=0.2)
    given = make(pipe, init_audio=tone(0.3, rate=rate, channels=channels), init_noise_level=0.2)
    assert (given.latents - reference.latents).norm() < 0.05 * reference.latents.norm()


def test_a_batch_starts_from_the_same_initial_sound(pipe: SA3Pipeline) -> None:
    out = make(pipe, ["glass", "drums"], init_audio=tone(0.3), init_noise_level=0.0)
    assert_close(out.audio[0], out.audio[1])


def test_several_regions_in_a_batch_of_different_durations(pipe: SA3Pipeline) -> None:
    audio = tone(0.9)
    out = make(
        pipe, ["glass", "drums"], duration_s=[0.4, 0.8], inpaint_audio=audio,
        inpaint_regions=[(0.1, 0.2), (0.5, 0.6)],
    )  # fmt: skip
    assert [a.shape[1] for a in out.audio] == [3200, 6400]
    louder = make(
        pipe, ["glass", "drums"], duration_s=[0.4, 0.8], inpaint_audio=(audio[0] * 2, RATE),
        inpaint_regions=[(0.1, 0.2), (0.5, 0.6)],
    )  # fmt: skip
    for ours, other in zip(out.audio, louder.audio, strict=True):
        assert (ours - other).abs().max() > 1e-4


def test_what_lies_in_a_region_has_no_effect(medium_pipe: SA3Pipeline) -> None:
    """The autoencoder sees one latent to each side, so the change stays well inside."""
    wave, rate = tone(0.8)
    changed = wave.clone()
    changed[:, int(0.4 * rate) : int(0.5 * rate)] = 0.9
    outs = [
        make(
            medium_pipe, duration_s=0.8, inpaint_audio=(w, rate), inpaint_regions=[(0.2, 0.7)]
        ).latents
        for w in (wave, changed)
    ]
    assert torch.equal(outs[0], outs[1])


def test_continuation(pipe: SA3Pipeline) -> None:
    out = make(pipe, duration_s=0.8, inpaint_audio=tone(0.3), inpaint_regions=[(0.3, 0.8)])
    assert out.audio[0].shape == (2, 6400)
    with pytest.raises(ValueError, match=r"audio ends at 0\.3 s and no region covers 0\.3 to 0\.8"):
        make(pipe, duration_s=0.8, inpaint_audio=tone(0.3), inpaint_regions=[(0.1, 0.2)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inpaint_regions": [(0.1, 0.2)]}, "give inpaint_audio"),
        ({"inpaint_audio": tone(0.3)}, "no effect without inpaint_regions"),
        ({"inpaint_audio": tone(0.3), "inpaint_regions": [(0.2, 0.5)]}, "beyond the duration"),
        ({"inpaint_audio": tone(0.3), "inpaint_regions": [(0.4, 0.5)]}, "beyond the duration"),
        ({"init_audio": (torch.zeros(2, 0), RATE)}, "audio must be"),
        ({"sampler": "heun"}, "sampler must be one of"),
        ({"prompt": ["a", "b"], "duration_s": [0.1, 0.2, 0.3]}, "2 prompts, 3 durations"),
    ],
)
def test_requests_that_make_no_sense_are_refused(
    pipe: SA3Pipeline, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(pipe, **options)


def test_official_blocks_matter_only_above_128_latents(pipe: SA3Pipeline) -> None:
    short = make(pipe, duration_s=0.3)
    assert torch.equal(make(pipe, duration_s=0.3, official_blocks=True).audio[0], short.audio[0])
    long = make(pipe, duration_s=1.0)
    official = make(pipe, duration_s=1.0, official_blocks=True)
    assert torch.equal(long.latents, official.latents)
    assert_close(long.audio[0], official.audio[0], atol=0.05, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_weights_make_about_the_same_sound(
    source: ModelSource, pipe: SA3Pipeline, dtype: torch.dtype
) -> None:
    half = SA3Pipeline(source, dtype=dtype, text_encoder=pipe.text_encoder)
    ours = make(half, guidance_scale=1.0).latents
    exact = make(pipe, guidance_scale=1.0).latents
    assert ours.dtype == torch.float32
    assert (ours - exact).norm() < 0.05 * exact.norm()


def test_coding_takes_sound_of_any_rate(pipe: SA3Pipeline) -> None:
    z = pipe.encode_audio(*tone(0.3, rate=22050, channels=1))
    assert z.shape == (pipe.config.latent_channels, 75)
    assert pipe.decode(z).shape == (2, 75 * 32)
    assert pipe.decode(z[None].expand(2, -1, -1)).shape == (2, 2, 75 * 32)


def test_from_pretrained_chooses_device_and_type(small_model: Path) -> None:
    pipe = SA3Pipeline.from_pretrained(str(small_model), device="cpu")
    assert pipe.denoiser.dtype == torch.float32
    assert pipe.denoiser.device.type == "cpu"
    assert pipe.sample_rate == RATE


def test_strength_0_is_the_base_model_bit_for_bit(
    own_pipe: SA3Pipeline, pipe: SA3Pipeline, small_model: Path
) -> None:
    before = make(pipe).audio[0]
    name = own_pipe.load_adapter(small_model / "adapter_lora.safetensors")
    assert not torch.equal(make(own_pipe).audio[0], before)
    own_pipe.set_adapters([name], [0.0])
    assert torch.equal(make(own_pipe).audio[0], before)
    own_pipe.set_adapters([name], [0.7])
    own_pipe.unload_adapter(name)
    assert torch.equal(make(own_pipe).audio[0], before)


def test_the_order_of_a_stack_does_not_move_a_bit(
    source: ModelSource, pipe: SA3Pipeline, small_model: Path
) -> None:
    sounds = []
    for names in (("lora", "dora-rows"), ("dora-rows", "lora")):
        stacked = SA3Pipeline(source, text_encoder=pipe.text_encoder)
        for name in names:
            stacked.load_adapter(small_model / f"adapter_{name}.safetensors", strength=0.6)
        sounds.append(make(stacked).audio[0])
    assert torch.equal(sounds[0], sounds[1])


def test_an_adapter_without_a_base_is_one_line(
    own_pipe: SA3Pipeline, small_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    own_pipe.load_adapter(small_model / "adapter_lora.safetensors")
    (line,) = [r.getMessage() for r in caplog.records]
    assert "does not name its base, used on small: sibling" in line


def test_names_of_adapters(own_pipe: SA3Pipeline, small_model: Path) -> None:
    path = small_model / "adapter_lora.safetensors"
    assert own_pipe.load_adapter(path) == "adapter_lora"
    assert own_pipe.load_adapter(path) == "adapter_lora-2"
    with pytest.raises(AdapterError, match="there is an adapter named 'adapter_lora' already"):
        own_pipe.load_adapter(path, adapter_name="adapter_lora")
    with pytest.raises(AdapterError, match="2 adapters but 1 strengths"):
        own_pipe.set_adapters(["adapter_lora", "adapter_lora-2"], [1.0])
    with pytest.raises(AdapterError, match="vinyl"):
        own_pipe.set_adapters(["vinyl"], [1.0])
    with pytest.raises(AdapterError, match="vinyl"):
        own_pipe.unload_adapter("vinyl")


def test_adapters_not_named_go_to_0(
    own_pipe: SA3Pipeline, pipe: SA3Pipeline, small_model: Path
) -> None:
    for kind in ("lora", "dora-rows"):
        own_pipe.load_adapter(small_model / f"adapter_{kind}.safetensors", adapter_name=kind)
    own_pipe.set_adapters(["lora"], [1.0])
    alone = SA3Pipeline(own_pipe.source, text_encoder=pipe.text_encoder)
    alone.load_adapter(small_model / "adapter_lora.safetensors")
    assert torch.equal(make(own_pipe).latents, make(alone).latents)
