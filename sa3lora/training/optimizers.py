"""The optimizers of `optim.name`, each in the form that `ResumableLoop` steps and saves.

A group of parameters may have a rate of its own, `lr_scale` times that of the schedule (LoRA+).
Magnitudes are never decayed, whatever the optimizer, as decay would shrink the base's norms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from sa3lora.errors import RecipeError
from sa3lora.recipe import OptimSection

_EPS = 1e-8
_LR_SCALE = "lr_scale"
# Device types on which torch has AdamW in one pass over all tensors.
_FUSED = ("cpu", "cuda", "mps")
# Device types on which bitsandbytes has AdamW with moments of 8 bits.
_EIGHT_BIT = ("cpu", "cuda")
_LOW_RANK = (".lora_A", ".lora_B", ".M_xs")

Groups = list[dict[str, Any]]
TakesMuon = Callable[[str, nn.Parameter], bool]


class Optimizer(Protocol):
    """What the loop needs of an optimizer; torch's own have it."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of parameters with their settings."""

    def step(self) -> Any:
        """Take a step on the gradients."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""

    def state_dict(self) -> dict[str, Any]:
        """Give everything that a new process needs to go on."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""


class Several:
    """Optimizers of different parameters that step as one."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        """Join them; their order is part of the state."""
        self._parts = list(parts)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all parts; a change to one acts on its optimizer."""
        return [group for part in self._parts for group in part.param_groups]

    def step(self) -> None:
        """Take a step with each."""
        for part in self._parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all."""
        for part in self._parts:
            part.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Give the state of each."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the state of each."""
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)


def make_optimizer(
    parameters: Mapping[str, nn.Parameter],
    optim: OptimSection,
    *,
    takes_muon: TakesMuon | None = None,
) -> Optimizer:
    """Build the optimizer of a recipe for named parameters.

    Args:
        parameters: What is trained, by name; `<site>.lora_B` and `magnitude` mean what they say.
        optim: The recipe's `optim` section.
        takes_muon: Which parameters Muon moves, of those that are matrices; AdamW moves the rest.
            By default the low-rank factors of adapters.

    Raises:
        RecipeError: If the optimizer is not installed or cannot run here, or `lora_plus_ratio` has
            nothing to act on.
    """
    if optim.lora_plus_ratio != 1.0 and not any(map(_is_up, parameters)):
        raise RecipeError(_no_up("the adapter", optim.lora_plus_ratio))
    if optim.name == "muon":
        return _muon(parameters, optim, takes_muon or is_low_rank)
    groups = _groups(parameters, optim)
    if optim.name == "prodigy":
        return _prodigy(groups, optim)
    if optim.name == "adamw8bit":
        return _adamw8bit(groups, optim)
    return _adamw(groups, optim)


def check_optim(optim: OptimSection, *, adapter_type: str) -> None:
    """Refuse, before anything is loaded, what an adapter's type has no tensors for.

    Raises:
        RecipeError: If another rate is asked for B where there is no B.
    """
    if optim.lora_plus_ratio != 1.0 and (adapter_type.endswith("-xs") or adapter_type == "lokr"):
        raise RecipeError(_no_up(f"adapter.type={adapter_type}", optim.lora_plus_ratio))


def set_rate(optimizer: Optimizer, lr: float) -> None:
    """Give every group its rate, `lr` times its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get(_LR_SCALE, 1.0)


def effective_rate(optimizer: Optimizer, lr: float) -> float:
    """Give the rate that a step was taken with: Prodigy's is `lr` times its own estimate."""
    return lr * float(optimizer.param_groups[0].get("d", 1.0))


def is_low_rank(name: str, parameter: nn.Parameter) -> bool:
    """Tell whether a parameter of an adapter is a factor of its low-rank product."""
    return parameter.ndim == 2 and is_factor(name)


def is_factor(name: str) -> bool:
    """Tell by its name whether a tensor of an adapter is a factor of its low-rank product."""
    return name.endswith(_LOW_RANK) or ".lokr_" in name


def _groups(parameters: Mapping[str, nn.Parameter], optim: OptimSection) -> Groups:
    """Sort parameters by decay and by rate; groups without parameters are left out."""
    sorted_by: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        decay = 0.0 if "magnitude" in name else optim.weight_decay
        scale = optim.lora_plus_ratio if _is_up(name) else 1.0
        sorted_by.setdefault((decay, scale), []).append(parameter)
    return [
        {"params": members, "weight_decay": decay, "lr": optim.lr * scale, _LR_SCALE: scale}
        for (decay, scale), members in sorted_by.items()
    ]


def _adamw(groups: Groups, optim: OptimSection) -> torch.optim.AdamW:
    found = {parameter.device.type for group in groups for parameter in group["params"]}
    fused = True if found <= set(_FUSED) else None
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=_EPS, fused=fused)


def _muon(
    parameters: Mapping[str, nn.Parameter], optim: OptimSection, takes_muon: TakesMuon
) -> Several:
    chosen = {k: p for k, p in parameters.items() if p.ndim == 2 and takes_muon(k, p)}
    rest = {k: p for k, p in parameters.items() if k not in chosen}
    if not chosen:
        raise RecipeError(
            "optim.name: muon moves matrices, and none of what is trained is one. "
            "Take optim.name=adamw."
        )
    # So that one rate and one decay mean the same for both: updates of AdamW's usual size.
    muon = torch.optim.Muon(_groups(chosen, optim), lr=optim.lr, adjust_lr_fn="match_rms_adamw")
    return Several([muon, *([_adamw(_groups(rest, optim), optim)] if rest else [])])


def _prodigy(groups: Groups, optim: OptimSection) -> Optimizer:
    try:
        from prodigyopt import Prodigy
    except ImportError as error:
        raise RecipeError(_missing("prodigy", "prodigyopt", extra="prodigy")) from error
    # Its authors' settings for diffusion. The decay is in the groups: as an argument it is printed.
    optimizer: Optimizer = Prodigy(
        groups,
        lr=optim.lr,
        betas=optim.betas,
        eps=_EPS,
        use_bias_correction=True,
        safeguard_warmup=True,
    )
    return optimizer


def _adamw8bit(groups: Groups, optim: OptimSection) -> Optimizer:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise RecipeError(_missing("adamw8bit", "bitsandbytes", extra="quant")) from error
    found = {parameter.device.type for group in groups for parameter in group["params"]}
    if not found <= set(_EIGHT_BIT):
        raise RecipeError(
            f"optim.name: adamw8bit runs on CUDA and CPUs, this run is on "
            f"{', '.join(sorted(found))}. Take optim.name=adamw."
        )

    class Unhurried(AdamW8bit):  # type: ignore[misc]
        """Its step waits for a GPU after every tensor, which only paged moments need.

        Ours are not, and their kernels run in the default stream, as everything of a step does.
        """

        @torch.no_grad()
        def step(self, closure: None = None) -> None:
            """Take a step on the gradients that are there."""
            for number, group in enumerate(self.param_groups):
                for place, parameter in enumerate(group["params"]):
                    if parameter.grad is None:
                        continue
                    if not self.state[parameter]:
                        self.init_state(group, parameter, number, place)
                    self.update_step(group, parameter, number, place)

    # Tensors of fewer than 4096 numbers, such as magnitudes, keep moments of 32 bits.
    optimizer: Optimizer = Unhurried(groups, lr=optim.lr, betas=optim.betas, eps=_EPS)
    return optimizer


def _is_up(name: str) -> bool:
    return name.endswith(".lora_B")


def _missing(name: str, package: str, *, extra: str) -> str:
    return (
        f"optim.name: {name} needs {package}, which is not installed. Install it with "
        f"pip install 'sa3lora[{extra}]', or take optim.name=adamw."
    )


def _no_up(what: str, ratio: float) -> str:
    return (
        f"optim.lora_plus_ratio: {what} has no B to give another rate, got {ratio:g}. "
        "Leave it at 1, or train a type with A and B such as lora or dora-rows."
    )
