from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sa3lora.errors import RunError, UsageError
from sa3lora.recipe import Recipe
from sa3lora.training import resume_proof
from sa3lora.training.resume_proof import verify_resume

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder in which temporary folders are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_killed_and_resumed_run_is_proved_to_be_the_same_and_nothing_is_left(
    make_recipe: MakeRecipe, small_model: Path, latents: Path, temporary: Path
) -> None:
    before = sorted(latents.rglob("*"))
    told: list[str] = []
    proof = verify_resume(
        make_recipe(), model=str(small_model), steps=4, kill_at=3, device="cpu", tell=told.append
    )
    assert proof.equal, proof.differences
    assert proof.adapters[0] == proof.adapters[1]
    assert proof.states[0] == proof.states[1]
    assert proof.resumed_from == 2
    assert any("killed after step 3" in line for line in told)
    assert sorted(latents.rglob("*")) == before
    assert list(temporary.iterdir()) == []


def test_a_run_that_fails_is_told_with_its_last_words(
    make_recipe: MakeRecipe, small_model: Path, temporary: Path
) -> None:
    recipe = make_recipe("data.root=nowhere")
    with pytest.raises(RunError, match="there is no folder nowhere"):
        verify_resume(recipe, model=str(small_model), steps=2, kill_at=1, device="cpu", tell=print)
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("kill_at", [0, 4, 9])
def test_a_kill_must_come_before_the_end(make_recipe: MakeRecipe, kill_at: int) -> None:
    with pytest.raises(UsageError, match=f"from 1 to 3.*got {kill_at}"):
        verify_resume(
            make_recipe(), model="tiny", steps=4, kill_at=kill_at, device="cpu", tell=print
        )


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ("adapter", "a differs (by up to 0.5)"),
        ("moment", "optimizer.state.0.exp_avg differs (by up to 1.0)"),
        ("step", "optimizer.state.0.step is 4 without interruption and 3 after the resume"),
        ("average", "averages.b is in one of the two only"),
    ],
)
def test_a_single_other_value_is_found_and_named(tmp_path: Path, changed: str, found: str) -> None:
    for name in ("one", "two"):
        other = name == "two"
        folder = tmp_path / name
        folder.mkdir()
        a = torch.tensor([1.0, 1.5 if other and changed == "adapter" else 1.0])
        save_file({"a": a}, folder / "adapter.safetensors")
        averages = {"a": torch.ones(1)} | ({"b": a} if other and changed == "average" else {})
        save_file(averages, folder / "averages.safetensors")
        moment = torch.full((2,), 2.0 if other and changed == "moment" else 1.0)
        state = {"exp_avg": moment, "step": 3 if other and changed == "step" else 4}
        torch.save({"state": {0: state}}, folder / "optimizer.pt")
        torch.save({"any": other}, folder / "random.pt")
    folders = (tmp_path / "one", tmp_path / "two")
    proof = resume_proof._compare(*folders, steps=4, killed_at=3, resumed_from=2)
    assert proof.differences == (found,)
    assert (proof.adapters[0] == proof.adapters[1]) == (changed != "adapter")
    assert (proof.states[0] == proof.states[1]) == (changed == "adapter")
    same = resume_proof._compare(folders[0], folders[0], steps=4, killed_at=3, resumed_from=2)
    assert same.equal
