"""Pure functions of tensors: time, path, coupling, inpainting, loss, guidance and samplers."""

from .coupling import (
    COUPLINGS,
    couple_across,
    couple_noise,
    exact_assignment,
    greedy_assignment,
    pairwise_cost,
    sinkhorn_plan,
)
from .features import expo_fourier_features
from .guidance import guided_velocity, is_active
from .inpaint import (
    RELEASED_PROBABILITIES,
    regions_to_latent_mask,
    sample_keep_mask,
    samples_to_latent_mask,
)
from .objective import (
    NORMALISATIONS,
    FlowLoss,
    extend_mask,
    flow_loss,
    frame_mask,
    interpolate,
    masked_mse,
    pooled_mse,
    rescale_lengths,
    sample_dropout,
    velocity_target,
)
from .samplers import SAMPLERS, Callback, SamplerStep, VelocityFn, sample
from .schedules import make_schedule
from .shifts import (
    SAMPLING_DEFAULT,
    effective_length,
    shift,
    shift_flux,
    shift_full,
    shift_logsnr,
)
from .timesteps import TIMESTEP_LAWS, sample_timesteps, trunc_logit_normal_q
from .weighting import min_snr_weight

__all__ = [
    "COUPLINGS",
    "NORMALISATIONS",
    "RELEASED_PROBABILITIES",
    "SAMPLERS",
    "SAMPLING_DEFAULT",
    "TIMESTEP_LAWS",
    "Callback",
    "FlowLoss",
    "SamplerStep",
    "VelocityFn",
    "couple_across",
    "couple_noise",
    "effective_length",
    "exact_assignment",
    "expo_fourier_features",
    "extend_mask",
    "flow_loss",
    "frame_mask",
    "greedy_assignment",
    "guided_velocity",
    "interpolate",
    "is_active",
    "make_schedule",
    "masked_mse",
    "min_snr_weight",
    "pairwise_cost",
    "pooled_mse",
    "regions_to_latent_mask",
    "rescale_lengths",
    "sample",
    "sample_dropout",
    "sample_keep_mask",
    "sample_timesteps",
    "samples_to_latent_mask",
    "shift",
    "shift_flux",
    "shift_full",
    "shift_logsnr",
    "sinkhorn_plan",
    "trunc_logit_normal_q",
    "velocity_target",
]
