from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sa3lora.errors import RecipeError
from sa3lora.recipe import OptimSection
from sa3lora.training.optimizers import (
    Optimizer,
    check_optim,
    effective_rate,
    make_optimizer,
    set_rate,
)

NAMES = ["adamw", "adamw8bit", "prodigy", "muon"]


def _parameters() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return {
        "site.lora_A": nn.Parameter(torch.randn(4, 6, generator=generator)),
        "site.lora_B": nn.Parameter(torch.randn(5, 4, generator=generator)),
        "site.magnitude": nn.Parameter(torch.ones(5)),
    }


def _step(optim: OptimSection, gradient: float | None = None) -> dict[str, Tensor]:
    """Take one step and give how far each tensor moved."""
    parameters = _parameters()
    before = {name: p.detach().clone() for name, p in parameters.items()}
    optimizer = make_optimizer(parameters, optim)
    set_rate(optimizer, optim.lr)
    generator = torch.Generator().manual_seed(1)
    for p in parameters.values():
        drawn = torch.randn(p.shape, generator=generator)
        p.grad = drawn if gradient is None else torch.full_like(p, gradient)
    optimizer.step()
    return {name: p.detach() - before[name] for name, p in parameters.items()}


@pytest.mark.parametrize("name", NAMES)
def test_decay_shrinks_factors_and_no_magnitude(name: str) -> None:
    plain = _step(OptimSection(name=name, lr=0.5, weight_decay=0.0))
    decayed = _step(OptimSection(name=name, lr=0.5, weight_decay=0.5))
    assert torch.equal(plain["site.magnitude"], decayed["site.magnitude"])
    assert not torch.equal(plain["site.lora_A"], decayed["site.lora_A"])
    assert not torch.equal(plain["site.lora_B"], decayed["site.lora_B"])


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "muon"])
def test_lora_plus_moves_b_that_much_further_and_nothing_else(name: str) -> None:
    alike = _step(OptimSection(name=name, lr=0.01, weight_decay=0.0))
    plus = _step(OptimSection(name=name, lr=0.01, weight_decay=0.0, lora_plus_ratio=16.0))
    torch.testing.assert_close(plus["site.lora_B"], 16.0 * alike["site.lora_B"])
    assert torch.equal(plus["site.lora_A"], alike["site.lora_A"])
    assert torch.equal(plus["site.magnitude"], alike["site.magnitude"])


@pytest.mark.parametrize("adapter_type", ["lora-xs", "dora-rows-xs", "lokr"])
def test_lora_plus_is_refused_where_there_is_no_b(adapter_type: str) -> None:
    with pytest.raises(RecipeError, match=rf"adapter.type={adapter_type} has no B .* got 4"):
        check_optim(OptimSection(lora_plus_ratio=4.0), adapter_type=adapter_type)
    check_optim(OptimSection(), adapter_type=adapter_type)
    with pytest.raises(RecipeError, match="has no B"):
        make_optimizer(
            {"site.M_xs": nn.Parameter(torch.zeros(2, 2))}, OptimSection(lora_plus_ratio=4.0)
        )


def test_muon_moves_factors_all_alike_and_leaves_magnitudes_to_adamw() -> None:
    muon = _step(OptimSection(name="muon", lr=0.1, weight_decay=0.0))
    adamw = _step(OptimSection(lr=0.1, weight_decay=0.0))
    assert torch.equal(muon["site.magnitude"], adamw["site.magnitude"])
    for name in ("site.lora_A", "site.lora_B"):
        moved = muon[name]
        # Every direction moves about as far, in all AdamW's usual 0.2 lr a number (Moonshot).
        spread = torch.linalg.svdvals(moved) / (0.1 * 0.2 * max(moved.shape) ** 0.5)
        assert 0.5 < float(spread.min()) <= float(spread.max()) < 1.5


def test_the_owner_says_what_muon_moves() -> None:
    layers = {
        name: nn.Parameter(torch.ones(3, 3)) for name in ("embed_tokens.weight", "layer.weight")
    }
    optimizer = make_optimizer(
        layers, OptimSection(name="muon"), takes_muon=lambda name, _: "embed" not in name
    )
    muon, adamw = optimizer.param_groups
    assert muon["params"] == [layers["layer.weight"]]
    assert adamw["params"] == [layers["embed_tokens.weight"]]
    with pytest.raises(RecipeError, match="muon moves matrices"):
        make_optimizer(layers, OptimSection(name="muon"))


def test_prodigy_finds_a_rate_by_itself_and_prints_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    weight = nn.Parameter(torch.full((4, 4), 3.0))
    optimizer = make_optimizer({"site.lora_A": weight}, OptimSection(name="prodigy"))
    for _ in range(300):
        optimizer.zero_grad()
        torch.autograd.backward(weight.square().sum())
        optimizer.step()
    assert float(weight.detach().abs().max()) < 0.3
    assert effective_rate(optimizer, 1.0) > 1000 * 1e-6  # it starts from a millionth
    assert capsys.readouterr().out == ""


def test_an_optimizer_that_is_not_installed_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    with pytest.raises(RecipeError, match=r"needs prodigyopt, .* 'sa3lora\[prodigy\]'"):
        make_optimizer(_parameters(), OptimSection(name="prodigy"))


def test_eight_bits_need_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(RecipeError, match=r"needs bitsandbytes, .* 'sa3lora\[quant\]'"):
        make_optimizer(_parameters(), OptimSection(name="adamw8bit"))


def test_eight_bits_are_refused_where_they_cannot_run() -> None:
    weight = nn.Parameter(torch.ones(2, 2, device="meta"))
    with pytest.raises(RecipeError, match="adamw8bit runs on CUDA and CPUs, this run is on meta"):
        make_optimizer({"site.lora_A": weight}, OptimSection(name="adamw8bit"))


def _fit(name: str, *, steps: int) -> tuple[list[float], Optimizer]:
    """Fit a low-rank product to a matrix, large enough for moments of 8 bits."""
    generator = torch.Generator().manual_seed(0)
    goal = torch.randn(256, 3, generator=generator) @ torch.randn(3, 512, generator=generator)
    parameters = {
        "site.lora_A": nn.Parameter(0.05 * torch.randn(16, 512, generator=generator)),
        "site.lora_B": nn.Parameter(torch.zeros(256, 16)),
        "site.magnitude": nn.Parameter(torch.ones(256)),
    }
    optimizer = make_optimizer(parameters, OptimSection(name=name, lr=0.01))
    losses = []
    for _ in range(steps):
        down, up, rows = parameters.values()
        loss = (rows[:, None] * (up @ down) - goal).square().mean()
        losses.append(float(loss.detach()))
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    return losses, optimizer


def test_eight_bits_wait_for_no_gpu_and_move_as_the_library_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library = pytest.importorskip("bitsandbytes.optim")

    def run(make: Callable[[list[nn.Parameter]], Optimizer]) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        sizes = ((16, 512), (16,))  # moments of 8 bits and of 32
        tensors = [nn.Parameter(torch.randn(size, generator=generator)) for size in sizes]
        optimizer = make(tensors)
        for _ in range(3):
            for tensor in tensors:
                tensor.grad = torch.randn(tensor.shape, generator=generator)
            optimizer.step()
        return [tensor.detach() for tensor in tensors]

    optim = OptimSection(name="adamw8bit")
    settings = {"lr": optim.lr, "betas": optim.betas, "weight_decay": optim.weight_decay}
    expected = run(lambda tensors: library.AdamW8bit(tensors, **settings))
    # a CPU never waits there, so what would wait for a GPU is watched itself
    monkeypatch.setattr("bitsandbytes.optim.optimizer.sync_gpu", lambda _: pytest.fail("waits"))
    found = run(lambda tensors: make_optimizer(dict(zip("ab", tensors, strict=True)), optim))
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


def test_eight_bits_learn_like_thirty_two() -> None:
    (exact, _), (coarse, optimizer) = (_fit(name, steps=60) for name in ("adamw", "adamw8bit"))
    assert exact[-1] < 0.1 * exact[0]
    torch.testing.assert_close(torch.tensor(coarse), torch.tensor(exact), rtol=0.1, atol=0.01)
    assert isinstance(optimizer, torch.optim.Optimizer)
    kept = {p.numel(): state["state1"].dtype for p, state in optimizer.state.items()}
    assert kept == {16 * 512: torch.uint8, 256 * 16: torch.uint8, 256: torch.float32}
