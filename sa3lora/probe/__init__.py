"""Paired losses of two models on fixed draws, so that their difference has little noise."""

from sa3lora.probe.draws import (
    Draws,
    StepLoss,
    couple_draws,
    draw_step,
    draw_uncoupled,
    loss_of_draws,
    predict_velocity,
)
from sa3lora.probe.gap import Gap, gap_between
from sa3lora.probe.paired import PairedDifference, mean_by_track, paired_difference
from sa3lora.probe.probe_set import ProbeItem, ProbeSet, like_lengths, round_robin
from sa3lora.probe.strengths import StrengthSearch, search_strengths

__all__ = [
    "Draws",
    "Gap",
    "PairedDifference",
    "ProbeItem",
    "ProbeSet",
    "StepLoss",
    "StrengthSearch",
    "couple_draws",
    "draw_step",
    "draw_uncoupled",
    "gap_between",
    "like_lengths",
    "loss_of_draws",
    "mean_by_track",
    "paired_difference",
    "predict_velocity",
    "round_robin",
    "search_strengths",
]
