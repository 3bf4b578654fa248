from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import prepare_multi_gpu_env

from sa3lora.adapters.config import AdapterConfig
from sa3lora.adapters.inject import inject_adapter
from sa3lora.adapters.sites import find_layers
from sa3lora.errors import RecipeError, RunError
from sa3lora.models.denoiser import Denoiser
from sa3lora.models.source import ModelSource
from sa3lora.recipe import Recipe, recipes_folder
from sa3lora.training.plan import make_plan
from sa3lora.training.precision import choose_precision
from sa3lora.training.processes import accelerated
from sa3lora.training.session import set_up
from sa3lora.training.sharding import (
    Sharding,
    asks_for_sharding,
    choose_sharding,
    shard_base,
    share_of_base,
)


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Stand in for a launcher that asks for FSDP2."""

    def set_environment(**options: str) -> None:
        chosen = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", **options}
        for variable, value in chosen.items():
            monkeypatch.setenv(variable, value)

    return set_environment


def _choose(recipe: Recipe, *, num_processes: int = 2) -> Sharding | None:
    adapter = AdapterConfig.from_section(recipe.adapter)
    return choose_sharding(recipe, adapter, num_processes=num_processes)


def test_without_a_launcher_nothing_is_spread(make_recipe: Callable[..., Recipe]) -> None:
    assert _choose(make_recipe()) is None


@pytest.mark.parametrize("name", ["fsdp2", "fsdp2_nodes"])
def test_what_accelerate_makes_of_our_files_is_followed(
    name: str, make_recipe: Callable[..., Recipe], launch: Callable[..., None]
) -> None:
    path = recipes_folder() / "accelerate" / f"{name}.yaml"
    config = load_config_from_file(str(path))
    given = [part for key, value in config.fsdp_config.items() for part in (f"--{key}", f"{value}")]
    args = launch_command_parser().parse_args(["--use_fsdp", *given, "train.py"])
    args.mixed_precision = config.mixed_precision
    args.num_processes = str(config.num_processes)
    args.num_machines, args.dynamo_backend = 1, "no"
    made = prepare_multi_gpu_env(args)
    launch(**{k: v for k, v in made.items() if k.startswith("FSDP_") or "MIXED" in k})
    assert os.environ["FSDP_VERSION"] == "2"
    assert _choose(make_recipe()) == Sharding(2, reshard_after_forward=True)


def test_weights_are_kept_between_the_passes_where_the_launcher_asks_for_it(
    make_recipe: Callable[..., Recipe], launch: Callable[..., None]
) -> None:
    launch(FSDP_RESHARD_AFTER_FORWARD="false")
    assert _choose(make_recipe()) == Sharding(2, reshard_after_forward=False)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("FSDP_SHARDING_STRATEGY", "HYBRID_SHARD"),
        ("FSDP_RESHARD_AFTER_FORWARD", "SHARD_GRAD_OP"),
        ("FSDP_AUTO_WRAP_POLICY", "SIZE_BASED_WRAP"),
        ("FSDP_TRANSFORMER_CLS_TO_WRAP", "T5Block"),
        ("FSDP_OFFLOAD_PARAMS", "true"),
        ("FSDP_CPU_RAM_EFFICIENT_LOADING", "true"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true"),
        ("FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD", "true"),
        ("FSDP_FORWARD_PREFETCH", "true"),
        ("FSDP_BACKWARD_PREFETCH", "BACKWARD_PRE"),
        ("FSDP_STATE_DICT_TYPE", "SHARDED_STATE_DICT"),
        ("FSDP_IGNORED_MODULES", ".*norm"),
        ("ACCELERATE_MIXED_PRECISION", "bf16"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true"),
    ],
)
def test_an_option_that_is_not_followed_is_named(
    variable: str, value: str, launch: Callable[..., None]
) -> None:
    launch()
    assert asks_for_sharding()
    launch(**{variable: value})
    name = variable.removeprefix("ACCELERATE_").lower()
    with pytest.raises(RunError, match=f"{name}: .* is not followed"), accelerated("cpu"):
        pass


def test_the_first_fsdp_is_refused_with_the_way_to_the_second(launch: Callable[..., None]) -> None:
    launch(FSDP_VERSION="1")
    with pytest.raises(RunError, match=r"Set fsdp_version: 2 .*fsdp2\.yaml"), accelerated("cpu"):
        pass


def test_one_process_has_nobody_to_share_with(
    make_recipe: Callable[..., Recipe], launch: Callable[..., None]
) -> None:
    launch()
    with pytest.raises(RunError, match="there is only one"):
        _choose(make_recipe(), num_processes=1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.compile=true"], "set train.compile=false"),
        (["train.base_dtype=nf4"], "train.base_dtype: nf4 keeps a base small .* Leave it out"),
        (["train.offload=true"], "train.offload: true keeps a base small .* Leave it out"),
        (["adapter.type=dora", "adapter.stack=[other.safetensors]"], "take adapter.type=lora"),
        (["adapter.init=pissa", "adapter.stack=[other.safetensors]"], "take adapter.type=lora"),
    ],
)
def test_what_needs_the_whole_base_is_refused(
    overrides: list[str],
    message: str,
    make_recipe: Callable[..., Recipe],
    launch: Callable[..., None],
) -> None:
    recipe = make_recipe(*overrides)
    assert _choose(recipe) is None
    launch()
    with pytest.raises(RecipeError, match=message):
        _choose(recipe)


def test_magnitudes_of_zero_rows_are_refused_before_anything_is_spread(source: ModelSource) -> None:
    denoiser = source.load_denoiser()
    site, layer = next(iter(find_layers(denoiser).items()))
    with torch.no_grad():
        layer.weight[0].zero_()
    inject_adapter(denoiser, AdapterConfig(type="dora-rows", r=2))
    with pytest.raises(RecipeError, match=f"1 layers have rows or columns of zeros .{site}"):
        shard_base(denoiser, Sharding(2), device=torch.device("cpu"))


def test_the_plan_counts_the_share_of_a_process(
    source: ModelSource, make_recipe: Callable[..., Recipe]
) -> None:
    recipe = make_recipe("train.base_dtype=float32")
    with accelerated("cpu") as accelerator:
        data = set_up(recipe, source=source, accelerator=accelerator).data
    parts = {
        "source": source,
        "data": data,
        "precision": choose_precision(recipe.train, device="cpu"),
        "device": "cpu",
        "world_size": 4,
    }
    assert "base" not in make_plan(recipe, **parts).rows
    told = make_plan(recipe, **parts, sharding=Sharding(4)).rows["base"]
    share = share_of_base(Denoiser(source.config), Sharding(4))
    assert told.startswith(f"FSDP2: {share.kept * 4 / 1e6:.0f} MB of ")
    assert f"{share.gathered * 4 / 1e6:.0f} MB gathered" in told


def test_more_processes_keep_less_each_and_gather_as_much(source: ModelSource) -> None:
    with torch.device("meta"):
        denoiser = Denoiser(source.config)
    whole = sum(parameter.numel() for parameter in denoiser.parameters())
    shares = [share_of_base(denoiser, Sharding(n)) for n in (2, 4, 8)]
    assert [each.gathered for each in shares] == [shares[0].gathered] * 3
    assert whole / 2 <= shares[0].kept < 0.6 * whole
    assert shares[0].kept > shares[1].kept > shares[2].kept > whole / 8
    held = share_of_base(denoiser, Sharding(2, reshard_after_forward=False))
    assert held.gathered == sum(p.numel() for p in denoiser.model.parameters())
