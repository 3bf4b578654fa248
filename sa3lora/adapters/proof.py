"""Run an adapter and what became of it on the same random input, layer by layer.

What PEFT is to open is opened by PEFT itself, on layers of the names and row orders that the folder
is for. Weights pass block by block, in float64, so that an error is that of the stored numbers.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from peft import PeftModel
from torch import Tensor, nn

from sa3lora.adapters.deltas import delta
from sa3lora.adapters.files import AdapterFile, read_adapter
from sa3lora.adapters.measure import kind_of
from sa3lora.adapters.names import PARTS, diffusers_rows, reorder_rows, to_diffusers
from sa3lora.adapters.weights import Weights

Format = Literal["sa3", "peft", "diffusers"]

_INPUTS = 8
_BLOCK = re.compile(r"layers\.(\d+)\.")
# Of the change, and of the output: float32 sums of the magnitudes round a little.
_TOLERANCE = {torch.float32: (1e-5, 2e-7), torch.float16: (2e-3, 1e-3)}


@dataclass(frozen=True)
class LayerError:
    """Outputs of a layer with the adapter before and after, on the same input.

    Attributes:
        site: The layer.
        error: Norm of their difference.
        change: Norm of what the adapter before changes of the base's output.
        output: Norm of the output before.
    """

    site: str
    error: float
    change: float
    output: float

    def passes(self, dtype: torch.dtype) -> bool:
        """Tell whether the error is what storing the numbers in a type costs."""
        of_change, of_output = _TOLERANCE[dtype]
        # Written so that NaN does not pass.
        return self.error <= of_change * self.change + of_output * self.output

    @property
    def relative(self) -> float:
        """Error over the change; over the output where nothing changes."""
        whole = self.change if self.change > 0 else self.output
        return self.error / whole if whole > 0 else self.error


@dataclass(frozen=True)
class GroupError:
    """The worst of one kind of layer."""

    kind: str
    num_sites: int
    relative: float


def by_kind(errors: Iterable[LayerError]) -> list[GroupError]:
    """Sum up layer errors by kind of layer, in the order of names."""
    ordered = sorted(errors, key=lambda error: kind_of(error.site))
    groups = itertools.groupby(ordered, key=lambda error: kind_of(error.site))
    found = [(kind, list(group)) for kind, group in groups]
    return [GroupError(k, len(group), max(e.relative for e in group)) for k, group in found]


@torch.no_grad()
def compare(before: AdapterFile, after: AdapterFile, weights: Weights) -> list[LayerError]:
    """Compare two adapters by our own formulas; a layer that `after` lacks is the base there."""
    errors = []
    for site in sorted({*before.sites, *after.sites}):
        weight = weights(site)
        x = _input(weight)
        base = _apply(weight.double(), x)
        old, new = (_change(adapter, site, weight, x=x) for adapter in (before, after))
        errors.append(_error(site, base + old, base + new, change=old))
    return errors


@torch.no_grad()
def prove(adapter: AdapterFile, out: Path, *, to: Format, weights: Weights) -> list[LayerError]:
    """Compare an adapter with the file or folder that was written from it."""
    if to == "sa3":
        return compare(adapter, read_adapter(out), weights)
    errors = []
    for folder, names in _folders(adapter, out, to=to):
        for block in _blocks(names):
            errors += _prove_block(
                adapter, folder, names={site: names[site] for site in block}, weights=weights,
                reorder=to == "diffusers",
            )  # fmt: skip
    return errors


def _folders(adapter: AdapterFile, out: Path, *, to: Format) -> list[tuple[Path, dict[str, str]]]:
    if to == "peft":
        return [(out, {site: site for site in adapter.sites})]
    places = {site: found for site in adapter.sites if (found := to_diffusers(site))}
    parts = [(p, {s: name for s, (part, name) in places.items() if part == p}) for p in PARTS]
    return [(out / part, names) for part, names in parts if names]


def _blocks(sites: Iterable[str]) -> list[list[str]]:
    def block(site: str) -> int:
        found = _BLOCK.search(site)
        return int(found[1]) if found else -1

    return [list(group) for _, group in itertools.groupby(sorted(sites, key=block), key=block)]


def _prove_block(
    adapter: AdapterFile,
    folder: Path,
    *,
    names: Mapping[str, str],
    weights: Weights,
    reorder: bool,
) -> list[LayerError]:
    root, stored = nn.Module(), {site: weights(site) for site in names}
    orders: dict[str, Sequence[int] | None] = {}
    for site, name in names.items():
        matrix = stored[site].flatten(1)
        orders[site] = diffusers_rows(site, *matrix.shape) if reorder else None
        _attach(root, name, _layer(reorder_rows(stored[site], orders[site])))
    model = PeftModel.from_pretrained(root, folder, autocast_adapter_dtype=False).eval().double()
    errors = []
    for site, name in names.items():
        x = _input(stored[site])
        change = _change(adapter, site, stored[site], x=x)
        expected = _apply(stored[site].double(), x) + change
        found = model.base_model.model.get_submodule(name)(x)
        if orders[site] is not None:
            expected = reorder_rows(expected.T, orders[site]).T
        errors.append(_error(site, expected, found, change=change))
    return errors


def _layer(weight: Tensor) -> nn.Module:
    layer: nn.Module
    with torch.device("meta"):
        if weight.ndim == 2:
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        else:
            layer = nn.Conv1d(weight.shape[1], weight.shape[0], weight.shape[2], bias=False)
    layer.weight = nn.Parameter(weight.float(), requires_grad=False)
    return layer


def _attach(root: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a layer at a dotted name, with empty modules on the way."""
    *path, last = name.split(".")
    for part in path:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.add_module(last, layer)


def _input(weight: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (_INPUTS, *weight.shape[1:])  # for a kernel: exactly one position
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _apply(weight: Tensor, x: Tensor) -> Tensor:
    if weight.ndim == 2:
        return nn.functional.linear(x, weight)
    return nn.functional.conv1d(x, weight)


def _change(adapter: AdapterFile, site: str, weight: Tensor, *, x: Tensor) -> Tensor:
    if site not in adapter.tensors:
        return torch.zeros_like(_apply(weight.double(), x))
    change = delta(
        weight,
        adapter.tensors[site],
        adapter_type=adapter.config.type,
        scale=adapter.scale(site),
    )
    return _apply(change.double(), x)


def _error(site: str, expected: Tensor, found: Tensor, *, change: Tensor) -> LayerError:
    norms = [float(torch.linalg.vector_norm(t)) for t in (found - expected, change, expected)]
    return LayerError(site, *norms)
