"""Spectrograms of held-out pieces above their reconstructions, for the model card."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sa3lora.pipeline import SA3Pipeline
from sa3lora.tiny.measure.reconstruction import held_out_pieces, log_mels, reconstruct
from sa3lora.tiny.shape import SAMPLE_RATE

_COUNT, _SECONDS = 3, 6.0


def draw_reconstructions(pipeline: SA3Pipeline, path: Path) -> None:
    """Draw three pieces, each above what its latents keep, as a PNG."""
    from matplotlib.figure import Figure

    pieces = held_out_pieces(_COUNT, seconds=_SECONDS)
    rows = [
        log_mels(sound).mean(dim=1) / np.log(10) * 20
        for sound in (pieces, reconstruct(pipeline, pieces))
    ]
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots(2, _COUNT, sharex=True, sharey=True)
    for line, (spectra, label) in enumerate(zip(rows, ("piece", "reconstruction"), strict=True)):
        for column, spectrum in enumerate(spectra):
            axis = axes[line, column]
            axis.imshow(
                spectrum, origin="lower", aspect="auto", vmin=-60, vmax=-10, cmap="magma",
                extent=(0, pieces.shape[-1] / SAMPLE_RATE, 0, spectrum.shape[0]),
            )  # fmt: skip
            axis.set_title(f"{label} {column + 1}", fontsize=9)
    figure.supxlabel("seconds", fontsize=9)
    figure.supylabel("mel band, -60 to -10 dB", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
