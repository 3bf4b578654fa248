"""LoKr through the real trainer: checkpoints, resume, the folder it leaves, playing it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from peft import PeftModel

from sa3lora.adapters.files import read_adapter
from sa3lora.cli.main import main
from sa3lora.models.source import ModelSource
from sa3lora.pipeline import SA3Pipeline
from sa3lora.recipe import Recipe
from sa3lora.runs import RunFolder
from sa3lora.training.processes import accelerated
from sa3lora.training.session import build_text, set_up
from sa3lora.training.trainer import train
from sa3lora.training.validation import Validator
from tests.training.killing import train_whole_and_killed

MakeRecipe = Callable[..., Recipe]
_LOKR = ("adapter={type: lokr, r: 2}", "train.max_steps=3", "validate={every: 3, tuples: 4}")


@pytest.mark.parametrize("choice", ["optim={lr: 0.01, ema_decay: 0.5}", "optim.name=muon"])
def test_a_lokr_trains_resumes_and_plays_as_it_was_validated(
    tmp_path: Path, source: ModelSource, make_recipe: MakeRecipe, choice: str
) -> None:
    recipe = make_recipe(*_LOKR, choice)
    whole, result = train_whole_and_killed(recipe, root=tmp_path, source=source, step=3)
    assert result.adapter_path == whole.path / "adapter"
    assert not whole.adapter_path.exists()
    trained = read_adapter(result.adapter_path)
    assert trained.metadata["sa3lora.dit_hash"] == source.dit_hash

    with accelerated("cpu") as accelerator:
        setup = set_up(recipe, source=source, accelerator=accelerator)
    validator = Validator(recipe, data=setup.data, source=source, text=build_text(setup))
    assert result.validation is not None
    expected = pytest.approx(result.validation.main.adapter, rel=1e-5)
    pipeline = SA3Pipeline(source)
    assert pipeline.load_adapter(result.adapter_path) == "whole"
    assert validator.run(pipeline.denoiser, 3).main.adapter == expected
    plain = source.load_denoiser()
    assert validator.run(plain, 3).main.adapter != expected
    PeftModel.from_pretrained(plain, result.adapter_path)  # puts its layers into the model
    assert validator.run(plain.eval(), 3).main.adapter == expected


def test_a_lokr_trains_on_a_coarse_base_and_makes_previews(
    tmp_path: Path, source: ModelSource, make_recipe: MakeRecipe
) -> None:
    run = RunFolder.create("coarse", root=tmp_path)
    recipe = make_recipe(
        *_LOKR,
        "train={max_steps: 3, base_dtype: bfloat16, dtype: bfloat16}",
        "preview={every: 3, steps: 1, duration_s: 0.1, prompts: [a]}",
    )
    result = train(recipe, run=run, source=source, device="cpu")
    assert result.validation is not None
    # three steps say nothing of what was held out, but they were taken on these
    assert result.validation.results["train"].difference < -0.1
    assert len(list(run.previews.iterdir())) == 3  # what was held out, base and adapter


def test_a_finished_run_is_inspected_verified_and_gone_on_from(
    tmp_path: Path,
    source: ModelSource,
    make_recipe: MakeRecipe,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = RunFolder.create("run", root=tmp_path)
    recipe = make_recipe(*_LOKR, "validate.every=0")
    train(recipe, run=run, source=source, device="cpu")
    assert main(["inspect", str(run.path), "--model", str(source.folder)]) == 0
    out = capsys.readouterr().out
    assert "lokr" in out
    assert "to_qkv" in out
    assert main(["verify", str(run.path)]) == 0
    model = ["--model", str(source.folder)]
    for target, out, message in (
        ("sa3", "a.safetensors", r"a.safetensors: lokr has no form as a single file"),
        ("peft", "a", "lokr is a PEFT folder already: copy it"),
    ):
        command = ["convert", str(run.path), "--to", target, *model, "-o", str(tmp_path / out)]
        assert main(command) == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / out).exists()
    further = RunFolder.create("further", root=tmp_path)
    recipe = make_recipe(*_LOKR, f"adapter={{type: lokr, r: 2, from: {run.path}}}")
    assert train(recipe, run=further, source=source, device="cpu").finished
    (run.path / "adapter" / "adapter_model.safetensors").write_bytes(b"")
    capsys.readouterr()
    assert main(["verify", str(run.path)]) == 1
    assert "adapter/adapter_model.safetensors: changed" in capsys.readouterr().out
