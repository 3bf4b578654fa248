from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor, nn

from sa3lora.errors import CheckpointError, DivergenceError
from sa3lora.recipe import OptimSection
from sa3lora.training.loop import ResumableLoop


class _Toy:
    """Fits a line with noise from a generator and dropout from the global one."""

    def __init__(self, folder: Path, *, width: int = 3) -> None:
        self.layer = nn.Linear(width, 1, bias=False)
        nn.init.zeros_(self.layer.weight)
        self.generator = Generator().manual_seed(1)
        torch.manual_seed(2)
        self.loop = ResumableLoop(
            {"weight": self.layer.weight},
            optim=OptimSection(lr=0.1, schedule="cosine", warmup_steps=2),
            max_steps=10,
            folder=folder,
            generators={"steps": self.generator},
            ema_decay=0.9,
        )

    def train(self, until: int) -> None:
        while self.loop.step < until:
            x = torch.randn(4, 3, generator=self.generator)
            y = self.layer(nn.functional.dropout(x, 0.5))
            torch.autograd.backward((y - x.sum(1, keepdim=True)).square().mean())
            self.loop.update()

    def state(self) -> Mapping[str, Tensor]:
        return {"weight": self.layer.weight.detach(), "average": self.loop.averages["weight"]}


@pytest.mark.parametrize("killed_at", [4, 5, 9])
def test_a_resumed_loop_ends_where_an_uninterrupted_one_does(
    tmp_path: Path, killed_at: int
) -> None:
    whole = _Toy(tmp_path / "whole")
    whole.train(10)

    killed = _Toy(tmp_path / "killed")
    killed.train(4)
    killed.loop.save({"position": 4})
    killed.train(killed_at)

    resumed = _Toy(tmp_path / "killed")
    assert resumed.loop.restore() == {"position": 4}
    assert resumed.loop.step == 4
    resumed.train(10)
    for name, tensor in whole.state().items():
        assert torch.equal(resumed.state()[name], tensor)


OPTIMIZERS = [
    OptimSection(lr=0.01, schedule="linear", min_lr=0.001, lora_plus_ratio=4.0),
    OptimSection(name="prodigy"),
    OptimSection(name="muon", lr=0.01, lora_plus_ratio=2.0),
]


class _Adapter:
    """Fits a matrix with the tensors of an adapter, all but the average of which are trained."""

    def __init__(self, folder: Path, optim: OptimSection) -> None:
        generator = Generator().manual_seed(3)
        self.parameters = {
            "site.lora_A": nn.Parameter(torch.randn(4, 37, generator=generator)),
            "site.lora_B": nn.Parameter(torch.zeros(29, 4)),
            "site.magnitude": nn.Parameter(torch.ones(29)),
        }
        self.generator = Generator().manual_seed(1)
        self.loop = ResumableLoop(
            self.parameters, optim=optim, max_steps=10, folder=folder,
            generators={"steps": self.generator}, ema_decay=0.9,
        )  # fmt: skip

    def train(self, until: int) -> None:
        a, b, m = self.parameters.values()
        while self.loop.step < until:
            target = torch.randn(29, 37, generator=self.generator)
            torch.autograd.backward((m[:, None] * (b @ a) - target).square().mean())
            self.loop.update()


@pytest.mark.parametrize("optim", OPTIMIZERS, ids=lambda optim: optim.name)
def test_any_optimizer_goes_on_bit_for_bit(tmp_path: Path, optim: OptimSection) -> None:
    whole = _Adapter(tmp_path / "whole", optim)
    whole.train(10)
    killed = _Adapter(tmp_path / "killed", optim)
    killed.train(4)
    killed.loop.save({})
    resumed = _Adapter(tmp_path / "killed", optim)
    resumed.loop.restore()
    resumed.train(10)
    for name, parameter in whole.parameters.items():
        assert not torch.equal(parameter, _Adapter(tmp_path, optim).parameters[name])
        assert torch.equal(parameter, resumed.parameters[name])
        assert torch.equal(whole.loop.averages[name], resumed.loop.averages[name])


def test_averages_stand_in_for_a_while_and_leave_no_trace(tmp_path: Path) -> None:
    toy = _Toy(tmp_path)
    toy.train(5)
    trained = toy.layer.weight.detach().clone()
    with toy.loop.averaged():
        assert torch.equal(toy.layer.weight, toy.loop.averages["weight"])
        assert not torch.equal(toy.layer.weight, trained)
    assert torch.equal(toy.layer.weight, trained)


def test_nothing_to_restore_is_no_error(tmp_path: Path) -> None:
    assert _Toy(tmp_path).loop.restore() is None


@pytest.mark.parametrize(("gradient", "weight"), [(float("inf"), 1.0), (1.0, float("nan"))])
def test_gradients_that_are_no_numbers_stop_the_loop_before_they_do_harm(
    tmp_path: Path, gradient: float, weight: float
) -> None:
    toy = _Toy(tmp_path)
    toy.layer.weight.grad = torch.full((1, 3), gradient)
    with pytest.raises(DivergenceError, match=r"Step 1: the norm of the gradients is") as raised:
        toy.loop.update(weight=weight)
    assert raised.value.step == 1
    assert torch.equal(toy.layer.weight.detach(), torch.zeros(1, 3))
    assert toy.layer.weight.grad is None


@pytest.mark.parametrize(
    ("gradient", "weight"), [(float("inf"), torch.tensor(1.0)), (1.0, torch.tensor(torch.nan))]
)
def test_an_unchecked_step_on_no_number_says_so_later_and_is_undone_by_going_back(
    tmp_path: Path, gradient: float, weight: Tensor
) -> None:
    toy = _Toy(tmp_path)
    toy.train(2)
    toy.loop.save({})
    toy.train(6)
    expected = {name: tensor.clone() for name, tensor in toy.state().items()}
    toy.loop.restore()
    toy.layer.weight.grad = torch.full((1, 3), gradient)
    update = toy.loop.update_unchecked(weight=weight)
    toy.layer.weight.grad = torch.ones(1, 3)
    toy.loop.update_unchecked()
    with pytest.raises(DivergenceError, match=r"Step 3: the norm of the gradients is") as raised:
        update.require_finite()
    assert raised.value.step == 3
    toy.loop.restore()
    toy.train(6)
    assert all(torch.equal(toy.state()[name], tensor) for name, tensor in expected.items())


def test_parameters_that_are_no_numbers_are_not_saved(tmp_path: Path) -> None:
    toy = _Toy(tmp_path)
    toy.loop.save({})
    toy.train(1)
    with torch.no_grad():
        toy.layer.weight[0, 1] = float("nan")
    with pytest.raises(DivergenceError, match="step 1: weight is no number"):
        toy.loop.save({})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000000"]


def test_a_loop_that_is_reset_takes_the_same_steps_again(tmp_path: Path) -> None:
    twice = _Toy(tmp_path)
    twice.train(5)
    twice.loop.reset()
    assert twice.loop.step == 0
    assert torch.equal(twice.layer.weight.detach(), torch.zeros(1, 3))
    twice.generator.manual_seed(1)
    torch.manual_seed(2)
    twice.train(3)
    first = _Toy(tmp_path)
    first.train(3)
    assert torch.equal(twice.state()["weight"], first.state()["weight"])
    assert torch.equal(twice.state()["average"], first.state()["average"])


def test_the_factor_of_the_learning_rate_counts_at_every_step(tmp_path: Path) -> None:
    toy, half = _Toy(tmp_path), _Toy(tmp_path)
    half.loop.lr_factor = 0.5
    rates = []
    for each in (toy, half):
        each.layer.weight.grad = torch.ones(1, 3)
        rates.append(each.loop.update().lr)
    assert rates[1] == rates[0] / 2 > 0


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    toy = _Toy(tmp_path)
    toy.loop.save({})
    with pytest.raises(CheckpointError, match="other tensors than the model: weight"):
        _Toy(tmp_path, width=5).loop.restore()
