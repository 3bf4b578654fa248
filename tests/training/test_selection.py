from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sa3lora.adapters.config import AdapterConfig
from sa3lora.adapters.files import AdapterFile, read_adapter
from sa3lora.errors import RecipeError
from sa3lora.recipe import AdapterSection, ValidationSection
from sa3lora.runs import RunFolder
from sa3lora.training.selection import FOLDER_NAME, Selection
from sa3lora.training.validation import Validation


class _Run:
    """An adapter whose only number is the step, validated where a test says so."""

    def __init__(self, folder: Path, *, held_out: bool = True, **keys: object) -> None:
        self.step = 0
        self.folder = RunFolder(folder)
        self.selection = Selection(
            ValidationSection.model_validate(keys),
            run=self.folder,
            held_out=held_out,
            export=self._export,
        )
        self._held_out = held_out

    def _export(self) -> AdapterFile:
        tensors = {"lora_A": torch.full((1, 3), float(self.step)), "lora_B": torch.zeros(2, 1)}
        config = AdapterConfig.from_section(AdapterSection(r=1)).stored()
        return AdapterFile(config, {"model.layer": tensors}, {})

    def validate(self, step: int, loss: float, *, extra: bool = False) -> None:
        self.step = step
        by_track = {"train": (loss, loss)}
        if self._held_out:
            by_track["validation"] = (loss, loss)
        self.selection.add(Validation(step, {}, by_track), extra=extra)

    def kept(self) -> list[int]:
        found = (self.folder.path / FOLDER_NAME).glob("*")
        return sorted(int(path.stem.removeprefix("step-")) for path in found)

    def checkpoint(self, step: int) -> None:
        (self.folder.checkpoints / f"step-{step:08d}").mkdir()


def test_the_best_adapter_is_kept_and_nothing_else(tmp_path: Path) -> None:
    run = _Run(tmp_path)
    for step, loss in ((1, -0.1), (2, -0.3), (3, -0.2)):
        run.validate(step, loss)
    assert run.kept() == [2]
    chosen = run.selection.choose(3)
    assert chosen.step == 2
    assert "step 2 has the lowest held-out loss of 3 validations (-0.3000" in chosen.reason
    assert chosen.adapter is not None
    assert float(chosen.adapter.tensors["model.layer"]["lora_A"][0, 0]) == 2.0


def test_what_a_checkpoint_would_need_stays_until_the_checkpoint_goes(tmp_path: Path) -> None:
    run = _Run(tmp_path)
    run.validate(1, -0.1)
    run.checkpoint(1)
    run.validate(2, -0.3)
    assert run.kept() == [1, 2]
    again = _Run(tmp_path)
    assert again.selection.restore(1, max_steps=9) == []
    assert again.selection.choose(1).step == 1
    again.validate(2, -0.3)
    assert again.selection.choose(2).step == 2
    (run.folder.checkpoints / "step-00000001").rmdir()
    again.validate(3, -0.2)
    assert again.kept() == [2]


def test_a_longer_run_chooses_as_if_the_shorter_had_not_ended(tmp_path: Path) -> None:
    run = _Run(tmp_path)
    run.validate(3, -0.1)
    run.validate(4, -0.2, extra=True)
    assert run.selection.choose(4).step == 4
    longer = _Run(tmp_path)
    assert longer.selection.restore(4, max_steps=6) == []
    assert longer.selection.steps == [3]
    assert longer.selection.choose(4).adapter is not None
    same = _Run(tmp_path)
    same.selection.restore(4, max_steps=4)
    assert same.selection.choose(4).step == 4


def test_a_damaged_best_adapter_is_told_and_never_written(tmp_path: Path) -> None:
    run = _Run(tmp_path)
    run.validate(1, -0.3)
    run.validate(2, -0.1)
    path = next((tmp_path / FOLDER_NAME).iterdir())
    path.write_bytes(b"broken")
    again = _Run(tmp_path)
    told = again.selection.restore(2, max_steps=9)
    assert len(told) == 1
    assert "step-00000001.safetensors is missing or damaged" in told[0]
    assert again.selection.choose(2).reason == "step 2 is the last one, and none was validated"
    again.validate(3, 0.1)
    chosen = again.selection.choose(4)
    assert chosen.step == 3
    assert "No better than the base" in chosen.reason


def test_the_last_step_is_taken_where_the_recipe_or_the_data_want_it(tmp_path: Path) -> None:
    for name, keys, held_out, why in (
        ("last", {"select": "last"}, True, "as validate.select=last wants it"),
        ("blind", {}, False, "no held-out clips say that another is better"),
    ):
        run = _Run(tmp_path / name, held_out=held_out, **keys)
        run.folder.path.mkdir()
        run.validate(1, -0.5)
        run.validate(2, 0.5)
        chosen = run.selection.choose(2)
        assert (chosen.step, chosen.adapter) == (2, None)
        assert why in chosen.reason


def test_patience_counts_validations_since_the_best(tmp_path: Path) -> None:
    run = _Run(tmp_path, patience=2)
    ends = []
    for step, loss in ((1, -0.1), (2, 0.0), (3, -0.2), (4, 0.0), (5, -0.1)):
        run.validate(step, loss)
        ends.append(run.selection.out_of_patience)
    assert ends == [False, False, False, False, True]
    again = _Run(tmp_path, patience=2)
    again.selection.restore(5, max_steps=9)
    assert again.selection.out_of_patience


def test_patience_without_held_out_clips_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"validate.patience: there are no held-out clips"):
        _Run(tmp_path, held_out=False, patience=2)


def test_the_kept_file_is_an_adapter_that_can_be_played(tmp_path: Path) -> None:
    run = _Run(tmp_path)
    run.validate(7, -0.1)
    assert (
        read_adapter(tmp_path / FOLDER_NAME / "step-00000007.safetensors").rank("model.layer") == 1
    )
