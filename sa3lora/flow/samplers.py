"""Solvers that lead noise to data along a velocity.

A schedule is one row of times for the whole batch, (steps + 1,), or a row for each item,
(B, steps + 1). With a table, `euler` and `pingpong` round times to the dtype of the latents, as
the released code does: keep latents in float32 and let the model cast, or half precision will
blur the times that the model sees.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

SAMPLERS: Final = ("euler", "pingpong", "dpmpp", "rk4")
MIN_TIME: Final = 1e-10  # keeps divisions by t and 1 - t finite
RK4_LAST_TIME: Final = 1e-5  # guidance divides by t, so the last stage stops short of 0

VelocityFn = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SamplerStep:
    """What a callback sees before a step is taken.

    Attributes:
        i: Index of the step, from 0.
        t: Time of each item, (B,).
        x: Latents at that time, (B, C, T).
        denoised: Estimate of the data from there, (B, C, T).
    """

    i: int
    t: Tensor
    x: Tensor
    denoised: Tensor


Callback = Callable[[SamplerStep], None]


def sample(
    velocity_fn: VelocityFn,
    noise: Tensor,
    *,
    schedule: Tensor,
    sampler: str,
    generator: torch.Generator | None = None,
    renoise: Tensor | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Integrate a velocity from the first time of a schedule to the last.

    Args:
        velocity_fn: Called with latents (B, C, T) and times (B,), float32.
        noise: Latents at the first time, (B, C, T).
        schedule: (steps + 1,) or (B, steps + 1). All zeros gives back `noise` untouched.
        sampler: One of `SAMPLERS`.
        generator: For "pingpong": draws one noise a step, the last included (where it counts for
            nothing, but moves the generator). None is the global generator.
        renoise: For "pingpong": these noises instead, (steps, B, C, T).
        callback: Called once a step.

    Returns:
        Latents at the last time, (B, C, T).

    Raises:
        ValueError: If the sampler is unknown, or schedule or renoise have another shape.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
    _check_shapes(noise, schedule, renoise=renoise)
    if not bool(schedule.any()):
        return noise
    if sampler == "pingpong":
        return _pingpong(
            velocity_fn,
            noise,
            schedule=schedule,
            callback=callback,
            generator=generator,
            renoise=renoise,
        )
    solver = {"euler": _euler, "dpmpp": _dpmpp, "rk4": _rk4}[sampler]
    return solver(velocity_fn, noise, schedule=schedule, callback=callback)


def _euler(
    velocity_fn: VelocityFn, x: Tensor, *, schedule: Tensor, callback: Callback | None
) -> Tensor:
    """Follow the velocity in straight steps."""
    for i in range(schedule.shape[-1] - 1):
        t = _time(schedule, i, x=x, round_to_x=True)
        t_next = _time(schedule, i + 1, x=x, round_to_x=True)
        v = velocity_fn(x, _per_item(t, x))
        _report(callback, i, x=x, t=t, denoised=x - t * v)
        x = x + (t_next - t) * v
    return x


def _pingpong(
    velocity_fn: VelocityFn,
    x: Tensor,
    *,
    schedule: Tensor,
    callback: Callback | None,
    generator: torch.Generator | None,
    renoise: Tensor | None,
) -> Tensor:
    """Estimate the data, then noise it again, at every step."""
    for i in range(schedule.shape[-1] - 1):
        t = _time(schedule, i, x=x, round_to_x=True)
        t_next = _time(schedule, i + 1, x=x, round_to_x=True)
        denoised = x - t * velocity_fn(x, _per_item(t, x))
        _report(callback, i, x=x, t=t, denoised=denoised)
        if renoise is not None:
            fresh = renoise[i].to(x)
        else:
            device = x.device if generator is None else generator.device
            fresh = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=device).to(x)
        x = (1 - t_next) * denoised + t_next * fresh
    return x


def _dpmpp(
    velocity_fn: VelocityFn, x: Tensor, *, schedule: Tensor, callback: Callback | None
) -> Tensor:
    """Extrapolate the data estimate in log-SNR (DPM-Solver++(2M), Lu et al., 2022)."""
    previous: Tensor | None = None
    for i in range(schedule.shape[-1] - 1):
        t, t_next = _time(schedule, i, x=x), _time(schedule, i + 1, x=x)
        denoised = x - t * velocity_fn(x, _per_item(t, x))
        _report(callback, i, x=x, t=t, denoised=denoised)
        estimate = denoised
        if previous is not None:
            before = _log_snr(_time(schedule, i - 1, x=x))
            r = (_log_snr(t) - before) / (_log_snr(t_next) - _log_snr(t))
            second_order = (1 + 1 / (2 * r)) * denoised - (1 / (2 * r)) * previous
            estimate = torch.where(t_next == 0, denoised, second_order)
        floor = t.clamp(min=MIN_TIME)
        beta = (t_next - t) / ((1 - t_next).clamp(min=MIN_TIME) * floor)
        x = (t_next / floor) * x - (1 - t_next) * beta * estimate
        previous = denoised
    return x


def _rk4(
    velocity_fn: VelocityFn, x: Tensor, *, schedule: Tensor, callback: Callback | None
) -> Tensor:
    """Classical Runge-Kutta of order 4."""
    for i in range(schedule.shape[-1] - 1):
        t, t_next = _time(schedule, i, x=x), _time(schedule, i + 1, x=x)
        h = t_next - t
        middle = t + h / 2
        k1 = velocity_fn(x, _per_item(t, x))
        _report(callback, i, x=x, t=t, denoised=x - t * k1)
        k2 = velocity_fn(x + h / 2 * k1, _per_item(middle, x))
        k3 = velocity_fn(x + h / 2 * k2, _per_item(middle, x))
        k4 = velocity_fn(x + h * k3, _per_item(t_next.clamp(min=RK4_LAST_TIME), x))
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x


def _time(schedule: Tensor, i: int, *, x: Tensor, round_to_x: bool = False) -> Tensor:
    """Pick one time as a scalar tensor (no table) or (B, 1, 1), so that it multiplies latents."""
    t = schedule[..., i].to(x.device)
    if schedule.ndim == 1:
        return t
    return (t.to(x.dtype) if round_to_x else t)[:, None, None]


def _per_item(t: Tensor, x: Tensor) -> Tensor:
    """Spread a time over the batch, (B,), never narrower than float32."""
    return t.to(torch.promote_types(t.dtype, torch.float32)).reshape(-1).expand(len(x))


def _log_snr(t: Tensor) -> Tensor:
    return torch.log((1 - t).clamp(min=MIN_TIME) / t.clamp(min=MIN_TIME))


def _report(callback: Callback | None, i: int, *, x: Tensor, t: Tensor, denoised: Tensor) -> None:
    if callback is not None:
        callback(SamplerStep(i=i, t=_per_item(t, x), x=x, denoised=denoised))


def _check_shapes(noise: Tensor, schedule: Tensor, *, renoise: Tensor | None) -> None:
    if schedule.ndim not in (1, 2) or schedule.shape[-1] < 2:
        raise ValueError(
            f"schedule must be (steps + 1,) or (B, steps + 1), got {tuple(schedule.shape)}"
        )
    if schedule.ndim == 2 and len(schedule) != len(noise):
        raise ValueError(f"schedule has {len(schedule)} rows for a batch of {len(noise)}")
    expected = (schedule.shape[-1] - 1, *noise.shape)
    if renoise is not None and renoise.shape != expected:
        raise ValueError(
            f"renoise must be (steps, B, C, T) = {expected}, got {tuple(renoise.shape)}"
        )
