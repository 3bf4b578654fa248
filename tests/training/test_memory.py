from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sa3lora.models.config_parse import parse_config
from sa3lora.models.fixtures import released_config
from sa3lora.training.bench_fits import CARDS_GB, what_fits
from sa3lora.training.frozen import FrozenBytes
from sa3lora.training.memory import (
    Recomputation,
    StepMemory,
    choose_recomputation,
    free_memory,
    largest_fit,
)


def _memory(name: str = "small-music-base", *, compute: torch.dtype = torch.float32) -> StepMemory:
    dit = parse_config(released_config(name)).dit
    assert dit is not None
    return StepMemory(dit, 460_000_000, 10_000_000, compute.itemsize, compute)


def _activations(memory: StepMemory, how: Recomputation, *, frames: int = 512) -> int:
    return memory.activations(how, num_frames=frames, batch=1)


# Units of 576 tokens x width that autograd keeps of a block at 512 frames with r 16 on every layer,
# counted with saved_tensors_hooks over the storages of three blocks less those of one.
@pytest.mark.parametrize(
    ("name", "compute", "frugal", "units"),
    [
        ("small-music-base", torch.float32, False, (40.87, 43.42)),
        ("small-music-base", torch.float32, True, (22.37, 24.92)),
        ("small-music-base", torch.bfloat16, False, (50.39, 54.60)),
        ("small-music-base", torch.bfloat16, True, (22.93, 26.15)),
        ("medium-base", torch.float32, False, (51.36, 62.39)),
        ("medium-base", torch.float32, True, (27.92, 30.61)),
        ("medium-base", torch.bfloat16, False, (62.07, 73.90)),
        ("medium-base", torch.bfloat16, True, (28.62, 32.11)),
    ],
)
def test_a_block_keeps_what_was_counted(
    name: str, compute: torch.dtype, frugal: bool, units: tuple[float, float]
) -> None:
    trained = {"small-music-base": 10_309_952, "medium-base": 20_713_856}[name]
    for magnitudes, counted in zip((False, True), units, strict=True):
        memory = replace(_memory(name, compute=compute), magnitudes=magnitudes, num_trained=trained)
        how = Recomputation(frugal=frugal)
        one, two = (
            memory.activations(how, num_frames=512, batch=1, depth=depth) for depth in (1, 2)
        )
        unit = 576 * memory.dit.embed_dim * compute.itemsize
        assert (two - one) / unit == pytest.approx(counted, rel=0.06)


def test_the_modes_are_in_order() -> None:
    memory = _memory()
    sizes = [
        _activations(memory, how)
        for how in (
            Recomputation(),
            Recomputation(frugal=True),
            Recomputation(3, frugal=True),
            Recomputation(20),
        )
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 4


def test_lean_is_at_most_60_percent_of_fast() -> None:
    memory = _memory()
    modes = [
        choose_recomputation(wanted, memory, num_frames=512, batch=1, free=1)
        for wanted in ("lean", "fast")
    ]
    lean, fast = (_activations(memory, how) + memory.trained for how in modes)
    assert lean <= 0.6 * fast


def test_activations_grow_with_frames_and_clips() -> None:
    memory, how = _memory(), Recomputation()
    assert _activations(memory, how, frames=1024) > _activations(memory, how, frames=512)
    two = memory.activations(how, num_frames=512, batch=2)
    # but for what libraries take once
    assert two == pytest.approx(2 * _activations(memory, how), rel=0.02)


def test_auto_recomputes_nothing_where_all_fits_and_never_more_than_needed() -> None:
    memory = _memory()
    shape = {"num_frames": 512, "batch": 1}
    full = memory.total(Recomputation(), **shape)
    assert choose_recomputation("auto", memory, **shape, free=2 * full) == Recomputation()
    chosen = choose_recomputation("auto", memory, **shape, free=full)
    assert chosen.frugal
    assert memory.total(chosen, **shape) <= 0.85 * full
    if chosen.num_blocks:
        less = replace(chosen, num_blocks=chosen.num_blocks - 1)
        assert memory.total(less, **shape) > 0.85 * full
    everything = choose_recomputation("auto", memory, **shape, free=1)
    assert everything.num_blocks == memory.dit.depth


def test_auto_chooses_whole_blocks_where_every_bit_counts() -> None:
    memory = _memory()
    shape = {"num_frames": 512, "batch": 1}
    full = memory.total(Recomputation(), **shape)
    chosen = choose_recomputation("auto", memory, **shape, free=full, bit_exact=True)
    assert chosen.num_blocks > 0
    assert not chosen.frugal


def test_what_a_recipe_says_is_done() -> None:
    memory = _memory()
    shape = {"num_frames": 512, "batch": 1, "free": 1}
    assert choose_recomputation(False, memory, **shape) == Recomputation()
    assert choose_recomputation("fast", memory, **shape) == Recomputation()
    assert choose_recomputation(True, memory, **shape) == Recomputation(20)
    assert choose_recomputation(0.5, memory, **shape) == Recomputation(10, frugal=True)
    assert choose_recomputation(0.0, memory, **shape) == Recomputation(frugal=True)


def test_a_device_that_tells_nothing_gets_the_least_memory() -> None:
    memory = _memory()
    chosen = choose_recomputation("auto", memory, num_frames=512, batch=1, free=None)
    assert chosen.num_blocks == memory.dit.depth


def test_the_largest_fit_fits_and_one_frame_in_a_hundred_more_does_not() -> None:
    memory, budget = _memory("medium-base", compute=torch.bfloat16), 8 * 10**9
    found = largest_fit(memory, budget, hows=[Recomputation()], limit=4096)
    assert found is not None
    how, frames = found
    assert memory.total(how, num_frames=frames, batch=1) <= 0.85 * budget
    assert memory.total(how, num_frames=frames + frames // 100 + 1, batch=1) > 0.85 * budget


def _frozen(memory: StepMemory) -> dict[str, FrozenBytes]:
    sizes = {"bfloat16": 2, "float32": 4}
    return {name: FrozenBytes(size * memory.num_base) for name, size in sizes.items()}


def test_a_larger_card_or_a_smaller_base_never_fits_less() -> None:
    memory = _memory("medium-base", compute=torch.bfloat16)
    fits = what_fits(memory, frozen=_frozen(memory), longest=4096)
    assert {fit.card_gb for fit in fits} == set(CARDS_GB)
    most = {(fit.card_gb, fit.base_dtype): fit.recomputation for fit in fits}
    assert len(most) == 2 * len(CARDS_GB)
    by_card = [fit for fit in fits if fit.base_dtype == "bfloat16" and fit.num_frames]
    reach = [min(fit.num_frames or 0, 4096) for fit in by_card]
    assert reach == sorted(reach)


def test_a_model_too_large_for_a_card_is_said_not_to_fit() -> None:
    huge = replace(_memory(), num_base=10**11)
    fits = what_fits(huge, frozen=_frozen(huge), longest=100)
    assert all(fit.num_frames is None for fit in fits)


def test_a_weight_made_of_few_bits_has_its_place_beside_them() -> None:
    memory = _memory()
    held = replace(memory, unpacking=1000)
    shape = {"num_frames": 512, "batch": 1}
    how = Recomputation()
    assert held.total(how, **shape) == memory.total(how, **shape) + 1000


def test_free_memory_of_a_cpu_is_what_the_system_says() -> None:
    free = free_memory(torch.device("cpu"))
    assert free is None or free > 10**6
    assert free_memory(torch.device("meta")) is None
