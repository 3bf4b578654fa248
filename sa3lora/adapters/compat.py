"""Does an adapter belong to this model: the same, a sibling, or another."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Literal

from sa3lora.adapters.config import LOKR
from sa3lora.adapters.files import AdapterFile
from sa3lora.adapters.header import PREFIX
from sa3lora.adapters.kron import kron_shape
from sa3lora.errors import AdapterMismatchError

Relation = Literal["same", "sibling", "other"]

_LOGGER = logging.getLogger(__name__)
_SHOWN = 8

# Names of base models in files of the Underfit trainer.
_UNDERFIT_FAMILIES = {
    "sa3-medium": "medium",
    "sa3-sm-music": "small-music",
    "sa3-sm-sfx": "small-sfx",
}


def check_base(
    adapter: AdapterFile,
    *,
    name: str,
    dit_hash: str | None,
    shapes: Mapping[str, tuple[int, int]],
    label: str = "this adapter",
    allow_other: bool = False,
) -> Relation:
    """Decide whether an adapter may be used on a model, and say so when it is a sibling.

    *Same*: the hash of DiT and conditioners is equal. *Sibling*: `X-base` and `X`, or a file that
    names no base and whose every shape fits. Training on a base and playing on its post-trained
    sibling is normal use.

    Args:
        adapter: The adapter.
        name: Name of the model it is to be used on.
        dit_hash: Hash of that model; None if unknown, which is never the same.
        shapes: (fan_out, fan_in) of every site of that model, from `sites.site_shapes`.
        label: What to call the adapter in messages, such as its path.
        allow_other: Use it on another base all the same; its shapes must still fit.

    Raises:
        AdapterMismatchError: If the base is another one, a tensor does not fit, or an `-xs` adapter
            meets a sibling, whose singular vectors are not the ones it was trained in.
    """
    relation = base_relation(adapter, name=name, dit_hash=dit_hash)
    trained_on = base_name(adapter)
    if relation == "other" and not allow_other:
        raise AdapterMismatchError(_other_message(label, trained_on, name=name))
    problems = shape_problems(adapter, shapes)
    if problems:
        origin = f" (trained on {trained_on})" if trained_on else ""
        raise AdapterMismatchError(_shape_message(f"{label}{origin}", name, problems=problems))
    if relation == "same":
        return relation
    needs_bases = adapter.config.type.endswith("-xs") and not adapter.has_bases
    if needs_bases and trained_on and not allow_other:
        raise AdapterMismatchError(
            f"{label} is {adapter.config.type}, trained on {trained_on}, and holds no bases: on "
            f"{name} its numbers would act in other directions. Load {trained_on}, or make a file "
            f"that carries them: sa3lora convert FILE --to sa3 --model {trained_on} --with-bases. "
            "--allow-other-base uses it all the same."
        )
    origin = f"was trained on {trained_on}" if trained_on else "does not name its base"
    _LOGGER.warning("%s %s, used on %s: %s", label, origin, name, relation)
    return relation


def check_one_base(
    adapters: Sequence[tuple[str, AdapterFile]], *, allow_other: bool = False
) -> None:
    """Refuse to combine adapters of unrelated bases; those that name none pass.

    Raises:
        AdapterMismatchError: Naming the base of each.
    """
    named = [(label, name) for label, adapter in adapters if (name := base_name(adapter))]
    if allow_other or len({_family(name) for _, name in named}) <= 1:
        return
    listed = [f"{label} was trained on {name}" for label, name in named]
    advice = "Merge adapters of one base, or pass --allow-other-base."
    raise AdapterMismatchError(
        "\n  ".join(["the adapters belong to different bases", *listed]) + f"\n{advice}"
    )


def base_relation(adapter: AdapterFile, *, name: str, dit_hash: str | None) -> Relation:
    """Compare names and hashes alone; a file without either counts as a sibling."""
    own_hash = adapter.metadata.get(f"{PREFIX}dit_hash")
    if own_hash and own_hash == dit_hash:
        return "same"
    trained_on = base_name(adapter)
    if trained_on is None:
        return "other" if own_hash else "sibling"
    if trained_on == name:
        # One name, two hashes: the weights behind the name have changed since.
        return "other" if own_hash and dit_hash else "sibling"
    return "sibling" if _family(trained_on) == _family(name) else "other"


def base_name(adapter: AdapterFile) -> str | None:
    """Name of the model an adapter was trained on, if its header tells."""
    named = adapter.metadata.get(f"{PREFIX}base_id") or adapter.config.extra.get("base_model")
    if not isinstance(named, str):
        return None
    family = _UNDERFIT_FAMILIES.get(named)
    return f"{family}-base" if family else named


def shape_problems(adapter: AdapterFile, shapes: Mapping[str, tuple[int, int]]) -> list[str]:
    """List the sites of an adapter that a model lacks or has in another size."""
    problems = []
    for site in adapter.sites:
        if site not in shapes:
            problems.append(f"{site}: no such layer")
            continue
        fan_out, fan_in = shapes[site]
        if adapter.config.type == LOKR:
            found = kron_shape({k: tuple(t.shape) for k, t in adapter.tensors[site].items()})
            if found != (fan_out, fan_in):
                problems.append(f"{site}: is for {found}, the model has {fan_out, fan_in}")
            continue
        wanted = {
            "lora_A": (adapter.rank(site), fan_in),
            "lora_B": (fan_out, adapter.rank(site)),
            "magnitude_r": (fan_out,),
            "magnitude_c": (fan_in,),
            "magnitude": (fan_out if "rows" in adapter.config.type else fan_in,),
            "U": (fan_out, adapter.rank(site)),
            "V": (fan_in, adapter.rank(site)),
        }
        for tensor, value in adapter.tensors[site].items():
            shape = tuple(value.shape)
            if tensor == "M_xs":
                if shape[0] > min(fan_out, fan_in):
                    problems.append(f"{site}: rank {shape[0]} in a {fan_out} x {fan_in} layer")
            elif shape != wanted[tensor]:
                problems.append(f"{site}.{tensor}: has {shape}, the model needs {wanted[tensor]}")
    return problems


def _family(name: str) -> str:
    return name.rsplit("/", 1)[-1].removeprefix("stable-audio-3-").removesuffix("-base")


def _other_message(label: str, trained_on: str | None, *, name: str) -> str:
    if trained_on is None:
        return (
            f"{label} was trained on other weights than {name} (the hash differs) and does not "
            "name its base.\nPass --allow-other-base to use it all the same."
        )
    if trained_on == name:
        return (
            f"{label} was trained on other weights of the name {name} (the hash differs).\n"
            "Load those weights, train the adapter again, or pass --allow-other-base."
        )
    return (
        f"{label} was trained on {trained_on}, this pipeline is {name}.\n"
        f"Load {trained_on}, or train the adapter again on {name}."
    )


def _shape_message(label: str, name: str, *, problems: list[str]) -> str:
    shown = problems[:_SHOWN]
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more")
    head = f"{label} does not fit {name}: {len(problems)} problems"
    advice = "Use it on the model that it was trained on, or train it again on this one."
    return "\n  ".join([head, *shown]) + f"\n{advice}"
