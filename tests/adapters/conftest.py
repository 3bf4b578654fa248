from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sa3lora.adapters.config import TENSORS, AdapterConfig
from sa3lora.adapters.files import AdapterFile
from sa3lora.adapters.sites import find_layers, site_shapes

WIDTH, CHANNELS = 16, 6


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.to_out = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(x).chunk(3, dim=-1)
        return self.to_out(torch.sigmoid(q * k) * v)


class Transformer(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.project_in = nn.Linear(CHANNELS, WIDTH, bias=False)
        self.project_out = nn.Linear(WIDTH, CHANNELS)
        blocks = [nn.ModuleDict({"self_attn": Attention()}) for _ in range(depth)]
        self.layers = nn.ModuleList(blocks)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        x = self.project_in(x) + cond[:, None]
        for block in self.layers:
            x = x + block["self_attn"](x)
        return self.project_out(x)


class Inner(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.preprocess_conv = nn.Conv1d(CHANNELS, CHANNELS, 1, bias=False)
        self.transformer = Transformer(depth)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        x = x + self.preprocess_conv(x)
        return self.transformer(x.transpose(1, 2), cond).transpose(1, 2)


class Root(nn.Module):
    """A model with the children and layer names of a denoiser."""

    def __init__(self, depth: int = 12) -> None:
        super().__init__()
        self.model = Inner(depth)
        self.conditioners = nn.ModuleDict({"seconds_total": nn.Linear(4, WIDTH)})

    def forward(self, x: Tensor, seconds: Tensor) -> Tensor:
        return self.model(x, self.conditioners["seconds_total"](seconds))


@pytest.fixture
def root() -> Root:
    torch.manual_seed(0)
    return Root().eval().requires_grad_(False)


@pytest.fixture
def run() -> Callable[[nn.Module], Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, CHANNELS, 9, generator=generator)
    seconds = torch.randn(2, 4, generator=generator)

    def forward(module: nn.Module) -> Tensor:
        dtype = next(module.parameters()).dtype
        with torch.no_grad():
            return module(x.to(dtype), seconds.to(dtype))

    return forward


@pytest.fixture
def make_adapter(root: Root) -> Callable[..., AdapterFile]:
    layers = find_layers(root)
    shapes = site_shapes(root)

    def make(
        adapter_type: str = "lora",
        *,
        seed: int = 0,
        r: int = 3,
        alpha: float | None = None,
        sites: list[str] | None = None,
        metadata: dict[str, str] | None = None,
    ) -> AdapterFile:
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for site in sites or shapes:
            fan_out, fan_in = shapes[site]
            weight = layers[site].weight.detach().flatten(1)
            known = {
                "lora_A": torch.randn(r, fan_in, generator=generator) / fan_in**0.5,
                "lora_B": 0.2 * torch.randn(fan_out, r, generator=generator),
                "M_xs": 0.2 * torch.randn(r, r, generator=generator),
                "magnitude_r": 1.1 * weight.norm(dim=1),
                "magnitude_c": 0.9 * weight.norm(dim=0),
                "magnitude": 1.1 * weight.norm(dim=1 if "rows" in adapter_type else 0),
            }
            tensors[site] = {name: known[name] for name in TENSORS[adapter_type]}
        config = AdapterConfig(type=adapter_type, r=r, lora_alpha=alpha)
        return AdapterFile(config, tensors, metadata or {})

    return make
