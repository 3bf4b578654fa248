"""What the verb `merge` does once its arguments are checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sa3lora.cli.base_models import check_fit, find_base
from sa3lora.cli.output import print_table, status

if TYPE_CHECKING:
    from sa3lora.adapters.files import AdapterFile
    from sa3lora.adapters.merge import Lost
    from sa3lora.adapters.methods import Method
    from sa3lora.adapters.weights import CheckpointWeights
    from sa3lora.models.source import ModelSource


@dataclass(frozen=True)
class Job:
    """What is to be merged: (path, adapter, strength) of each, and how."""

    loaded: list[tuple[str, AdapterFile, float]]
    out: Path
    model: str | None
    method: Method
    allow_other: bool
    force: bool

    @property
    def pairs(self) -> list[tuple[AdapterFile, float]]:
        """Adapters and strengths alone."""
        return [(adapter, strength) for _, adapter, strength in self.loaded]

    @property
    def names(self) -> str:
        """The adapters for people."""
        return ", ".join(f"{label} at {strength:g}" for label, _, strength in self.loaded)

    def weights(self) -> tuple[ModelSource, CheckpointWeights]:
        """Find the base, and refuse adapters that do not belong to it."""
        from sa3lora.adapters.bases import check_bases
        from sa3lora.adapters.weights import CheckpointWeights

        source = find_base(self.model, self.loaded[0][1], label=self.loaded[0][0])
        weights = CheckpointWeights(source.weights_path)
        for label, adapter, _ in self.loaded:
            check_fit(adapter, source, label=label, allow_other=self.allow_other)
            check_bases(adapter, weights, label=label)
        return source, weights


def into_one(job: Job) -> dict[str, Any]:
    """Write one adapter that does exactly what all do."""
    from sa3lora.adapters.compat import check_one_base
    from sa3lora.adapters.exact import exact_type
    from sa3lora.adapters.files import write_adapter
    from sa3lora.adapters.merge import merge_adapters, needs_weights

    check_one_base([(label, a) for label, a, _ in job.loaded], allow_other=job.allow_other)
    mergeable = exact_type([adapter.config.type for adapter, _ in job.pairs]) is not None
    wanted = job.model is not None or (mergeable and needs_weights(job.pairs))
    weights = job.weights()[1] if wanted else None
    merged = merge_adapters(job.pairs, weights=weights)
    write_adapter(job.out, merged, overwrite=job.force)
    kind, rank = merged.config.type, merged.config.r
    status(f"{job.names}: one {kind} of rank {rank}, {len(merged.sites)} layers")
    return {
        "out": str(job.out),
        "type": kind,
        "rank": rank,
        "num_sites": len(merged.sites),
        "content_hash": merged.content_hash,
    }


def to_rank(job: Job, rank: int, *, quiet: bool) -> dict[str, Any]:
    """Write the nearest adapter of a rank, and print what each layer lost unless `quiet`."""
    from sa3lora.adapters.compat import check_one_base
    from sa3lora.adapters.files import write_adapter
    from sa3lora.adapters.merge import merge_to_rank

    check_one_base([(label, a) for label, a, _ in job.loaded], allow_other=job.allow_other)
    _, weights = job.weights()
    merged, lost = merge_to_rank(job.pairs, rank, weights=weights, method=job.method)
    write_adapter(job.out, merged, overwrite=job.force)
    status(
        f"{job.names}: the nearest lora of rank {rank} ({job.method.name}), "
        f"{total_share(lost):.2%} of the change's energy lost"
    )
    if not quiet:
        print_lost(lost)
    return {
        "out": str(job.out),
        "rank": rank,
        "method": job.method.name,
        "num_sites": len(merged.sites),
        "content_hash": merged.content_hash,
        **lost_facts(lost),
    }


def into_base(job: Job, *, whole: bool) -> dict[str, Any]:
    """Write a full checkpoint with the adapters in its weights."""
    import torch

    from sa3lora.adapters.card import merged_card
    from sa3lora.adapters.checkpoint import merge_into_checkpoint

    source, _ = job.weights()
    report = merge_into_checkpoint(
        job.pairs,
        source.folder,
        out=job.out,
        card=merged_card(job.loaded, name=job.out.name, base=source.name, dit_hash=source.dit_hash),
        dtype=torch.float32 if whole else None,
        method=job.method,
        overwrite=job.force,
    )
    status(f"{job.names}: {report.num_changed} weights of {source.name} changed")
    if report.rounding > 0.0:
        status(
            f"the stored type rounds away up to {report.rounding:.2%} of a change "
            f"({report.worst_site}); --store float32 keeps all of it"
        )
    return {
        "out": str(job.out),
        "base": source.name,
        "base_dit_hash": source.dit_hash,
        "method": job.method.name,
        "num_changed": report.num_changed,
        "rounding": report.rounding,
    }


def total_share(lost: dict[str, Lost]) -> float:
    """Share of the energy of all layers together that is lost."""
    energy = sum(one.energy for one in lost.values())
    return sum(one.lost for one in lost.values()) / energy if energy > 0 else 0.0


def lost_facts(lost: dict[str, Lost]) -> dict[str, Any]:
    """Give lost energy as plain values."""
    return {
        "lost_energy": total_share(lost),
        "lost_energy_by_layer": {site: one.share for site, one in sorted(lost.items())},
    }


def print_lost(lost: dict[str, Lost]) -> None:
    """Print what each layer lost."""
    rows = [(site, f"{one.share:.2%}") for site, one in sorted(lost.items())]
    print_table(rows, header=("layer", "lost energy"))
