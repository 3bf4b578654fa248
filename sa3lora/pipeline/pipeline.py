"""`SA3Pipeline`: the model's parts, loaded when needed, with a stack of adapters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from sa3lora.adapters.bases import check_bases
from sa3lora.adapters.compat import check_base
from sa3lora.adapters.files import read_adapter
from sa3lora.adapters.fold import AdapterStack, Setting, StrengthRule
from sa3lora.adapters.sites import site_shapes
from sa3lora.adapters.weights import CheckpointWeights
from sa3lora.errors import AdapterError
from sa3lora.models import (
    Conditioning,
    Denoiser,
    ModelSource,
    SameAutoencoder,
    TextEncoder,
    resolve_model,
)
from sa3lora.models.blocks import decode_latents, encode_audio
from sa3lora.pipeline.generation import GenerationOutput, Settings, complete_settings, generate
from sa3lora.pipeline.guided import Guidance
from sa3lora.pipeline.inputs import AudioInput, Region, check_request, fit_audio
from sa3lora.pipeline.lengths import HEADROOM_S
from sa3lora.recipe import official_pattern

Progress = Callable[[int, int], None]


class SA3Pipeline:
    """Generate audio with a Stable Audio 3 model and any number of adapters."""

    def __init__(
        self,
        source: ModelSource,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        denoiser: Denoiser | None = None,
        text_encoder: TextEncoder | None = None,
        strength_rule: StrengthRule = "exact",
    ) -> None:
        """Wrap a model; parts that are not given load on first use.

        Args:
            source: The model.
            device: Where to compute.
            dtype: Of the weights.
            denoiser: Transformer and conditioners that are loaded already.
            text_encoder: Stands in for the model's.
            strength_rule: `exact`, or `official` for what the released tools play: see
                `AdapterStack`.
        """
        self.source = source
        self.config = source.config
        self.device = device
        self.dtype = dtype
        self.denoiser = denoiser or source.load_denoiser(device=device, dtype=dtype)
        self.stack = AdapterStack(self.denoiser, strength_rule=strength_rule)
        if text_encoder is not None:
            self.text_encoder = text_encoder

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        *,
        device: str = "auto",
        dtype: torch.dtype | None = None,
        strength_rule: StrengthRule = "exact",
    ) -> SA3Pipeline:
        """Load by registry name, local folder or Hub id.

        Args:
            name_or_path: As `resolve_model` takes it.
            device: cuda, mps, cpu, or the best of them.
            dtype: Of the weights; float16 on CUDA and float32 elsewhere by default.
            strength_rule: As the constructor takes it.
        """
        if device == "auto":
            mps = "mps" if torch.backends.mps.is_available() else "cpu"
            device = "cuda" if torch.cuda.is_available() else mps
        if dtype is None:
            dtype = torch.float16 if device == "cuda" else torch.float32
        source = resolve_model(name_or_path)
        return cls(source, device=device, dtype=dtype, strength_rule=strength_rule)

    @cached_property
    def autoencoder(self) -> SameAutoencoder:
        """The SAME autoencoder."""
        return self.source.load_autoencoder(device=self.device, dtype=self.dtype)

    @cached_property
    def text_encoder(self) -> TextEncoder:
        """The prompt encoder."""
        return self.source.load_text_encoder(device=self.device)

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self.config.sample_rate

    def load_adapter(
        self,
        path: str | Path,
        *,
        adapter_name: str | None = None,
        strength: float = 1.0,
        conditioner_strength: float | None = None,
        skip_layers: Sequence[str] = (),
        interval: tuple[float, float] = (0.0, 1.0),
        allow_other_base: bool = False,
        hotswap: bool = False,
    ) -> str:
        """Add an adapter file to the stack and return its name.

        Args:
            path: The file.
            adapter_name: Name in the stack; by default that of the file or its run.
            strength: 0 is the base model, 1 is as trained.
            conditioner_strength: In the conditioners, where it is to differ.
            skip_layers: Patterns of layers to leave alone, as in `adapter.exclude`.
            interval: Noise levels at which it acts in the transformer, from 0 to 1.
            allow_other_base: Accept one that was trained on another model, if its shapes fit.
            hotswap: Take the place of the loaded adapter `adapter_name`, with the setting that it
                has; the other arguments then do not count.

        Raises:
            AdapterError: If the file is broken, does not fit, or the name is taken.
            AdapterMismatchError: If it was trained on another model.
        """
        adapter = read_adapter(path)
        name = adapter_name or _free_name(Path(path), self.stack.names)
        if name in self.stack.names and not hotswap:
            raise AdapterError(f"there is an adapter named {name!r} already; give another name")
        relation = check_base(
            adapter, name=self.source.name, dit_hash=self.source.dit_hash,
            shapes=site_shapes(self.denoiser), label=str(path), allow_other=allow_other_base,
        )  # fmt: skip
        if relation != "same" and not allow_other_base:
            check_bases(adapter, CheckpointWeights(self.source.weights_path), label=str(path))
        if hotswap:
            self.stack.swap(name, adapter)
            return name
        skipped = tuple(map(official_pattern, skip_layers))
        setting = Setting(strength, conditioner_strength, skipped, interval)
        self.stack.add(adapter, name, setting=setting)
        return name

    def set_adapters(self, names: Sequence[str], strengths: Sequence[float]) -> None:
        """Set the strength of the named adapters; all others go to 0."""
        if len(names) != len(strengths):
            raise AdapterError(f"{len(names)} adapters but {len(strengths)} strengths")
        wanted = dict.fromkeys(self.stack.names, 0.0) | dict(zip(names, strengths, strict=True))
        self.stack.set_strengths(wanted)

    def set_strength(
        self, adapter_name: str, strength: float, *, conditioner_strength: float | None = None
    ) -> None:
        """Set the strength of one adapter; in the conditioners too, unless they get their own."""
        setting = self.stack.setting(adapter_name)
        changed = replace(setting, strength=strength, conditioner_strength=conditioner_strength)
        self.stack.configure({adapter_name: changed})

    def limit_adapter(
        self,
        adapter_name: str,
        *,
        skip_layers: Sequence[str] = (),
        interval: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        """Keep one adapter out of some layers or to some noise levels; defaults lift that."""
        setting = self.stack.setting(adapter_name)
        skipped = tuple(map(official_pattern, skip_layers))
        changed = replace(setting, skip_layers=skipped, interval=interval)
        self.stack.configure({adapter_name: changed})

    def disable_adapters(self) -> None:
        """Play the base model until `enable_adapters`; strengths are kept."""
        self.stack.set_enabled(False)

    def enable_adapters(self) -> None:
        """Let the adapters act again as they were set."""
        self.stack.set_enabled(True)

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Take adapters off the stack; the base comes back bit for bit."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        for name in names:
            self.stack.adapter(name)  # all are known, or none is removed
        for name in names:
            self.stack.remove(name)

    def unload_adapter(self, adapter_name: str) -> None:
        """Take one adapter off the stack."""
        self.delete_adapters(adapter_name)

    @torch.no_grad()
    def condition(self, prompts: Sequence[str], durations_s: Sequence[float]) -> Conditioning:
        """Embed prompts and durations with the adapters as they are now."""
        text = self.text_encoder.encode(list(prompts))
        return self.denoiser.condition(text, torch.tensor(durations_s, device=self.device))

    @torch.no_grad()
    def encode_audio(self, audio: Tensor, sample_rate: int) -> Tensor:
        """Encode sound (K, N) of any rate and channels to latents (C, T)."""
        samples = -(-audio.shape[-1] * self.sample_rate // sample_rate)
        wave = fit_audio((audio, sample_rate), self.config, num_samples=samples)
        return encode_audio(self.autoencoder, wave.to(self.device))[0]

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (C, T) or (B, C, T) to sound of the same leading shape, clamped."""
        batch = latents if latents.ndim == 3 else latents[None]
        audio = decode_latents(self.autoencoder, batch.to(self.device)).float().clamp(-1, 1).cpu()
        return audio if latents.ndim == 3 else audio[0]

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        duration_s: float | Sequence[float],
        negative_prompt: str | Sequence[str] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance: Guidance | None = None,
        seed: int | None = None,
        sampler: str | None = None,
        init_audio: AudioInput | None = None,
        init_noise_level: float = 0.9,
        inpaint_audio: AudioInput | None = None,
        inpaint_regions: Sequence[Region] = (),
        headroom_s: float = HEADROOM_S,
        official_blocks: bool = False,
        progress: Progress | None = None,
    ) -> GenerationOutput:
        """Generate one clip a prompt.

        Args:
            prompt: One or several; a single one is repeated for several durations. "" is allowed.
            duration_s: Seconds, one or one a clip; at most the model's `max_duration_s`.
            negative_prompt: What to move away from; needs guidance above 1.
            num_inference_steps: 50 for base models and 8 for post-trained ones by default.
            guidance_scale: 7 for base models and 1 for post-trained ones by default.
            guidance: All guidance settings; its scale gives way to `guidance_scale`.
            seed: Random by default; the one used is returned.
            sampler: `euler` for base models and `pingpong` for post-trained ones by default.
            init_audio: Start from this sound (audio-to-audio) ...
            init_noise_level: ... after this much noise, 0 returns it and 1 ignores it.
            inpaint_audio: Keep this sound outside `inpaint_regions`.
            inpaint_regions: Seconds to make anew. To continue a sound, name its end to the
                duration.
            headroom_s: Seconds computed beyond the end, so that the end can fade.
            official_blocks: Encode and decode in the official overlapping blocks, for the same
                sound from the same seed as the official code also above 128 latents.
            progress: Called with (steps done, steps).

        Raises:
            ValueError: If durations, regions, lists or samplers do not fit; the message says how.
        """
        request = check_request(prompt, negative_prompt, duration_s)
        settings = Settings(
            steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance=guidance or Guidance(),
            sampler=sampler,
            seed=seed,
            init_audio=init_audio,
            init_noise_level=init_noise_level,
            inpaint_audio=inpaint_audio,
            inpaint_regions=tuple(inpaint_regions),
            headroom_s=headroom_s,
            official_blocks=official_blocks,
        )
        return generate(self, request, complete_settings(settings, self.config), progress=progress)


def _free_name(path: Path, taken: Sequence[str]) -> str:
    """Name an adapter after its file, or its run folder when the file is called adapter."""
    name = path.stem if path.stem != "adapter" else path.resolve().parent.name
    number = 2
    unique = name
    while unique in taken:
        unique, number = f"{name}-{number}", number + 1
    return unique
