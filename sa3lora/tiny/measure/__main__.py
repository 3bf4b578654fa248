"""Measure an embedded model: `python -m sa3lora.tiny.measure --work DIR [--only PART]`.

Parts: `reconstruction`, `clap`, `generation`, `inpainting`, `style` (trains four adapters) and
`speed` (runs the demo). All pieces and seeds are fixed. Exits with 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from sa3lora.models import resolve_model
from sa3lora.models.clap import TinyClap
from sa3lora.models.registry import TINY_FOLDER
from sa3lora.pipeline import SA3Pipeline
from sa3lora.runs import write_json_atomic
from sa3lora.tiny.measure.clap import measure_clap
from sa3lora.tiny.measure.generation import measure_generation
from sa3lora.tiny.measure.inpainting import measure_inpainting
from sa3lora.tiny.measure.outcome import Outcome
from sa3lora.tiny.measure.pictures import draw_reconstructions
from sa3lora.tiny.measure.reconstruction import measure_reconstruction
from sa3lora.tiny.measure.speed import measure_speed
from sa3lora.tiny.measure.style import measure_style

logger = logging.getLogger("sa3lora.tiny.measure")


def measure_parts(folder: Path, work: Path) -> dict[str, Callable[[], list[Outcome]]]:
    """Give every part of the measurement of a model's folder, to be called.

    Args:
        folder: The model, with its `clap/`.
        work: A folder for datasets, runs and the demo.
    """
    pipeline = SA3Pipeline(resolve_model("tiny" if folder == TINY_FOLDER else str(folder)))
    clap = TinyClap.from_pretrained(folder / "clap")
    return {
        "reconstruction": lambda: measure_reconstruction(pipeline),
        "clap": lambda: measure_clap(clap),
        "generation": lambda: measure_generation(pipeline, clap),
        "inpainting": lambda: measure_inpainting(pipeline),
        "style": lambda: measure_style(pipeline, clap, work),
        "speed": lambda: measure_speed(pipeline, work),
    }


def main() -> int:
    """Run the parts, log their rows as Markdown, and keep the numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=TINY_FOLDER, help="folder of the model")
    parser.add_argument("--work", type=Path, required=True, help="new folder for what it makes")
    parser.add_argument("--only", action="append", metavar="PART", help="default: all parts")
    parser.add_argument("--picture", type=Path, help="also draw reconstructions as a PNG")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    args.work.mkdir(parents=True, exist_ok=True)
    parts = measure_parts(args.model, args.work)
    chosen = args.only or list(parts)
    if unknown := sorted(set(chosen) - set(parts)):
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(parts)}")
    if args.picture:
        draw_reconstructions(SA3Pipeline(resolve_model(str(args.model))), args.picture)
    outcomes: list[Outcome] = []
    for name in chosen:
        found = parts[name]()
        outcomes += found
        lines = [f"| {' | '.join(outcome.row)} |" for outcome in found]
        logger.info("%s", "\n".join(lines))
        write_json_atomic(args.work / f"{name}.json", [asdict(o) for o in found])
    return 0 if all(outcome.is_met for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
