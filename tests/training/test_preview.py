from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sa3lora.adapters.inject import adapter_parameters
from sa3lora.audio import read_audio
from sa3lora.errors import RecipeError
from sa3lora.models.source import ModelSource, resolve_model
from sa3lora.pipeline import SA3Pipeline
from sa3lora.recipe import Recipe
from sa3lora.training.preview import (
    Previewer,
    few_step_source,
    load_trained,
    preview_duration,
    preview_prompts,
)
from sa3lora.training.processes import accelerated
from sa3lora.training.session import build_text, load_denoiser, set_up
from sa3lora.training.tracking import Tracker
from sa3lora.training.trainer import plan_training


def test_base_and_adapter_start_from_the_same_noise_and_the_base_is_made_once(
    tmp_path: Path, source: ModelSource, make_recipe: Callable[..., Recipe]
) -> None:
    recipe = make_recipe("preview={every: 1, steps: 1, duration_s: 0.1, prompts: [a]}")
    with accelerated("cpu") as accelerator:
        setup = set_up(recipe, source=source, accelerator=accelerator)
        text, denoiser = build_text(setup), load_denoiser(setup)
    previewer = Previewer(
        recipe, source=source, data=setup.data, text=text, folder=tmp_path, device="cpu"
    )
    with Tracker(tmp_path, first_step=1, enabled=False) as tracker:
        fresh = previewer.run(denoiser, 0, tracker=tracker)
        with torch.no_grad():
            for _, parameter in adapter_parameters(denoiser):
                parameter.add_(0.05)
        trained = previewer.run(denoiser, 1, tracker=tracker)
    names = ["00-ground-truth.wav", "01-base.wav", "01-step-00000000.wav"]
    assert [path.name for path in fresh] == names
    assert [path.name for path in trained] == ["01-step-00000001.wav"]
    assert previewer.has(1)
    assert not previewer.has(2)
    base, untrained, after = (read_audio(path)[0] for path in [*fresh[1:], *trained])
    assert base.shape == (2, 800)
    assert torch.equal(base, untrained)
    assert not torch.equal(base, after)


@pytest.fixture
def few_step_model(tmp_path: Path, small_model: Path) -> Path:
    """The small model, told to be a few-step one."""
    folder = tmp_path / "few"
    shutil.copytree(small_model, folder)
    config = (folder / "model_config.json").read_text(encoding="utf-8")
    changed = config.replace('"rectified_flow"', '"rf_denoiser"')
    (folder / "model_config.json").write_text(changed, encoding="utf-8")
    return folder


def test_a_few_step_model_plays_the_adapter_in_its_own_way(
    tmp_path: Path, source: ModelSource, make_recipe: Callable[..., Recipe], few_step_model: Path
) -> None:
    recipe = make_recipe(
        "preview={every: 1, steps: 1, duration_s: 0.1, prompts: [a]}",
        f"preview.few_step_model={few_step_model}",
    )
    with accelerated("cpu") as accelerator:
        setup = set_up(recipe, source=source, accelerator=accelerator)
        text, denoiser = build_text(setup), load_denoiser(setup)
    previewer = Previewer(
        recipe, source=source, data=setup.data, text=text, folder=tmp_path, device="cpu",
        few_step=setup.few_step,
    )  # fmt: skip
    with Tracker(tmp_path, first_step=1, enabled=False) as tracker:
        previewer.run(denoiser, 0, tracker=tracker)
        with torch.no_grad():
            for _, parameter in adapter_parameters(denoiser):
                parameter.add_(0.05)
        previewer.run(denoiser, 1, tracker=tracker)
    fresh, trained = (read_audio(tmp_path / f"01-few-step-0000000{n}.wav")[0] for n in (0, 1))
    alone = SA3Pipeline(resolve_model(str(few_step_model)))
    alone.text_encoder = text  # type: ignore[assignment]
    own = alone("a", duration_s=0.1, seed=1000).audio[0]
    torch.testing.assert_close(fresh, own, rtol=0, atol=2e-4)  # a 16-bit file
    assert not torch.allclose(trained, own, rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    "override", ["adapter.type=lora-xs", "adapter.stack=['{small}/adapter_lora.safetensors=0.5']"]
)
def test_a_sibling_plays_the_very_change_that_is_trained(
    source: ModelSource, make_recipe: Callable[..., Recipe], few_step: ModelSource,
    small_model: Path, override: str,
) -> None:  # fmt: skip
    recipe = make_recipe(override.format(small=small_model))
    with accelerated("cpu") as accelerator:
        setup = set_up(recipe, source=source, accelerator=accelerator)
        denoiser = load_denoiser(setup)
    with torch.no_grad():
        for _, parameter in adapter_parameters(denoiser):
            parameter.add_(0.05)

    def change(player: ModelSource) -> dict[str, Tensor]:
        pipeline = SA3Pipeline(player)
        load_trained(pipeline, denoiser, recipe.adapter, source=source)
        bare = player.load_denoiser().state_dict()
        return {name: now - bare[name] for name, now in pipeline.denoiser.state_dict().items()}

    own, other = change(source), change(few_step)
    assert max(float(moved.abs().max()) for moved in own.values()) > 0.01
    for name, moved in own.items():
        torch.testing.assert_close(other[name], moved, rtol=0, atol=1e-5)

    pipeline = SA3Pipeline(source)
    load_trained(pipeline, denoiser, recipe.adapter, source=source)
    x, t = torch.randn(1, source.config.latent_channels, 12), torch.tensor([0.5])
    width = source.config.cond_dim
    text, seconds = [torch.randn(3, width)], torch.tensor([0.05])
    with torch.no_grad():
        trained, played = (
            each.velocity(x, t, each.condition(text, seconds))
            for each in (denoiser.eval(), pipeline.denoiser)
        )
    torch.testing.assert_close(played, trained, rtol=1e-3, atol=1e-4)


def test_a_model_that_is_no_few_step_sibling_is_refused(
    source: ModelSource, make_recipe: Callable[..., Recipe], small_model: Path
) -> None:
    recipe = make_recipe("preview.every=1", f"preview.few_step_model={small_model}")
    with pytest.raises(RecipeError, match=r"preview.few_step_model: .* is no few-step model"):
        few_step_source(recipe, source)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("preview.few_step_model=no-such-model", "few_step_model: there is no model 'no-such"),
        ("preview.few_step_model=tiny", "few_step_model: tiny is no few-step model"),
        ("preview.duration_s=1000", r"preview.duration_s: small makes at most .* s, got 1000"),
    ],
)
def test_previews_that_cannot_be_made_are_refused_with_the_plan(
    source: ModelSource, make_recipe: Callable[..., Recipe], override: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        plan_training(make_recipe("preview.every=1", override), source=source, device="cpu")
    plan_training(make_recipe(override), source=source, device="cpu")  # previews are off


def test_a_few_step_model_of_shorter_clips_limits_the_previews(
    source: ModelSource, make_recipe: Callable[..., Recipe], few_step_model: Path
) -> None:
    path = few_step_model / "model_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["sample_size"] //= 4
    path.write_text(json.dumps(config), encoding="utf-8")
    longest = resolve_model(str(few_step_model)).config.max_duration_s
    assert longest < source.config.max_duration_s
    wanted = (longest + source.config.max_duration_s) / 2
    recipe = make_recipe(
        "preview.every=1",
        f"preview.few_step_model={few_step_model}",
        f"preview.duration_s={wanted}",
    )
    with pytest.raises(RecipeError, match=r"preview.duration_s: few makes at most"):
        few_step_source(recipe, source)


def test_without_prompts_captions_of_held_out_clips_are_taken(
    source: ModelSource, make_recipe: Callable[..., Recipe]
) -> None:
    recipe = make_recipe()
    with accelerated("cpu") as accelerator:
        data = set_up(recipe, source=source, accelerator=accelerator).data
    assert preview_prompts(recipe, data) == ["Genre: test 3"]
    assert preview_duration(recipe, source, data) == pytest.approx(21 * 0.004, abs=0.04)
