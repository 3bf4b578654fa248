"""Make an adapter smaller: another rank, or as much of it as fits a number of bytes.

Of every layer the strongest singular directions of the low-rank change stay; magnitudes stay as
they are. Within a size the choice is between more directions in fewer layers and fewer directions
in more, all at one rank, since the released tools know only one a file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from sa3lora.adapters.bases import HASH_KEY
from sa3lora.adapters.config import LOKR, AdapterConfig
from sa3lora.adapters.container import encode_header
from sa3lora.adapters.deltas import is_additive, low_rank_factors
from sa3lora.adapters.files import AdapterFile, flat_tensors
from sa3lora.adapters.lowrank import LowRank, fill_rank, truncate_product
from sa3lora.adapters.merge import Lost
from sa3lora.adapters.sources import CONFIG_KEY
from sa3lora.adapters.weights import Weights
from sa3lora.errors import AdapterError


@dataclass(frozen=True)
class Candidate:
    """One way to be smaller.

    Attributes:
        rank: Of all layers.
        adapter: What would be written.
        num_bytes: Size of its file.
        lost: What each layer of the original loses, all of it where the layer is left out.
    """

    rank: int
    adapter: AdapterFile
    num_bytes: int
    lost: Mapping[str, Lost]

    @property
    def kept(self) -> float:
        """Share of the whole energy that stays."""
        energy = sum(one.energy for one in self.lost.values())
        return 1.0 - sum(one.lost for one in self.lost.values()) / energy if energy > 0 else 1.0


class Resizer:
    """An adapter taken apart into singular directions, layer by layer.

    Args:
        adapter: Of any type; an `-xs` type becomes the one with factors of its own, `lokr` the
            nearest `lora`.
        weights: Base weights, which only `-xs` types need.
        dtype: Type of the stored tensors, for sizes.
    """

    def __init__(
        self, adapter: AdapterFile, weights: Weights | None, *, dtype: torch.dtype = torch.float32
    ) -> None:
        """Take it apart."""
        if adapter.config.type.endswith("-xs") and weights is None:
            raise AdapterError(
                f"{adapter.config.type} has its directions in the base: pass --model"
            )
        self.adapter = adapter
        self._dtype = dtype
        self._parts = {site: self._take_apart(site, weights) for site in adapter.sites}

    def _take_apart(self, site: str, weights: Weights | None) -> LowRank:
        tensors = self.adapter.tensors[site]
        down, up = low_rank_factors(
            torch.empty(0) if weights is None else weights(site),
            tensors,
            adapter_type=self.adapter.config.type,
            scale=self.adapter.scale(site),
        )
        return truncate_product(down, up, down.shape[0])

    @property
    def max_rank(self) -> int:
        """The highest rank of a layer: more would add nothing."""
        return max(len(part.values) for part in self._parts.values())

    def to_rank(self, rank: int) -> Candidate:
        """Keep the strongest `rank` directions of every layer."""
        return self._build(rank, self.adapter.sites)

    def to_ranks(self, limit: int) -> list[Candidate]:
        """Give the candidates at `limit`, half of it, a quarter and so on."""
        ranks = [limit]
        while ranks[-1] > 1:
            ranks.append(ranks[-1] // 2)
        return [self.to_rank(rank) for rank in ranks]

    def to_size(self, num_bytes: int) -> list[Candidate]:
        """Give the best candidate of each rank that fits, the one that keeps most first.

        Layers are left out only where that means no change of theirs: not with magnitudes.

        Raises:
            AdapterError: If not even rank 1 fits.
        """
        found = []
        for rank in range(self.max_rank, 0, -1):
            candidate = self._fitting(rank, num_bytes)
            if candidate is not None:
                found.append(candidate)
        if not found:
            smallest = self._build(1, self.adapter.sites).num_bytes
            raise AdapterError(
                f"{num_bytes} bytes are too few for any layer; all at rank 1 have {smallest}. "
                "Give a larger --size, or --dtype float16."
            )
        return sorted(found, key=lambda candidate: (-candidate.kept, candidate.num_bytes))

    def _fitting(self, rank: int, num_bytes: int) -> Candidate | None:
        whole = self._build(rank, self.adapter.sites)
        if whole.num_bytes <= num_bytes:
            return whole
        if not is_additive(self.adapter.config.type):
            return None
        order = sorted(self.adapter.sites, key=lambda site: -self._worth(site, rank))
        low, high = 0, len(order)
        while low < high:  # the most layers that fit
            middle = (low + high + 1) // 2
            fits = self._build(rank, order[:middle]).num_bytes <= num_bytes
            low, high = (middle, high) if fits else (low, middle - 1)
        return self._build(rank, order[:low]) if low else None

    def _worth(self, site: str, rank: int) -> float:
        """Energy for each number stored."""
        part = self._parts[site]
        kept = float(part.values[:rank].square().sum())
        return kept / (rank * (part.down.shape[1] + part.up.shape[0]))

    def _build(self, rank: int, sites: Sequence[str]) -> Candidate:
        tensors, lost = {}, {}
        for site, part in self._parts.items():
            if site not in sites:
                lost[site] = Lost(part.energy, part.energy)
                continue
            down, up = fill_rank(part.down[:rank], part.up[:, :rank], rank)
            kept = {
                k: v for k, v in self.adapter.tensors[site].items() if k.startswith("magnitude")
            }
            tensors[site] = {"lora_A": down, "lora_B": up, **kept}
            lost[site] = Lost(part.energy, float(part.values[rank:].square().sum()))
        adapter = dataclasses.replace(
            self.adapter,
            config=self._config(rank, sites),
            tensors=dict(sorted(tensors.items())),
            # Its directions are its own now.
            metadata={k: v for k, v in self.adapter.metadata.items() if k != HASH_KEY},
        )
        return Candidate(rank, adapter, file_size(adapter, self._dtype), lost)

    def _config(self, rank: int, sites: Sequence[str]) -> AdapterConfig:
        config = dataclasses.replace(
            self.adapter.config,
            type=self.adapter.config.type.removesuffix("-xs").replace(LOKR, "lora"),
            r=rank,
            lora_alpha=float(rank),
        )
        if len(sites) == len(self.adapter.sites):
            return config
        # Official readers attach to whatever the patterns select.
        return dataclasses.replace(config, include=tuple(sorted(sites)), exclude=None)


def file_size(adapter: AdapterFile, dtype: torch.dtype) -> int:
    """Give the size in bytes of the file that `write_adapter` would write."""
    tensors = flat_tensors(adapter)
    table = {key: (dtype, tuple(tensor.shape)) for key, tensor in tensors.items()}
    metadata = {**adapter.metadata, CONFIG_KEY: adapter.config.to_json()}
    stored = sum(tensor.numel() for tensor in tensors.values()) * dtype.itemsize
    return len(encode_header(table, metadata)) + stored
