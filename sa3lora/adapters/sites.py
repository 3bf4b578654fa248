"""Which layers an adapter changes: candidates, patterns and presets."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from sa3lora.adapters.config import AdapterConfig
from sa3lora.errors import AdapterError

_SHOWN = 8
_RANGE = re.compile(r"\[(\d+)-(\d+)\]")


def find_layers(root: nn.Module) -> dict[str, nn.Module]:
    """Map every candidate site name below `root` to its plain layer, sorted by name.

    A layer that carries a PEFT adapter is reported once, under its own name, as the layer that
    the adapter wraps; the adapter's inner layers are no sites.
    """
    found: dict[str, nn.Module] = {}
    _collect(root, prefix="", found=found)
    return dict(sorted(found.items()))


def _collect(module: nn.Module, *, prefix: str, found: dict[str, nn.Module]) -> None:
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        base = getattr(child, "base_layer", None)
        layer = base if isinstance(base, nn.Module) else child
        if isinstance(layer, nn.Linear | nn.Conv1d):
            found[path] = layer
        else:
            _collect(child, prefix=f"{path}.", found=found)


def site_shapes(root: nn.Module) -> dict[str, tuple[int, int]]:
    """Map every candidate site to (fan_out, fan_in) of its weight as a matrix."""
    return {name: matrix_shape(_weight_shape(layer)) for name, layer in find_layers(root).items()}


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Give (fan_out, fan_in) of a weight; a kernel counts as part of the inputs."""
    fan_in = 1
    for size in shape[1:]:
        fan_in *= size
    return shape[0], fan_in


def _weight_shape(layer: nn.Module) -> tuple[int, ...]:
    if isinstance(layer, nn.Linear):  # without its weight, which may have to be made first
        return layer.out_features, layer.in_features
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    return tuple(weight.shape)


def check_layers(layers: Mapping[str, nn.Module], config: AdapterConfig) -> None:
    """Refuse layers that cannot carry an adapter of this type and rank, every one by name.

    Raises:
        AdapterError: If a convolution is grouped or dilated, or wider than 1 under magnitudes of
            columns, or a rank exceeds the smaller side where singular vectors are needed.
    """
    odd = [
        f"{site}: groups {layer.groups}, dilation {layer.dilation[0]}"
        for site, layer in layers.items()
        if isinstance(layer, nn.Conv1d) and (layer.groups != 1 or layer.dilation != (1,))
    ]
    if odd:
        raise AdapterError(
            "\n  ".join(["grouped or dilated convolutions cannot carry an adapter", *odd])
        )
    wide = [
        f"{site}: kernel {layer.kernel_size[0]}"
        for site, layer in layers.items()
        if isinstance(layer, nn.Conv1d) and layer.kernel_size != (1,)
    ]
    if wide and config.type.startswith(("dora-cols", "bora")):
        raise AdapterError(
            "\n  ".join([f"{config.type} scales inputs, which wide convolutions share", *wide])
            + "\nLeave them out with adapter.exclude, or train dora-rows or lora."
        )
    shapes = {site: matrix_shape(_weight_shape(layer)) for site, layer in layers.items()}
    check_rank(shapes, config)


def check_rank(shapes: Mapping[str, tuple[int, int]], config: AdapterConfig) -> None:
    """Refuse a rank that a layer has not enough singular vectors for.

    Raises:
        AdapterError: Naming the layers, and the largest rank that all of them allow.
    """
    if not config.type.endswith("-xs") and config.init != "pissa":
        return
    small = [
        f"{site}: {fan_out} x {fan_in}"
        for site, (fan_out, fan_in) in sorted(shapes.items())
        if min(fan_out, fan_in) < config.r
    ]
    if small:
        largest = min(min(shape) for shape in shapes.values())
        what = config.type if config.type.endswith("-xs") else "adapter.init pissa"
        shown = [
            *small[:_SHOWN],
            *([f"and {len(small) - _SHOWN} more"] if len(small) > _SHOWN else []),
        ]
        raise AdapterError(
            "\n  ".join(
                [f"{what} of rank {config.r} needs as many singular vectors as that", *shown]
            )
            + f"\nLower adapter.r to {largest}, or leave these layers out with adapter.exclude."
        )


def expand_brackets(pattern: str) -> list[str]:
    """Expand every `[a-b]` of integers, inclusive, either way; several groups multiply out.

    `[3]` and `[0-1,3]` are not groups and stay as they are. `layers.[0-1]` also matches blocks 10
    to 19: write `layers.[0-1].`.
    """
    pieces: list[list[str]] = []
    end = 0
    for match in _RANGE.finditer(pattern):
        pieces.append([pattern[end : match.start()]])
        first, last = int(match[1]), int(match[2])
        step = 1 if last >= first else -1
        pieces.append([str(number) for number in range(first, last + step, step)])
        end = match.end()
    pieces.append([pattern[end:]])
    return ["".join(parts) for parts in itertools.product(*pieces)]


def matches(site: str, patterns: Iterable[str]) -> bool:
    """Tell whether any pattern, expanded, is a case-sensitive substring of the site name."""
    return any(
        expanded in site for pattern in patterns for expanded in expand_brackets(pattern.strip())
    )


def select_sites(candidates: Iterable[str], config: AdapterConfig) -> list[str]:
    """Choose the sites that `include` and `exclude` leave, sorted.

    A site must match some include pattern, if there are any, and no exclude pattern.

    Raises:
        AdapterError: If a pattern matches no candidate (the message gives near names), or nothing
            is left.
    """
    names = sorted(candidates)
    _check_patterns(names, include=config.include, exclude=config.exclude)
    chosen = _selected(names, include=config.include, exclude=config.exclude)
    if not chosen:
        raise AdapterError(
            f"adapter.include {_show(config.include)} and adapter.exclude {_show(config.exclude)} "
            f"together leave none of {len(names)} layers. Loosen one of them."
        )
    return chosen


def patterns_for(
    wanted: Iterable[str], candidates: Iterable[str], config: AdapterConfig
) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """Give include and exclude patterns that select exactly the wanted sites.

    Those of `config` if they do; else the sites by name, since official readers attach to
    whatever the patterns of a file select.
    """
    sites, names = sorted(wanted), sorted(candidates)
    if _selected(names, include=config.include, exclude=config.exclude) == sites:
        return config.include, config.exclude
    others = [name for name in names if matches(name, sites) and name not in set(sites)]
    return tuple(sites), tuple(others) or None


def _selected(
    names: list[str], *, include: tuple[str, ...] | None, exclude: tuple[str, ...] | None
) -> list[str]:
    return [name for name in names if _passes(name, include=include, exclude=exclude)]


def _passes(site: str, *, include: tuple[str, ...] | None, exclude: tuple[str, ...] | None) -> bool:
    return (include is None or matches(site, include)) and not matches(site, exclude or ())


def _check_patterns(
    names: list[str], *, include: tuple[str, ...] | None, exclude: tuple[str, ...] | None
) -> None:
    problems = [
        f"adapter.{key}: {pattern!r} matches no layer{_hint(pattern, names)}"
        for key, patterns in (("include", include), ("exclude", exclude))
        for pattern in patterns or ()
        if not any(matches(name, [pattern]) for name in names)
    ]
    if problems:
        raise AdapterError("\n  ".join(["patterns without a match", *problems]))


def _hint(pattern: str, names: list[str]) -> str:
    dotted = _RANGE.sub(lambda match: f".{match[0]}.", pattern).replace("..", ".")
    if dotted != pattern and any(matches(name, [dotted]) for name in names):
        return f", did you mean {dotted!r}?"
    probe = expand_brackets(pattern.strip())[0]
    near = difflib.get_close_matches(probe, sorted(_fragments(names)), n=3, cutoff=0.6)
    return f", near names: {', '.join(near)}" if near else f"; a layer is called {names[0]}"


def _fragments(names: list[str]) -> set[str]:
    fragments: set[str] = set()
    for name in names:
        parts = name.split(".")
        for start in range(len(parts)):
            fragments.update(".".join(parts[start:end]) for end in range(start + 1, len(parts) + 1))
    return fragments


def _show(patterns: tuple[str, ...] | None) -> str:
    return "null" if patterns is None else str(list(patterns))
