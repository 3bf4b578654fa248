from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sa3lora.adapters.files import read_adapter
from sa3lora.adapters.inject import adapter_parameters
from sa3lora.errors import AdapterError, DatasetError, RecipeError, RunError
from sa3lora.models.source import ModelSource
from sa3lora.recipe import Recipe
from sa3lora.runs import RunFolder
from sa3lora.training import checkpoint
from sa3lora.training.events import TrainEvent
from sa3lora.training.processes import accelerated
from sa3lora.training.session import load_denoiser, set_up
from sa3lora.training.trainer import train
from tests.training.killing import Killed, train_killed

MakeRecipe = Callable[..., Recipe]


def _tensors(path: Path) -> dict[str, Tensor]:
    adapter = read_adapter(path)
    return {f"{s}.{n}": t for s, site in adapter.tensors.items() for n, t in site.items()}


def _same(first: Path, second: Path) -> bool:
    one, two = _tensors(first), _tensors(second)
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def kept_files(run: RunFolder) -> dict[str, bytes]:
    files = [run.path / "validation.jsonl", *(run.path / "best").iterdir()]
    return {path.name: path.read_bytes() for path in files}


@pytest.fixture(scope="session")
def whole(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[Recipe, ModelSource], RunFolder]:
    runs: dict[str, RunFolder] = {}

    def get(recipe: Recipe, source: ModelSource) -> RunFolder:
        # The dataset of every test has the same content, so one uninterrupted run serves all.
        key = recipe.model_copy(update={"data": None}).model_dump_json()
        if key not in runs:
            run = RunFolder.create("whole", root=tmp_path_factory.mktemp("runs"))
            train(recipe, run=run, source=source, device="cpu")
            runs[key] = run
        return runs[key]

    return get


def test_a_run_leaves_an_adapter_that_says_what_it_is(
    source: ModelSource, make_recipe: MakeRecipe, whole: Callable[..., RunFolder]
) -> None:
    run = whole(make_recipe(), source)
    adapter = read_adapter(run.adapter_path)
    assert any(float(site["lora_B"].abs().max()) > 0 for site in adapter.tensors.values())
    assert adapter.metadata["sa3lora.dit_hash"] == source.dit_hash
    assert str(run.path.parent) not in adapter.metadata["sa3lora.recipe"]
    manifest = run.manifest()
    assert manifest["status"] == "finished"
    assert manifest["best"]["step"] in (3, 6)
    assert adapter.metadata["sa3lora.step"] == str(manifest["adapter"]["step"])
    assert manifest["adapter"]["step"] == manifest["best"]["step"]
    assert "held-out loss" in manifest["adapter"]["reason"]
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["step-00000004", "step-00000006"]
    assert list(run.path.glob("events*"))


def test_only_the_adapter_changes(source: ModelSource, make_recipe: MakeRecipe) -> None:
    with accelerated("cpu") as accelerator:
        setup = set_up(make_recipe(), source=source, accelerator=accelerator)
        denoiser = load_denoiser(setup)
    trained = {name for name, p in denoiser.named_parameters() if p.requires_grad}
    assert len(trained) == len(adapter_parameters(denoiser)) == 2 * setup.plan.num_sites
    assert all("lora_" in name for name in trained)


@pytest.mark.parametrize("killed_at", [1, 3, 5])
def test_a_killed_run_ends_in_the_same_adapter(
    tmp_path: Path,
    source: ModelSource,
    make_recipe: MakeRecipe,
    whole: Callable[..., RunFolder],
    killed_at: int,
) -> None:
    recipe = make_recipe("adapter.lora_dropout=0.2", "train.grad_accum=2")
    run = RunFolder.create("killed", root=tmp_path)
    result = train_killed(recipe, run=run, source=source, step=killed_at)
    assert result.finished
    assert _same(run.adapter_path, whole(recipe, source).adapter_path)
    uninterrupted = whole(recipe, source)
    for name in ("validation", "best", "overfits_since"):
        assert run.manifest()[name] == uninterrupted.manifest()[name]
    assert [entry["step"] for entry in run.manifest()["validation"]] == [3, 6]
    assert kept_files(run) == kept_files(uninterrupted)


def test_a_run_killed_inside_a_checkpoint_ends_in_the_same_adapter(
    tmp_path: Path,
    source: ModelSource,
    make_recipe: MakeRecipe,
    whole: Callable[..., RunFolder],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = RunFolder.create("killed", root=tmp_path)
    calls = []

    def die_the_second_time(folder: Path) -> None:
        calls.append(folder)
        if len(calls) == 2:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_sync_file", die_the_second_time)
        with pytest.raises(Killed):
            train(make_recipe(), run=run, source=source, device="cpu")
    train(make_recipe(), run=run, source=source, device="cpu", resume=True)
    assert _same(run.adapter_path, whole(make_recipe(), source).adapter_path)


def test_a_damaged_checkpoint_costs_only_its_own_steps(
    tmp_path: Path,
    source: ModelSource,
    make_recipe: MakeRecipe,
    whole: Callable[..., RunFolder],
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = RunFolder.create("damaged", root=tmp_path)
    train(make_recipe(), run=run, source=source, device="cpu")
    run.adapter_path.unlink()
    (run.checkpoints / "step-00000006" / "optimizer.pt").write_bytes(b"broken")
    told: list[TrainEvent] = []
    train(make_recipe(), run=run, source=source, device="cpu", resume=True, progress=told.append)
    assert "step-00000006" in caplog.text
    assert any(event.text == "going on after step 4" for event in told)
    assert _same(run.adapter_path, whole(make_recipe(), source).adapter_path)


def test_a_signal_saves_before_leaving(
    tmp_path: Path, source: ModelSource, make_recipe: MakeRecipe, whole: Callable[..., RunFolder]
) -> None:
    run = RunFolder.create("stopped", root=tmp_path)

    def stop(event: TrainEvent) -> None:
        if event.kind == "step" and event.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    result = train(make_recipe(), run=run, source=source, device="cpu", progress=stop)
    assert (result.finished, result.signal, result.step) == (False, "SIGTERM", 3)
    assert run.manifest()["status"] == "interrupted"
    assert (run.checkpoints / "step-00000003").is_dir()
    train(make_recipe(), run=run, source=source, device="cpu", resume=True)
    assert _same(run.adapter_path, whole(make_recipe(), source).adapter_path)


def test_previews_do_not_disturb_the_run(
    tmp_path: Path, source: ModelSource, make_recipe: MakeRecipe, whole: Callable[..., RunFolder]
) -> None:
    run = RunFolder.create("previews", root=tmp_path)
    recipe = make_recipe("preview={every: 3, steps: 1, duration_s: 0.2, prompts: [a, b]}")
    state = torch.get_rng_state()
    train(recipe, run=run, source=source, device="cpu")
    assert torch.equal(torch.get_rng_state(), state)
    assert _same(run.adapter_path, whole(make_recipe(), source).adapter_path)
    names = sorted(path.name for path in run.previews.iterdir())
    of_one = ["base.wav", "step-00000003.wav", "step-00000006.wav"]
    assert names == ["00-ground-truth.wav", *(f"0{n}-{name}" for n in (1, 2) for name in of_one)]


def test_another_recipe_cannot_go_on_with_a_run(
    tmp_path: Path, source: ModelSource, make_recipe: MakeRecipe
) -> None:
    run = RunFolder.create("other", root=tmp_path)
    train(make_recipe("train.max_steps=1"), run=run, source=source, device="cpu")
    with pytest.raises(RunError, match=r"optim.lr: was 0.01, is 0.02"):
        train(make_recipe("optim.lr=0.02"), run=run, source=source, device="cpu", resume=True)
    assert run.adapter_path.is_file()


def test_a_longer_run_goes_on_from_a_shorter_one(
    tmp_path: Path, source: ModelSource, make_recipe: MakeRecipe, whole: Callable[..., RunFolder]
) -> None:
    run = RunFolder.create("longer", root=tmp_path)
    train(make_recipe("train.max_steps=4"), run=run, source=source, device="cpu")
    train(make_recipe(), run=run, source=source, device="cpu", resume=True)
    assert _same(run.adapter_path, whole(make_recipe(), source).adapter_path)


def test_training_goes_on_from_an_adapter_file(
    tmp_path: Path, source: ModelSource, make_recipe: MakeRecipe, whole: Callable[..., RunFolder]
) -> None:
    before = whole(make_recipe(), source).adapter_path
    run = RunFolder.create("further", root=tmp_path)
    recipe = make_recipe(f"adapter.from={before}", "optim.lr=1e-12", "optim.weight_decay=0")
    train(recipe, run=run, source=source, device="cpu")
    old, new = _tensors(before), _tensors(run.adapter_path)
    for key, tensor in old.items():
        torch.testing.assert_close(new[key], tensor, rtol=1e-5, atol=1e-8)
    wrong = make_recipe(f"adapter.from={before}", "adapter.r=2")
    with pytest.raises(RecipeError, match="is lora with r 4 and alpha 4, the recipe wants lora"):
        train(wrong, run=RunFolder.create("wrong", root=tmp_path), source=source, device="cpu")


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("adapter={type: bora-xs, r: 20}", AdapterError, "Lower adapter.r to 12"),
        ("train.dtype=float16", RecipeError, "train.dtype: float16 loses small gradients"),
        ("data.root=null", RecipeError, "data.root: the recipe names no dataset"),
        ("data.root=nowhere", DatasetError, "there is no folder nowhere"),
        ("data.split=test", DatasetError, "no clip in its test split"),
        ("data.max_duration_s=9", RecipeError, "makes at most 1.024 s, got 9"),
    ],
)
def test_what_cannot_be_trained_is_refused_and_leaves_no_folder(
    tmp_path: Path,
    source: ModelSource,
    make_recipe: MakeRecipe,
    override: str,
    error: type[Exception],
    message: str,
) -> None:
    run = RunFolder.create("bad", root=tmp_path)
    with pytest.raises(error, match=message):
        train(make_recipe(override), run=run, source=source, device="cpu")
    assert not run.path.exists()


def test_a_dataset_of_another_model_is_refused(
    tmp_path: Path,
    source: ModelSource,
    make_recipe: MakeRecipe,
    make_latents: Callable[..., Path],
) -> None:
    other = make_latents(tmp_path / "other", ae_hash="0" * 64)
    run = RunFolder.create("bad", root=tmp_path)
    with pytest.raises(DatasetError, match="has another autoencoder"):
        train(make_recipe(f"data.root={other}"), run=run, source=source, device="cpu")


def test_checkpointing_of_activations_changes_no_bit(
    tmp_path: Path, source: ModelSource, make_recipe: MakeRecipe, whole: Callable[..., RunFolder]
) -> None:
    run = RunFolder.create("checkpointing", root=tmp_path)
    train(make_recipe("train.checkpointing=true"), run=run, source=source, device="cpu")
    assert _same(run.adapter_path, whole(make_recipe(), source).adapter_path)


def test_a_bfloat16_base_trains_a_float32_adapter_and_makes_previews(
    tmp_path: Path, source: ModelSource, make_recipe: MakeRecipe
) -> None:
    run = RunFolder.create("bfloat16", root=tmp_path)
    recipe = make_recipe(
        "train={max_steps: 2, base_dtype: bfloat16, dtype: bfloat16}",
        "preview={every: 2, steps: 1, duration_s: 0.1, prompts: [a]}",
    )
    result = train(recipe, run=run, source=source, device="cpu")
    assert result.validation is not None
    assert result.validation.main.difference < 0
    stored = _tensors(run.adapter_path)
    assert all(tensor.dtype == torch.float32 for tensor in stored.values())
    # Steps of 0.01 on values near 0.1 would be lost in bfloat16 storage: some digits are beyond it.
    assert any(not torch.equal(t, t.bfloat16().float()) for t in stored.values())
