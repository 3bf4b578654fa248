"""What a run leaves behind: the adapter with its header, and the manifest."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import sa3lora
from sa3lora.adapters.bases import pin_bases
from sa3lora.adapters.config import LOKR, AdapterConfig
from sa3lora.adapters.files import write_adapter
from sa3lora.adapters.find import FOLDER_OF_A_RUN
from sa3lora.adapters.header import build_metadata
from sa3lora.adapters.inject import export_file
from sa3lora.adapters.lokr_folder import write_lokr_folder
from sa3lora.adapters.peft_read import WEIGHTS_NAME
from sa3lora.adapters.stacked import Stacked, stack_metadata
from sa3lora.adapters.weights import CheckpointWeights
from sa3lora.models.denoiser import Denoiser
from sa3lora.models.source import ModelSource
from sa3lora.recipe import Recipe
from sa3lora.runs import RunFolder, sha256_file
from sa3lora.training.data import TrainingData
from sa3lora.training.identity import Changes
from sa3lora.training.plan import Plan
from sa3lora.training.validation import Validation


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        run: Its folder.
        step: Number of finished steps.
        finished: False if a signal stopped it; it was saved then and can be resumed.
        adapter_path: The adapter, None unless finished.
        validation: Paired losses after the last step, None if validation is off.
        best_step: Step of the lowest validation difference, None without validation.
        signal: Name of the signal that stopped it.
    """

    run: RunFolder
    step: int
    finished: bool
    adapter_path: Path | None
    validation: Validation | None
    best_step: int | None
    signal: str | None = None


class RunRecord:
    """The manifest of a run: everything that a reader needs to know what its adapter is."""

    def __init__(self, run: RunFolder, content: dict[str, Any]) -> None:
        """Take the content of the manifest."""
        self._run = run
        self.content = content

    @classmethod
    def start(
        cls,
        run: RunFolder,
        *,
        identity: dict[str, Any],
        plan: Plan,
        source: ModelSource,
        data: TrainingData,
    ) -> RunRecord:
        """Describe a run that is about to begin; `write` puts it on disk."""
        content = {
            "sa3lora_version": sa3lora.__version__,
            "torch_version": torch.__version__,
            "date": dt.date.today().isoformat(),
            "status": "training",
            "step": 0,
            "base": {
                "name": source.name,
                "dit_hash": source.dit_hash,
                "ae_hash": source.ae_hash,
            },
            "dataset": {
                "fingerprint": data.train.meta.fingerprint,
                "clips": len(data.train),
                "counts": data.train.meta.counts,
                "seconds": data.train.meta.seconds,
            },
            "adapter": {"sites": plan.num_sites, "parameters": plan.num_parameters},
            "plan": dict(plan.rows),
            "identity": identity,
            "validation": [],
            "best": None,
            "setbacks": [],
            "changes": [],
        }
        return cls(run, content)

    @property
    def identity(self) -> dict[str, Any]:
        """What the run was started with."""
        identity: dict[str, Any] = self.content["identity"]
        return identity

    @property
    def best_step(self) -> int | None:
        """Step of the lowest validation difference so far."""
        best = self.content["best"]
        return None if best is None else int(best["step"])

    def forget_after(self, step: int) -> None:
        """Drop what a killed process recorded of steps that are about to be taken again."""
        kept = [entry for entry in self.content["validation"] if entry["step"] <= step]
        self.content["validation"] = kept
        self._choose_best()

    def take_changes(self, changes: Changes, *, identity: dict[str, Any], step: int) -> None:
        """Record that the run goes on otherwise than it was started."""
        self.content.setdefault("changes", []).append(changes.to_json(step=step))
        self.content["identity"] = identity
        if changes.measure:  # two measures have no best in common
            self.content["validation"] = []
            self._choose_best()

    def changed_since(self, step: int) -> set[str]:
        """Collect the keys that changed after a checkpoint of `step` was written."""
        entries = self.content.get("changes", [])
        return {key for entry in entries if entry["step"] >= step for key in entry["keys"]}

    def add_validation(self, validation: Validation) -> None:
        """Record paired losses and whether they are the best so far."""
        self.content["validation"].append(validation.to_json())
        self._choose_best()

    def write(self, **changes: Any) -> None:
        """Update values and write the file whole."""
        self.content.update(changes)
        self._run.write_manifest(self.content)

    def _choose_best(self) -> None:
        entries = [
            {"step": entry["step"], "difference": entry[kind]["difference"], "clips": kind}
            for entry in self.content["validation"]
            for kind in [("validation" if "validation" in entry else "train")]
        ]
        self.content["best"] = min(entries, key=lambda entry: entry["difference"], default=None)


def shareable_recipe(recipe: Recipe) -> str:
    """Write a recipe without the paths of this machine."""
    data = recipe.data
    if data.root is not None:
        data = data.model_copy(update={"root": Path(data.root.name)})
    adapter = recipe.adapter
    if adapter.from_ is not None:
        adapter = adapter.model_copy(update={"from_": Path(adapter.from_.name)})
    names = [f"{path.name}={strength!r}" for path, strength in adapter.stack_entries()]
    adapter = adapter.model_copy(update={"stack": names})
    model = recipe.model
    if model is not None and Path(model).is_dir():
        model = Path(model).name
    changes = {"model": model, "data": data, "adapter": adapter}
    return recipe.model_copy(update=changes).to_yaml()


def write_result(
    denoiser: Denoiser,
    *,
    config: AdapterConfig,
    recipe: Recipe,
    run: RunFolder,
    record: RunRecord,
    source: ModelSource,
    data: TrainingData,
    step: int,
    stack: Sequence[Stacked] = (),
) -> Path:
    """Write the finished adapter, float32, in the official layout if its type has a place there."""
    licences = sorted({row.licence for row in data.train.rows if row.licence})
    metadata = build_metadata(
        base_id=source.name,
        dit_hash=source.dit_hash,
        ae_hash=source.ae_hash,
        dataset=data.train.meta.fingerprint,
        recipe=shareable_recipe(recipe),
        step=step,
        licence=", ".join(licences) or None,
        title=run.name,
        date=dt.date.fromisoformat(record.content["date"]),
    )
    adapter = export_file(denoiser, config, metadata=metadata | stack_metadata(stack))
    adapter = pin_bases(adapter, CheckpointWeights(source.weights_path), carry=False)
    if config.type == LOKR:
        path = write_lokr_folder(run.path / FOLDER_OF_A_RUN, adapter) / WEIGHTS_NAME
    else:
        path = run.adapter_path
        write_adapter(path, adapter, overwrite=True)
    record.write(
        status="finished",
        step=step,
        adapter={
            **record.content["adapter"],
            "file": path.relative_to(run.path).as_posix(),
            "sha256": sha256_file(path),
        },
    )
    return finished_path(run, config)


def finished_path(run: RunFolder, config: AdapterConfig) -> Path:
    """Where a run of this type leaves its adapter: one file, or a PEFT folder for `lokr`."""
    return run.path / FOLDER_OF_A_RUN if config.type == LOKR else run.adapter_path


def flat_settings(recipe: Recipe) -> dict[str, bool | str | float | int]:
    """Give every key of a recipe with a value that TensorBoard's HPARAMS tab can show."""
    flat: dict[str, bool | str | float | int] = {}
    for section, content in recipe.model_dump(mode="json", by_alias=True).items():
        entries = content.items() if isinstance(content, dict) else [("", content)]
        for key, value in entries:
            name = f"{section}.{key}".rstrip(".")
            flat[name] = value if isinstance(value, bool | int | float) else str(value)
    return flat
