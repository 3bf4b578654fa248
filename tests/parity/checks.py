"""What is compared with the official code, group by group of `io.safetensors`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sa3lora.flow.coupling import greedy_assignment, sinkhorn_plan
from sa3lora.flow.objective import flow_loss, interpolate, masked_mse, pooled_mse
from sa3lora.flow.samplers import sample
from sa3lora.flow.schedules import make_schedule
from sa3lora.flow.shifts import SAMPLING_DEFAULT, shift
from sa3lora.flow.timesteps import trunc_logit_normal_q
from sa3lora.models.blocks import decode_official, encode_official
from sa3lora.models.same import SameAutoencoder
from sa3lora.pipeline import Guidance, GuidedVelocity, SA3Pipeline
from tests.parity import adapters
from tests.parity.case import Case


def autoencoder(case: Case) -> None:
    ae = case.autoencoder
    for group in ("ae_even", "ae_ragged"):
        case.compare(f"{group}.latents", ae.encode(case[f"{group}.audio"]))
        case.compare(f"{group}.decoded", ae.decode(case[f"{group}.free"]))


def autoencoder_in_official_blocks(case: Case) -> None:
    ae = case.autoencoder
    for group in ("ae_chunked", "ae_chunked_tight"):
        p = case.parameters[group]
        size: dict[str, int] = {"chunk": p["chunk_size"], "overlap": p["overlap"]}
        case.compare(f"{group}.latents", encode_official(ae, case[f"{group}.audio"], **size))
        case.compare(f"{group}.decoded", decode_official(ae, case[f"{group}.free"], **size))


def autoencoder_noise(case: Case) -> None:
    p = case.parameters["ae_noise"]
    config = case.source.config.same
    decoder = dataclasses.replace(config.decoder, mask_noise=p["decoder_mask_noise"])
    noisy = dataclasses.replace(config, decoder=decoder, noise_regularize=p["noise_regularize"])
    ae = SameAutoencoder(noisy)
    ae.load_state_dict(case.autoencoder.state_dict())
    generator = torch.Generator().manual_seed(p["seed"])
    case.compare("ae_noise.decoded", ae.decode(case["ae_noise.free"], generator=generator))


def conditioners(case: Case) -> None:
    cond = case.conditioning
    case.compare("cond.prompt", cond.cross[:, :-1])
    case.compare("cond.seconds", cond.cross[:, -1:])
    case.compare("cond.prompt_mask", cond.mask[:, :-1].to(case["cond.prompt_mask"].dtype))


def _local(case: Case) -> dict[str, Tensor]:
    return {"keep": case["dit.mask"][:, 0], "known": case["dit.known"]}


def _real(lengths: Any, frames: int) -> Tensor:
    return torch.arange(frames) < torch.as_tensor(lengths)[:, None]


def transformer(case: Case) -> None:
    x, t = case["dit.x"], case["dit.t"]
    v = case.denoiser.velocity(x, t, case.conditioning, **_local(case))
    case.compare("dit.velocity", v)


def transformer_with_padding(case: Case) -> None:
    x, t = case["dit.x"], case["dit.t"]
    mask = _real(case["dit_varlen.lengths"], x.shape[-1])
    v = case.denoiser.velocity(x, t, case.conditioning, mask=mask, **_local(case))
    case.compare("dit_varlen.velocity", v * mask[:, None])


def _guided(case: Case, p: dict[str, Any], mask: Tensor | None = None) -> GuidedVelocity:
    negative = None
    if "negative_prompt" in p:  # the text may be followed by a remark in brackets
        text = p["negative_prompt"].split(" (")[0]
        negative = case.condition([text] * len(case.parameters["cond"]["prompts"]))
    x = case["dit.x"]
    guidance = Guidance(
        scale=p["cfg"],
        apg_scale=p.get("apg", 1.0),
        interval=tuple(p.get("cfg_interval", (0.0, 1.0))),
        norm_threshold=p.get("cfg_norm_threshold", 0.0),
        rescale=p.get("scale_phi", 0.0),
    )
    if mask is None:
        mask = torch.ones(x.shape[0], x.shape[-1], dtype=torch.bool)
    return GuidedVelocity(
        case.denoiser, case.conditioning, negative, guidance, mask, **_local(case)
    )


def guidance(case: Case) -> None:
    for name, p in case.parameters["dit_cfg"].items():
        v = _guided(case, p)(case["dit.x"], case["dit.t"])
        case.compare(f"dit_cfg.{name}", v, guided=True)


def guidance_with_padding(case: Case) -> None:
    for name, p in case.parameters["dit_padded"].items():
        mask = _real(p["lengths"], case["dit.x"].shape[-1])
        v = _guided(case, p, mask)(case["dit.x"], case["dit.t"])
        case.compare(f"dit_padded.{name}", v * mask[:, None], guided=True)


def samplers(case: Case) -> None:
    for name, p in case.parameters["samplers"].items():
        if not isinstance(p, dict):
            continue
        noise, level = case[f"sample_{name}.noise"], p.get("init_noise_level", 1.0)
        start = noise
        if "init_noise_level" in p:
            start = interpolate(case[f"sample_{name}.init"], noise, level)
        key = f"sample_{name}.renoise"
        latents = sample(
            _guided(case, p),
            start,
            schedule=make_schedule(p["steps"], length=noise.shape[-1], sigma_max=level),
            sampler=p.get("sampler", name),
            renoise=case[key] if key in case else None,  # noqa: SIM401 - a case has no get
        )
        case.compare(f"sample_{name}.latents", latents, guided=p["cfg"] != 1)
    _initial_noise_is_shared(case)


def generation(case: Case) -> None:
    group = case.parameters["generate"]
    pipeline = SA3Pipeline(case.source)
    for name, run in group["runs"].items():
        p = run if name == "two_lengths" else group["common"] | run
        out = pipeline(
            p["prompt"],
            duration_s=p["duration"],
            negative_prompt=p.get("negative_prompt"),
            num_inference_steps=p["steps"],
            guidance_scale=p["cfg_scale"],
            seed=p["seed"],
            sampler=p["sampler_type"],
            headroom_s=p["duration_padding_sec"],
            **_given_audio(case, name, p),
        )
        key = f"generate_{name}.audio"
        case.compare(key, out.padded[..., : case[key].shape[-1]], guided=True)


def _initial_noise_is_shared(case: Case) -> None:
    """Eight ping-pong steps forget their first noise, so its tensor is checked by its twins."""
    noises = [case[f"sample_{name}.noise"] for name in ("euler", "dpmpp", "rk4", "init")]
    if all(torch.equal(noise, noises[0]) for noise in noises):
        case.compare("sample_pingpong.noise", noises[0])


def _given_audio(case: Case, name: str, p: dict[str, Any]) -> dict[str, Any]:
    rate, source = case.source.config.sample_rate, case["generate.source"]
    if "init_noise_level" in p:
        return {"init_audio": (source, rate), "init_noise_level": p["init_noise_level"]}
    if "inpaint_mask_start_seconds" not in p:
        return {}
    starts, ends = (
        x if isinstance(x, list) else [x]
        for x in (p["inpaint_mask_start_seconds"], p["inpaint_mask_end_seconds"])
    )
    if name == "continuation":
        latents = case.parameters["generate"]["continuation_source_latents"]
        source = source[:, : latents * case.source.config.downsampling_ratio]
    regions = list(zip(starts, ends, strict=True))
    return {"inpaint_audio": (source, rate), "inpaint_regions": regions}


def timesteps(case: Case) -> None:
    case.compare("timesteps.q", trunc_logit_normal_q(case["timesteps.normal"]))


def shifts(case: Case) -> None:
    t = case["shift.t"]
    lengths = case["shift.train_lengths"].float()[:, None]
    options = case.source.config.training_shift
    case.compare("shift.train", shift(t[None], lengths, options=options))
    two = torch.tensor([[8.0], [128.0]])  # any lengths: the sampling shift has rate 0
    case.compare("shift.sampling", shift(t[None], two, options=SAMPLING_DEFAULT))
    case.compare("shift.schedule8", make_schedule(8, length=24))


def coupling(case: Case) -> None:
    plan = sinkhorn_plan(case["ot.data"], case["ot.noise"])
    case.compare("ot.plan", plan)
    # the plan is nearly uniform; what is not shows whether the inputs were the same
    case.compare("ot.plan", plan, centred=True)
    case.compare("ot.permutation", greedy_assignment(plan))


def loss(case: Case) -> None:
    prediction, target, mask = case["loss.pred"], case["loss.target"], case["loss.mask"]
    case.compare("loss.value", masked_mse(prediction, target, mask))
    case.compare("loss.signal", pooled_mse(prediction, target, mask))
    parts = flow_loss(prediction, target, mask, case["loss.inpaint_keep"], context_weight=1.0)
    case.compare("loss.generated", parts.signal)
    case.compare("loss.context", parts.context)
    case.compare("loss.total", parts.total)


CHECKS: dict[str, Callable[[Case], None]] = {
    check.__name__: torch.no_grad()(check)
    for check in (
        autoencoder, autoencoder_in_official_blocks, autoencoder_noise, conditioners, transformer,
        transformer_with_padding, guidance, guidance_with_padding, samplers, generation, timesteps,
        shifts, coupling, loss, *adapters.checks(),
    )
}  # fmt: skip
