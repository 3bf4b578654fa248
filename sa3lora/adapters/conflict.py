"""Do adapters get in each other's way: their changes compared layer by layer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sa3lora.adapters.deltas import delta
from sa3lora.adapters.files import AdapterFile
from sa3lora.errors import AdapterError

Weighted = tuple[AdapterFile, float]
_ITERATIONS = 4


@dataclass(frozen=True)
class Pair:
    """Two changes of one layer, or of all layers together.

    Attributes:
        first: Number of one adapter in the list.
        second: Number of the other.
        cosine: Of the angle between the changes as vectors; 0 is no conflict, strengths aside.
        angles_out: Principal angles between their leading output directions, degrees, ascending;
            empty for all layers together.
        angles_in: The same of input directions.
        interference: How much more (or less, below 0) energy the sum has than the changes have one
            by one, at the strengths given, from -1, where they cancel, to 1, where they double.
    """

    first: int
    second: int
    cosine: float
    interference: float
    angles_out: tuple[float, ...] = ()
    angles_in: tuple[float, ...] = ()


@dataclass(frozen=True)
class LayerConflict:
    """One layer that at least one adapter changes.

    Attributes:
        site: Its name.
        energies: Norm of each adapter's change at its strength; 0 where it leaves the layer alone.
        relative: The same over the norm of the base weight, None where that is not known.
        pairs: Of the adapters that change it.
    """

    site: str
    energies: tuple[float, ...]
    relative: tuple[float, ...] | None
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class ConflictReport:
    """All layers, in the order of names, and every pair of adapters over all of them."""

    layers: tuple[LayerConflict, ...]
    totals: tuple[Pair, ...]


@torch.no_grad()
def measure_conflicts(
    adapters: Sequence[Weighted], weights: Mapping[str, Tensor] | None = None
) -> ConflictReport:
    """Compare the changes of several adapters.

    Args:
        adapters: Two or more, with their strengths.
        weights: Base weight by site. Without them only plain `lora` can be compared.

    Raises:
        AdapterError: If the base weights are needed and not there.
    """
    needing = sorted({a.config.type for a, _ in adapters} - {"lora"})
    if weights is None and needing:
        raise AdapterError(
            f"what {', '.join(needing)} changes depends on the base weights. Name the model."
        )
    count = len(adapters)
    products = torch.zeros(count, count, dtype=torch.float64)
    layers = []
    for site in sorted({site for adapter, _ in adapters for site in adapter.tensors}):
        weight = None if weights is None else weights[site]
        changes = {
            number: _change(adapter, site, weight)
            for number, (adapter, _) in enumerate(adapters)
            if site in adapter.tensors
        }
        inner = _inner_products(changes, count)
        products += inner
        layers.append(_layer(site, adapters, changes, inner, weight=weight))
    strengths = [strength for _, strength in adapters]
    pairs = itertools.combinations(range(count), 2)
    totals = tuple(_pair(i, j, products, strengths) for i, j in pairs)
    return ConflictReport(tuple(layers), totals)


def _change(adapter: AdapterFile, site: str, weight: Tensor | None) -> Tensor:
    tensors, scale = adapter.tensors[site], adapter.scale(site)
    if weight is None:
        return scale * tensors["lora_B"] @ tensors["lora_A"]
    change = delta(weight, tensors, adapter_type=adapter.config.type, scale=scale)
    return change.flatten(1)


def _inner_products(changes: Mapping[int, Tensor], count: int) -> Tensor:
    inner = torch.zeros(count, count, dtype=torch.float64)
    for i, j in itertools.combinations_with_replacement(sorted(changes), 2):
        inner[i, j] = inner[j, i] = (changes[i] * changes[j]).sum(dtype=torch.float64)
    return inner


def _layer(
    site: str,
    adapters: Sequence[Weighted],
    changes: Mapping[int, Tensor],
    inner: Tensor,
    *,
    weight: Tensor | None,
) -> LayerConflict:
    strengths = [strength for _, strength in adapters]
    energies = tuple(
        abs(strength) * math.sqrt(float(inner[i, i])) for i, strength in enumerate(strengths)
    )
    relative = None
    if weight is not None and (size := float(torch.linalg.vector_norm(weight.double()))) > 0:
        relative = tuple(energy / size for energy in energies)
    spaces = {
        number: leading_directions(change, adapters[number][0].rank(site))
        for number, change in changes.items()
    }
    pairs = tuple(
        _pair(i, j, inner, strengths, spaces=(spaces[i], spaces[j]))
        for i, j in itertools.combinations(sorted(changes), 2)
    )
    return LayerConflict(site, energies, relative, pairs)


def _pair(
    first: int,
    second: int,
    inner: Tensor,
    strengths: Sequence[float],
    *,
    spaces: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
) -> Pair:
    product, one, two = (
        float(inner[i, j]) for i, j in ((first, second), (first, first), (second, second))
    )
    cosine = product / math.sqrt(one * two) if one * two > 0 else 0.0
    s, t = strengths[first], strengths[second]
    apart = s * s * one + t * t * two
    interference = 2.0 * s * t * product / apart if apart > 0 else 0.0
    if spaces is None:
        return Pair(first, second, cosine, interference)
    (out_one, in_one), (out_two, in_two) = spaces
    return Pair(
        first,
        second,
        cosine,
        interference,
        principal_angles(out_one, out_two),
        principal_angles(in_one, in_two),
    )


def principal_angles(one: Tensor, two: Tensor) -> tuple[float, ...]:
    """Give the angles between two spaces of orthonormal columns, degrees, ascending."""
    cosines = torch.linalg.svdvals(one.T @ two).clamp(0.0, 1.0)
    angles: Iterable[float] = torch.rad2deg(torch.acos(cosines)).tolist()
    return tuple(angles)


def leading_directions(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Give orthonormal bases, float64, of the `rank` leading output and input directions.

    By subspace iteration from fixed random directions: exact for a matrix of that rank. A matrix
    of less rank has fewer of them.
    """
    rank = min(rank, *matrix.shape)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(matrix.shape[1], rank, generator=generator).to(matrix)
    inputs = torch.linalg.qr(start).Q
    for _ in range(_ITERATIONS):
        inputs = torch.linalg.qr(matrix.T @ torch.linalg.qr(matrix @ inputs).Q).Q
    outputs, values, turned = torch.linalg.svd((matrix @ inputs).double(), full_matrices=False)
    kept = int((values > 1e-6 * values[0]).sum()) if len(values) and values[0] > 0 else 0
    return outputs[:, :kept], inputs.double() @ turned[:kept].T
