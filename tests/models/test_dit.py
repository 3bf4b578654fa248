from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sa3lora.models import Denoiser, ModelSource

FRAMES = 15


def inputs(source: ModelSource, *, batch: int, frames: int = FRAMES) -> dict[str, Any]:
    dit = source.config.dit
    assert dit is not None
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "x": normal(batch, dit.io_channels, frames),
        "t": torch.linspace(0.2, 0.9, batch),
        "cross": normal(batch, 7, dit.cond_token_dim),
        "global_cond": normal(batch, dit.global_cond_dim),
        "local": normal(batch, dit.local_add_cond_dim, frames),
    }


@torch.no_grad()
def velocity(denoiser: Denoiser, given: dict[str, Any], **changed: Any) -> Tensor:
    all_given = given | changed
    x, t = all_given.pop("x"), all_given.pop("t")
    out: Tensor = denoiser.model(x, t, **all_given)
    return out


@pytest.mark.parametrize("lengths", [(15, 6), (9, 15), (1, 15), (6, 6)])
def test_a_clip_in_a_padded_batch_is_what_it_is_alone(
    source: ModelSource, denoiser: Denoiser, lengths: tuple[int, int]
) -> None:
    given = inputs(source, batch=2)
    mask = torch.arange(FRAMES) < torch.tensor(lengths)[:, None]
    for name in ("x", "local"):  # what lies in the padding must not matter
        given[name] = torch.where(mask[:, None], given[name], 100.0)
    batched = velocity(denoiser, given, mask=mask)
    for row, n in enumerate(lengths):
        alone = {key: value[row : row + 1] for key, value in given.items()}
        alone = {k: v[..., :n] if k in ("x", "local") else v for k, v in alone.items()}
        assert_close(batched[row : row + 1, :, :n], velocity(denoiser, alone), atol=2e-6, rtol=1e-5)


def test_a_full_mask_is_no_mask(source: ModelSource, denoiser: Denoiser) -> None:
    given = inputs(source, batch=2)
    mask = torch.ones(2, FRAMES, dtype=torch.bool)
    assert_close(velocity(denoiser, given, mask=mask), velocity(denoiser, given))


def test_items_of_a_batch_do_not_see_each_other(source: ModelSource, denoiser: Denoiser) -> None:
    given = inputs(source, batch=3)
    order = [2, 0, 1]
    turned = velocity(denoiser, {key: value[order] for key, value in given.items()})
    assert_close(turned, velocity(denoiser, given)[order])


@pytest.mark.parametrize("name", ["x", "t", "cross", "global_cond", "local"])
def test_every_input_matters(source: ModelSource, denoiser: Denoiser, name: str) -> None:
    given = inputs(source, batch=1)
    before = velocity(denoiser, given)
    after = velocity(denoiser, given, **{name: given[name] + 0.1})
    assert (after - before).abs().max() > 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_noise_level_keeps_float32_beside_half_weights(
    source: ModelSource, dtype: torch.dtype
) -> None:
    half = source.load_denoiser(dtype=dtype)
    given = inputs(source, batch=1)
    # these two are the same number in either half type
    near, far = torch.tensor([0.5]), torch.tensor([0.5 + 1e-4])
    assert near.to(dtype) == far.to(dtype)
    assert not torch.equal(velocity(half, given, t=near), velocity(half, given, t=far))
    assert velocity(half, given).dtype == dtype


def test_half_weights_give_about_the_same(source: ModelSource, denoiser: Denoiser) -> None:
    given = inputs(source, batch=1)
    exact = velocity(denoiser, given)
    rough = velocity(source.load_denoiser(dtype=torch.bfloat16), given).float()
    assert (rough - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize(("num_blocks", "frugal"), [(2, False), (1, False), (1, True), (0, True)])
def test_what_is_made_again_changes_neither_result_nor_gradient(
    source: ModelSource, num_blocks: int, frugal: bool
) -> None:
    denoiser = source.load_denoiser()
    given = inputs(source, batch=1)
    context = {key: given[key].clone() for key in ("cross", "global_cond", "local")}
    results = []
    for chosen in (
        {"num_blocks": 0, "frugal": False},
        {"num_blocks": num_blocks, "frugal": frugal},
    ):
        denoiser.model.set_recomputation(**chosen)
        leaves = [given["x"].clone(), *(value.clone() for value in context.values())]
        for leaf in leaves:
            leaf.requires_grad_()
        x, *others = leaves
        y = denoiser.model(x, given["t"], **dict(zip(context, others, strict=True)))
        results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    assert torch.equal(results[0][0], results[1][0])
    for one, two in zip(*results, strict=True):
        # `remade` leaves only the order open in which gradients of one tensor are summed
        torch.testing.assert_close(
            one,
            two,
            rtol=1e-5 if frugal else 0,
            atol=1e-6 * one.detach().abs().max().item() if frugal else 0,
        )


def test_gradient_checkpointing_means_every_block(source: ModelSource) -> None:
    model = source.load_denoiser().model
    for wanted in (True, False):
        model.gradient_checkpointing = wanted
        assert model.gradient_checkpointing is wanted
    model.set_recomputation(num_blocks=len(model.transformer.layers) - 1)
    assert not model.gradient_checkpointing


def test_a_new_model_starts_with_closed_branches(source: ModelSource) -> None:
    fresh = Denoiser(source.config)
    given = inputs(source, batch=1)
    before = velocity(fresh, given)
    for name in ("cross", "local"):
        assert torch.equal(velocity(fresh, given, **{name: given[name] * 2}), before)
