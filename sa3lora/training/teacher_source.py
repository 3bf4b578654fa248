"""Which model and adapter teach a few-step adapter, checked before any weights load."""

from __future__ import annotations

import torch

from sa3lora.adapters.compat import check_base
from sa3lora.adapters.files import read_adapter
from sa3lora.adapters.find import find_adapter
from sa3lora.adapters.sites import site_shapes
from sa3lora.adapters.stacked import stack_of
from sa3lora.errors import RecipeError
from sa3lora.models.denoiser import Denoiser
from sa3lora.models.registry import MODELS
from sa3lora.models.source import ModelSource, resolve_model
from sa3lora.models.text import folder_hash
from sa3lora.recipe import DistillSection, Recipe


def teacher_source(section: DistillSection, source: ModelSource) -> ModelSource:
    """Find the base that the teacher was trained on: `distill.base`, else the student's sibling.

    Raises:
        RecipeError: If there is no such name, or the two share no latents or no text encoder.
    """
    name = section.base or f"{source.name}-base"
    if section.base is None and name not in MODELS:
        raise RecipeError(
            f"distill.base: {source.name} has no base of a known name. Name the model that the "
            "teacher was trained on."
        )
    base = resolve_model(name)
    if not base.dit_hash or base.ae_hash != source.ae_hash:
        raise RecipeError(
            f"distill.base: {base.name} makes other latents than {source.name}. Name the base "
            "model that belongs to it."
        )
    if folder_hash(base.text_folder()) != folder_hash(source.text_folder()):
        raise RecipeError(
            f"distill.base: {base.name} reads prompts with another text encoder than "
            f"{source.name}. Name the base model that belongs to it."
        )
    return base


def teacher_identity(recipe: Recipe, source: ModelSource) -> dict[str, str]:
    """Check the teacher of a recipe before anything is loaded, and say what it is by its hashes.

    Returns:
        What a resumed run must find again, by recipe key; empty without a teacher.

    Raises:
        RecipeError: If the recipe asks for what a distilled run does not do.
        AdapterError: If the teacher cannot be read or belongs to another base.
    """
    section = recipe.distill
    if section.teacher is None:
        return {}
    objective = recipe.objective
    if objective.prior_weight or objective.min_snr_gamma is not None:
        raise RecipeError(
            "objective: prior_weight and min_snr_gamma weigh the flow loss, which a run with "
            "distill.teacher does not have. Leave both out."
        )
    base = teacher_source(section, source)
    teacher = read_adapter(find_adapter(section.teacher))
    with torch.device("meta"):
        shapes = site_shapes(Denoiser(base.config))
    check_base(
        teacher, name=base.name, dit_hash=base.dit_hash, shapes=shapes, label=str(section.teacher)
    )
    if stack_of(teacher):
        raise RecipeError(
            f"distill.teacher: {section.teacher} was trained on top of other adapters, without "
            "which it is another teacher. Merge them into one adapter, and name that."
        )
    return {"distill.teacher": teacher.content_hash, "distill.base": base.dit_hash}
