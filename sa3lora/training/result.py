"""What a run leaves behind: the adapter with its header, and the manifest."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
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
from sa3lora.training.choice import Verdict
from sa3lora.training.data import TrainingData
from sa3lora.training.identity import Changes
from sa3lora.training.plan import Plan
from sa3lora.training.selection import Chosen
from sa3lora.training.validation import VALIDATION, Validation


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        run: Its folder.
        step: Number of finished steps.
        finished: False if a signal stopped it; it was saved then and can be resumed.
        adapter_path: The adapter, None unless finished.
        validation: Paired losses of that adapter, or after the last step of a run that was
            stopped; None if validation is off.
        adapter_step: The step that the adapter is of, None unless finished.
        reason: Why that step, in a sentence; empty unless finished.
        overfits_since: First step of overfitting, None if none was found.
        signal: Name of the signal that stopped it.
    """

    run: RunFolder
    step: int
    finished: bool
    adapter_path: Path | None
    validation: Validation | None
    adapter_step: int | None = None
    reason: str = ""
    overfits_since: int | None = None
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
            "overfits_since": None,
        }
        return cls(run, content)

    @property
    def identity(self) -> dict[str, Any]:
        """What the run was started with."""
        identity: dict[str, Any] = self.content["identity"]
        return identity

    def forget_after(self, step: int) -> None:
        """Drop what a killed process recorded of steps that are about to be taken again."""
        kept = [entry for entry in self.content["validation"] if entry["step"] <= step]
        self.content["validation"] = kept

    def take_changes(self, changes: Changes, *, identity: dict[str, Any], step: int) -> None:
        """Record that the run goes on otherwise than it was started."""
        self.content.setdefault("changes", []).append(changes.to_json(step=step))
        self.content["identity"] = identity
        if changes.measure:  # two measures have no best in common
            self.content["validation"] = []
            self.content["best"] = None

    def changed_since(self, step: int) -> set[str]:
        """Collect the keys that changed after a checkpoint of `step` was written."""
        entries = self.content.get("changes", [])
        return {key for entry in entries if entry["step"] >= step for key in entry["keys"]}

    def keep_validations(self, steps: Sequence[int]) -> None:
        """Drop the validations of all other steps."""
        kept = [entry for entry in self.content["validation"] if entry["step"] in steps]
        self.content["validation"] = kept

    def add_validation(
        self, validation: Validation, verdict: Verdict, drift: Mapping[str, float]
    ) -> None:
        """Record paired losses, the gap between held-out and training tracks, and drift."""
        gaps = {"gap": verdict.gap, "gap_growth": verdict.growth}
        told = {name: asdict(gap) for name, gap in gaps.items() if gap is not None}
        named = {tag.partition("/")[2]: value for tag, value in drift.items()}
        self.content["validation"].append({**validation.to_json(), **told, **named})
        self.note_choice(verdict)

    def note_choice(self, verdict: Verdict) -> None:
        """Record the best step so far by held-out loss, and overfitting since."""
        best = verdict.chosen
        held_out = best is not None and bool(best.held_out)
        self.content["best"] = (
            {"step": best.step, "difference": best.difference, "clips": VALIDATION}
            if best is not None and held_out
            else None
        )
        self.content["overfits_since"] = verdict.overfits_since

    def write(self, **changes: Any) -> None:
        """Update values and write the file whole."""
        self.content.update(changes)
        self._run.write_manifest(self.content)


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
    distill = recipe.distill
    if distill.teacher is not None:
        distill = distill.model_copy(update={"teacher": Path(distill.teacher.name)})
    if distill.base is not None and Path(distill.base).is_dir():
        distill = distill.model_copy(update={"base": Path(distill.base).name})
    model = recipe.model
    if model is not None and Path(model).is_dir():
        model = Path(model).name
    changes = {"model": model, "data": data, "adapter": adapter, "distill": distill}
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
    last_step: int,
    chosen: Chosen,
    stack: Sequence[Stacked] = (),
) -> Path:
    """Write the adapter in memory, which is the chosen one, and close the manifest.

    It is float32, in the official layout if its type has a place there.
    """
    metadata = build_metadata(
        base_id=source.name,
        dit_hash=source.dit_hash,
        ae_hash=source.ae_hash,
        dataset=data.train.meta.fingerprint,
        recipe=shareable_recipe(recipe),
        step=chosen.step,
        licence=licence_of([row.licence for row in data.train.rows]),
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
        step=last_step,
        adapter={
            **record.content["adapter"],
            "file": path.relative_to(run.path).as_posix(),
            "sha256": sha256_file(path),
            "step": chosen.step,
            "reason": chosen.reason,
        },
    )
    return finished_path(run, config)


def finished_path(run: RunFolder, config: AdapterConfig) -> Path:
    """Where a run of this type leaves its adapter: one file, or a PEFT folder for `lokr`."""
    return run.path / FOLDER_OF_A_RUN if config.type == LOKR else run.adapter_path


def licence_of(told: Sequence[str | None]) -> str | None:
    """Give the licences of clips, and how many tell none beside those that do; None if all do not.

    Args:
        told: Of each clip.
    """
    known = sorted({licence for licence in told if licence})
    silent = sum(not licence for licence in told)
    if not known:
        return None
    return ", ".join(known) + (f"; {silent} of {len(told)} clips tell none" if silent else "")
