"""What the names and shapes in an adapter file mean, with every problem found at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sa3lora.adapters.config import BASES, TENSOR_NAMES, TENSORS
from sa3lora.adapters.limits import MAX_RANK, is_name

Axis = Literal["rows", "cols"]
Shape = tuple[int, ...]
Site = dict[str, tuple[str, Shape]]  # tensor name -> (key in the file, shape)


@dataclass(frozen=True)
class Layout:
    """Type, global rank and place of every tensor of a file: `places[key] = (site, tensor)`."""

    type: str
    r: int
    places: dict[str, tuple[str, str]]


def key_of(site: str, tensor: str) -> str:
    """Give the official key of a tensor: `<site>.parametrizations.weight.0.<tensor>`."""
    return f"{site}.parametrizations.weight.0.{tensor}"


def resolve_layout(
    header: Mapping[str, Any], shapes: Mapping[str, Shape], *, legacy_axis: Axis | None = None
) -> tuple[Layout | None, list[str]]:
    """Work out type, ranks and sites of a file from its `lora_config` and its tensor shapes.

    Without `adapter_type`, or with the old name `dora`, the type follows from the tensors. Whether
    a lone `magnitude` scales rows or columns is taken from its shape; where every layer is square
    only `legacy_axis` can tell.

    Args:
        header: Parsed `lora_config`, empty if the file has none.
        shapes: Shape of every tensor by its key.
        legacy_axis: Axis of magnitudes in files that do not say.

    Returns:
        The layout, or None if there are problems, and the problems.
    """
    sites, problems = _group(shapes)
    if not sites:
        found = f"but {len(shapes)} others; a model, maybe" if shapes else "and no others"
        return None, [
            f"holds no adapter tensors (<site>.parametrizations.weight.0.…), {found}. "
            "Name an adapter file"
        ]
    adapter_type, problem = _resolve_type(header.get("adapter_type"), sites, legacy_axis)
    if adapter_type is None:
        return None, [*problems, problem]
    ranks: dict[str, int] = {}
    for site, tensors in sites.items():
        problems += _site_problems(site, tensors, adapter_type=adapter_type, ranks=ranks)
    r, rank_problems = _global_rank(header.get("rank"), ranks)
    problems += rank_problems
    if problems or r is None:
        return None, problems
    places = {
        key: (site, name) for site, group in sites.items() for name, (key, _) in group.items()
    }
    return Layout(adapter_type, r, places), []


def _group(shapes: Mapping[str, Shape]) -> tuple[dict[str, Site], list[str]]:
    sites: dict[str, Site] = {}
    slots: dict[str, set[str]] = {}
    problems = []
    for key in sorted(shapes):
        parts = key.split(".")
        known = len(parts) > 4 and parts[-4:-2] == ["parametrizations", "weight"]
        digits = parts[-2] if len(parts) > 4 else ""
        known = known and digits.isascii() and digits.isdigit() and parts[-1] in TENSOR_NAMES
        if not known or not is_name(key):
            problems.append(f"{key}: not an adapter tensor")
            continue
        site = ".".join(parts[:-4])
        slots.setdefault(site, set()).add(parts[-2])
        sites.setdefault(site, {})[parts[-1]] = (key, tuple(shapes[key]))
    problems += [
        f"{site}: holds slots {', '.join(sorted(found))}; a file is one adapter, with one slot"
        for site, found in slots.items()
        if len(found) > 1
    ]
    return sites, problems


def _resolve_type(
    given: Any, sites: Mapping[str, Site], legacy_axis: Axis | None
) -> tuple[str | None, str]:
    if isinstance(given, str) and given in TENSORS:
        return given, ""
    if given not in (None, "dora"):
        return None, f"adapter_type {str(given)[:80]!r} is none of {', '.join(TENSORS)}"
    names = set().union(*(set(group) for group in sites.values()))
    stem = "-xs" if "M_xs" in names else ""
    if names & {"magnitude_r", "magnitude_c"}:
        return "bora" + stem, ""
    if "magnitude" not in names and given is None:
        return "lora" + stem, ""
    axes = {axis for group in sites.values() if (axis := _magnitude_axis(group))}
    if len(axes) > 1:
        return None, "magnitudes scale rows in some layers and columns in others"
    axis = axes.pop() if axes else legacy_axis
    if axis is None:
        return None, (
            "does not say whether its magnitudes scale rows or columns, and every layer fits both; "
            "pass legacy_axis='rows' (what the released tools assume) or 'cols' to read_adapter"
        )
    return f"dora-{axis}{stem}", ""


def _magnitude_axis(group: Site) -> Axis | None:
    shape = group["magnitude"][1] if "magnitude" in group else ()
    if len(shape) == 2 and shape[0] != shape[1]:
        return "cols" if shape[0] == 1 else "rows"
    down, up = (group[name][1] if name in group else () for name in ("lora_A", "lora_B"))
    if len(shape) != 1 or not down or not up:
        return None
    fan_out, fan_in = up[0], down[-1]
    if fan_out == fan_in:
        return None
    return "rows" if shape[0] == fan_out else "cols" if shape[0] == fan_in else None


def _site_problems(
    site: str, tensors: Site, *, adapter_type: str, ranks: dict[str, int]
) -> list[str]:
    expected = TENSORS[adapter_type]
    if adapter_type.endswith("-xs") and tensors.keys() & set(BASES):
        expected = (*expected, *BASES)
    missing = [key_of(site, name) for name in expected if name not in tensors]
    extra = [tensors[name][0] for name in tensors if name not in expected]
    problems = [f"{key}: missing, {adapter_type} needs it" for key in missing]
    problems += [f"{key}: unexpected in {adapter_type}" for key in extra]
    if problems:
        return problems
    shape = {name: found for name, (_, found) in tensors.items()}
    low_rank = ("M_xs",) if "M_xs" in shape else ("lora_A", "lora_B")
    for name in low_rank:
        if len(shape[name]) != 2 or 0 in shape[name]:
            return [f"{tensors[name][0]}: must be a matrix, got {shape[name]}"]
    first = shape[low_rank[0]]
    if first[0] > MAX_RANK:
        return [f"{site}: rank {first[0]} is above {MAX_RANK}"]
    if first[0] != shape[low_rank[-1]][1]:
        return [f"{site}: ranks differ, {' and '.join(f'{n} {shape[n]}' for n in low_rank)}"]
    ranks[site] = first[0]
    fans: tuple[int | None, int | None] = (None, None)
    if "lora_A" in shape:
        fans = shape["lora_B"][0], shape["lora_A"][1]
    if "U" in shape:
        for name in BASES:
            if len(shape[name]) != 2 or shape[name][1] != first[0] or 0 in shape[name]:
                return [f"{tensors[name][0]}: must be n x {first[0]}, got {shape[name]}"]
        fans = shape["U"][0], shape["V"][0]
    return _magnitude_problems(tensors, fans=fans, adapter_type=adapter_type)


def _magnitude_problems(
    tensors: Site, *, fans: tuple[int | None, int | None], adapter_type: str
) -> list[str]:
    problems = []
    for name in TENSORS[adapter_type]:
        if not name.startswith("magnitude"):
            continue
        shape = tensors[name][1]
        rows = name == "magnitude_r" or (name == "magnitude" and "rows" in adapter_type)
        if not _is_vector(shape, rows=rows, length=fans[0] if rows else fans[1]):
            side = "fan_out" if rows else "fan_in"
            wanted = side if fans[0] is None else f"{side} = {fans[0] if rows else fans[1]}"
            problems.append(f"{tensors[name][0]}: must have {wanted} values, got {shape}")
    return problems


def _is_vector(shape: Shape, *, rows: bool, length: int | None) -> bool:
    if len(shape) == 2:  # the old form: (n, 1) for rows, (1, n) for columns
        if shape[1 if rows else 0] != 1:
            return False
        shape = (shape[0] if rows else shape[1],)
    return len(shape) == 1 and shape[0] > 0 and (length is None or shape[0] == length)


def _global_rank(given: Any, ranks: Mapping[str, int]) -> tuple[int | None, list[str]]:
    found = set(ranks.values())
    if not found:
        return None, []
    if given is None:
        return max(found), []
    if not isinstance(given, int) or isinstance(given, bool) or not 1 <= given <= MAX_RANK:
        return None, [f"lora_config.rank must be a positive integer, got {str(given)[:40]!r}"]
    if len(found) == 1 and found != {given}:
        return None, [f"lora_config.rank is {given}, but its tensors have rank {found.pop()}"]
    return given, []
