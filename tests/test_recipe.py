from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from sa3lora.errors import RecipeError, UsageError
from sa3lora.recipe import AdapterSection, Recipe, load_recipe
from sa3lora.recipe.problems import key_paths, suggest


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "vinyl.yaml"
    path.write_text("model: tiny\nadapter:\n  r: 8\n", encoding="utf-8")
    return path


def test_defaults_are_the_values_the_released_models_were_trained_with() -> None:
    recipe = Recipe()
    objective, optim = recipe.objective, recipe.optim
    assert objective.timesteps == "trunc_logit_normal"
    assert (objective.shift, objective.coupling) == ("model", "sinkhorn")
    assert objective.inpaint == [0.1, 0.8, 0.1]
    assert (objective.silence_s, objective.prompt_dropout) == (4.0, 0.1)
    assert (objective.context_weight, objective.normalisation) == (1.0, "none")
    assert (optim.name, optim.lr, optim.betas, optim.weight_decay) == (
        "adamw", 1e-4, (0.9, 0.95), 0.01,
    )  # fmt: skip
    assert (optim.schedule, recipe.train.seed) == ("constant", 42)
    assert (recipe.adapter.type, recipe.adapter.r, recipe.adapter.alpha) == ("lora", 16, 16.0)


def test_the_keys_are_those_of_the_design() -> None:
    assert [key for key in key_paths(Recipe) if key.startswith(("validate", "adapter."))] == [
        "adapter.type", "adapter.r", "adapter.lora_alpha", "adapter.lora_dropout",
        "adapter.targets", "adapter.include", "adapter.exclude", "adapter.init", "adapter.from",
        "adapter.stack", "adapter.decompose_factor",
        "validate", "validate.every", "validate.tuples", "validate.select", "validate.patience",
        "validate.drift",
    ]  # fmt: skip


def test_overrides_win_and_the_last_one_most(recipe_file: Path) -> None:
    recipe = load_recipe(
        recipe_file,
        ["adapter.r=4", "adapter.r=2", "data.root=my latents", "preview.prompts=[rain, 'a, b']",
         "adapter.from=old.safetensors", "validate.every=0", "optim.max_grad_norm=null"],
    )  # fmt: skip
    assert recipe.adapter.r == 2
    assert recipe.data.root == Path("my latents")
    assert recipe.preview.prompts == ["rain", "a, b"]
    assert recipe.adapter.from_ == Path("old.safetensors")
    assert recipe.validation.every == 0
    assert recipe.optim.max_grad_norm is None


@pytest.mark.parametrize(("text", "value"), [("1e-4", 1e-4), ("3", 3.0), (".5", 0.5)])
def test_numbers_mean_what_they_look_like(recipe_file: Path, text: str, value: float) -> None:
    assert load_recipe(recipe_file, [f"optim.lr={text}"]).optim.lr == value


def test_every_problem_is_told_at_once_with_what_was_meant(recipe_file: Path) -> None:
    recipe_file.write_text(
        "adapter:\n  lora_rank: 8\ntrain:\n  max_steps: 0\n  lr: 1\nmodell: tiny\n",
        encoding="utf-8",
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe_file)
    title, *problems = str(caught.value).split("\n  ")
    assert title == f"{recipe_file} has 4 problems"
    assert sorted(problems) == [
        "adapter.lora_rank: unknown key, did you mean adapter.r?",
        "modell: unknown key, did you mean model?",
        "train.lr: unknown key, did you mean optim.lr?",
        "train.max_steps: must be at least 1, got 0",
    ]


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("adapter.type=loha", r"adapter\.type: must be one of 'lora', .*'rslora', got 'loha'"),
        ("adapter.r=1.5", r"adapter\.r: must be a whole number, got 1\.5"),
        ("adapter.r=many", r"adapter\.r: must be a whole number, got 'many'"),
        ("adapter.lora_dropout=1", r"lora_dropout: must be less than 1, got 1"),
        ("optim.lr=0", r"optim\.lr: must be more than 0, got 0"),
        ("optim.lr=.nan", r"optim\.lr: must be a finite number, got nan"),
        ("optim.lr=.inf", r"optim\.lr: must be a finite number, got inf"),
        ("optim.betas=[0.9, 2]", r"optim\.betas\[1\]: must be less than 1, got 2"),
        ("adapter={type: lokr, lora_dropout: 0.1}", r"lokr has no lora_dropout: .* got 0\.1"),
        ("adapter.decompose_factor=4", r"decompose_factor belongs to type lokr, got lora"),
        ("adapter={type: lokr, decompose_factor: 1}", r"at least 2, or -1 .*, got 1"),
        ("adapter.stack=[a=b]", r"adapter\.stack: must be PATH=STRENGTH .*, got 'a=b'"),
        ("adapter.stack=[a=inf]", r"must be PATH=STRENGTH such as runs/vinyl=0\.7, got 'a=inf'"),
        ("adapter.stack=[a=0]", r"at strength 0 an adapter does nothing: leave 'a=0' out"),
        ("optim.min_lr=1", r"min_lr is where the rate falls to: at most optim.lr = 0.*, got 1"),
        ("optim.min_lr=1e-9", r"a constant rate never falls to optim\.min_lr"),
        ("optim={name: prodigy, lr: 1e-4}", r"prodigy finds the rate .* set it to 1, got 0\.0001"),
        ("optim={name: prodigy, lora_plus_ratio: 2}", r"leave optim.lora_plus_ratio at 1, got 2"),
        ("optim.ema_decay=1", r"optim\.ema_decay: must be less than 1, got 1"),
        ("objective.inpaint=[0.5, 0.5, 0.5]", r"objective\.inpaint: must sum to 1, got 1\.5"),
        ("objective.inpaint=[1.0]", r"must be 3 or 4 probabilities .*, got 1"),
        ("objective.prompt_dropout=2", r"prompt_dropout: must be at most 1, got 2"),
        ("train.checkpointing=maybe", r"must be auto, fast, lean, true, .* got 'maybe'"),
        ("train.checkpointing=1.5", r"share of blocks that is recomputed, 0 to 1, got 1\.5"),
        ("train.compile=perhaps", r"train\.compile: must be true or false, got 'perhaps'"),
        ("preview.prompts=rain", r"preview\.prompts: must be a list, got 'rain'"),
        ("data=3", r"data: must be a section of keys, got 3"),
        ("model=[1]", r"model: must be text, got \[1\]"),
        ("adapter.lora_alfa=3", r"unknown key, did you mean adapter\.lora_alpha\?"),
        ("validate.evry=3", r"unknown key, did you mean validate\.every\?"),
        ("nonsense.key=3", r"nonsense: unknown key$"),
    ],
)
def test_a_wrong_value_names_its_key_the_rule_and_the_value(
    recipe_file: Path, override: str, complaint: str
) -> None:
    with pytest.raises(RecipeError, match=r"vinyl\.yaml has 1 problem\n") as caught:
        load_recipe(recipe_file, [override])
    assert caught.match(complaint)


def test_a_stack_names_paths_and_strengths(tmp_path: Path) -> None:
    odd = tmp_path / "take=2"
    odd.mkdir()
    section = AdapterSection(stack=["runs/vinyl=0.7", "tape.safetensors", str(odd), f"{odd}=-1"])
    assert section.stack_entries() == [
        (Path("runs/vinyl"), 0.7), (Path("tape.safetensors"), 1.0), (odd, 1.0), (odd, -1.0),
    ]  # fmt: skip


def test_prodigy_needs_no_rate(recipe_file: Path, tmp_path: Path) -> None:
    recipe_file.write_text("optim: {name: prodigy}\n", encoding="utf-8")
    recipe = load_recipe(recipe_file)
    assert recipe.optim.lr == 1.0
    (tmp_path / "again.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(tmp_path / "again.yaml") == recipe


def test_targets_are_short_for_include() -> None:
    assert AdapterSection().include_patterns() is None
    assert AdapterSection(targets="attention").include_patterns() == [
        ".self_attn.",
        ".cross_attn.",
    ]
    assert AdapterSection(include=["layers.0."]).include_patterns() == ["layers.0."]


def test_presets_of_other_tools_have_their_meaning() -> None:
    assert AdapterSection(targets="mlp").include_patterns() == [".ff."]
    assert AdapterSection(targets="official").include_patterns() is None
    assert AdapterSection(targets="official").exclude_patterns() == []
    linear = AdapterSection(targets="all-linear", exclude=["seconds_total"])
    assert linear.include_patterns() is None
    assert linear.exclude_patterns() == ["preprocess_conv", "postprocess_conv", "seconds_total"]


@pytest.mark.parametrize(
    ("written", "official"),
    [
        ("layers[0-11]", "layers.[0-11]."),
        ("layers[3]", "layers.3."),
        ("layers[0-1].self_attn", "layers.[0-1].self_attn"),
        ("layers.[0-1]", "layers.[0-1]"),
        (".ff.", ".ff."),
    ],
)
def test_numbered_layers_mean_those_layers(written: str, official: str) -> None:
    section = AdapterSection(include=[written], exclude=[written])
    assert section.include_patterns() == [official]
    assert section.exclude_patterns() == [official]


def test_dora_is_the_old_name_of_dora_rows() -> None:
    assert AdapterSection.model_validate({"type": "dora"}).type == "dora-rows"


def test_rslora_divides_by_the_root_of_the_rank() -> None:
    assert AdapterSection(type="rslora", r=16, lora_alpha=8.0).alpha / 16 == 8.0 / 4
    assert AdapterSection(r=16, lora_alpha=8.0).alpha == 8.0


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        (
            "adapter={type: bora, init: pissa}",
            "init pissa belongs to type lora or rslora, got bora",
        ),
        ("adapter={init: pissa, from: a.safetensors}", "give init or from, not both"),
    ],
)
def test_pissa_where_it_cannot_be_is_refused(
    recipe_file: Path, override: str, complaint: str
) -> None:
    with pytest.raises(RecipeError, match=complaint):
        load_recipe(recipe_file, [override])


def test_targets_and_include_together_are_refused(recipe_file: Path) -> None:
    with pytest.raises(RecipeError, match="give targets or include, not both"):
        load_recipe(recipe_file, ["adapter.targets=attention", "adapter.include=[ff]"])


@pytest.mark.parametrize("override", ["train.max_steps", "=3", "train.=3", ".x=3", ""])
def test_what_is_no_override_is_wrong_usage(recipe_file: Path, override: str) -> None:
    with pytest.raises(UsageError, match=r"Write KEY=VALUE, such as train\.max_steps=200"):
        load_recipe(recipe_file, [override])


def test_an_override_cannot_go_below_a_value(recipe_file: Path) -> None:
    with pytest.raises(UsageError, match="model is not a section, it holds 'tiny'"):
        load_recipe(recipe_file, ["model.name=tiny"])
    with pytest.raises(UsageError, match=r"the value of 'data\.root=\[' is not valid YAML"):
        load_recipe(recipe_file, ["data.root=["])


def test_a_key_written_twice_is_refused(recipe_file: Path) -> None:
    recipe_file.write_text("optim:\n  lr: 1\n  lr: 2\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"the key lr is written twice \(line 3\)"):
        load_recipe(recipe_file)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"a: [1", r"is not valid YAML: .* \(line 1\)"),
        (b"- 1\n- 2\n", "is no recipe: expected keys"),
        (b"\xff\xfe\x00", "it is not UTF-8 text"),
        (b"a: !!python/object:os.system {}", "is not valid YAML"),
    ],
)
def test_a_file_that_is_no_recipe_says_why(
    recipe_file: Path, content: bytes, complaint: str
) -> None:
    recipe_file.write_bytes(content)
    with pytest.raises(RecipeError, match=complaint):
        load_recipe(recipe_file)


def test_an_unreadable_file_names_itself(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(RecipeError, match=r"vinyl\.yaml cannot be read: Permission denied"):
        load_recipe(recipe_file)


def test_an_unknown_name_lists_the_packaged_recipes() -> None:
    with pytest.raises(RecipeError, match=r"packaged ones are .* mean tiny_style\?"):
        load_recipe("tiny_stile")


def test_an_empty_file_is_all_defaults(recipe_file: Path) -> None:
    recipe_file.write_text("# nothing\n", encoding="utf-8")
    assert load_recipe(recipe_file) == Recipe()


def test_a_recipe_cannot_change_under_a_run() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Recipe().train.max_steps = 3  # type: ignore[misc]


def test_a_word_like_nothing_gets_no_suggestion() -> None:
    assert suggest("zzz", key_paths(Recipe)) is None
