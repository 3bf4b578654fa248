from __future__ import annotations

import io
import random

import numpy as np
import torch
from torch import Generator

from sa3lora.training.rng import collect_rng, restore_rng, undisturbed_rng


def _draw(generator: Generator) -> list[float]:
    return [
        random.random(),
        float(np.random.standard_normal()),
        float(torch.rand(())),
        float(torch.rand((), generator=generator)),
    ]


def test_restored_generators_draw_the_same_again_even_through_a_file() -> None:
    generator = Generator().manual_seed(3)
    _draw(generator)  # leaves half of a normal pair in numpy's state
    file = io.BytesIO()
    torch.save(collect_rng({"one": generator}), file)
    first = _draw(generator)
    file.seek(0)
    restore_rng(torch.load(file, weights_only=True), {"one": generator})
    assert _draw(generator) == first


def test_a_block_that_seeds_everything_leaves_no_trace() -> None:
    with undisturbed_rng():
        before = [random.random(), float(np.random.rand()), float(torch.rand(()))]
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        assert before  # drawn inside, so it comes again below
    assert [random.random(), float(np.random.rand()), float(torch.rand(()))] == before
