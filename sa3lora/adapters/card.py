"""The README of a merged checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

import sa3lora
from sa3lora.adapters.compat import base_name
from sa3lora.adapters.files import AdapterFile
from sa3lora.adapters.header import PREFIX


def merged_card(
    adapters: Sequence[tuple[str, AdapterFile, float]], *, name: str, base: str, dit_hash: str
) -> str:
    """Write what a merged checkpoint is made of, as a model card.

    Args:
        adapters: Path of each adapter, the adapter, and its strength.
        name: Title of the checkpoint.
        base: Name of the model merged into.
        dit_hash: Hash of that model's DiT and conditioners.
    """
    lines = [
        "---",
        f"base_model: {base}",
        "license: other",
        "tags: [stable-audio-3, merged-lora]",
        "---",
        "",
        f"# {name}",
        "",
        f"{base} with these adapters merged into its weights by sa3lora {sa3lora.__version__}. It "
        "loads wherever that model loads. The licence of the base model applies, and those below.",
        "",
        f"Base weights (DiT and conditioners): `{dit_hash}`",
        "",
        "| adapter | strength | type | trained on | trigger | licence | content |",
        "|---|---|---|---|---|---|---|",
    ]
    for label, adapter, strength in adapters:
        cells = [
            _short(label, adapter),
            f"{strength:g}",
            f"{adapter.config.type}, rank {adapter.config.r}",
            base_name(adapter) or "not told",
            adapter.metadata.get(f"{PREFIX}trigger", ""),
            adapter.metadata.get(f"{PREFIX}licence", "not told"),
            f"`{adapter.content_hash[:16]}`",
        ]
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _short(label: str, adapter: AdapterFile) -> str:
    """Name an adapter without the folders of this machine: its title, run or file."""
    path = PurePath(label)
    name = path.parent.name if path.stem == "adapter" and path.parent.name else path.stem
    return adapter.metadata.get("modelspec.title") or name
